"""The stream of questions."""

import pytest

from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionStream


def _questions(count):
    return [Question(str(i), f"Question {i}?", (str(i),)) for i in range(count)]


def _ids(stream, batch_size, count):
    return [[question.id for question in stream.take(batch_size)] for _ in range(count)]


def _flat(batches):
    return [question_id for batch in batches for question_id in batch]


@pytest.mark.parametrize(("count", "batch_size"), [(12, 3), (7, 3), (3, 8), (1, 4), (5, 5), (9, 1)])
def test_every_question_once_an_epoch(count, batch_size):
    epochs = 6
    batches = _ids(
        QuestionStream(_questions(count), seed=3), batch_size, -(-epochs * count // batch_size)
    )
    assert {len(batch) for batch in batches} == {batch_size}
    stream = _flat(batches)
    for epoch in range(epochs):
        chunk = stream[epoch * count : (epoch + 1) * count]
        assert sorted(chunk, key=int) == [str(i) for i in range(count)]


def test_what_is_taken_is_a_list_of_the_questions_themselves():
    questions = _questions(4)
    batch = QuestionStream(questions, seed=0).take(3)
    assert type(batch) is list
    assert all(questions[int(question.id)] is question for question in batch)


def test_epochs_differ():
    epochs = _ids(QuestionStream(_questions(50), seed=0), 50, 20)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert all(epoch != sorted(epoch, key=int) for epoch in epochs)


def test_seed_decides_the_order():
    def stream(seed):
        return _ids(QuestionStream(_questions(50), seed=seed), 50, 5)

    assert stream(1) == stream(1)
    # Neighbouring seeds share no epoch, not even shifted by one.
    assert not {tuple(epoch) for epoch in stream(1)} & {tuple(epoch) for epoch in stream(2)}


@pytest.mark.parametrize("sizes", [[4] * 8, [1, 7, 2, 30, 3]])
def test_resuming_continues_exactly(sizes):
    """However much was taken at a time, as under dynamic sampling."""
    questions = _questions(10)
    stream = QuestionStream(questions, seed=5)
    whole = [stream.take(size) for size in sizes]
    assert stream.position == sum(sizes)
    for done in range(len(sizes)):
        resumed = QuestionStream(questions, seed=5, position=sum(sizes[:done]))
        assert [resumed.take(size) for size in sizes[done:]] == whole[done:]


def test_how_much_is_taken_at_a_time_does_not_matter():
    one, other = (QuestionStream(_questions(10), seed=5) for _ in range(2))
    assert _flat(_ids(one, 3, 8)) == _flat(_ids(other, 4, 6))


def test_very_late_positions():
    stream = QuestionStream(_questions(7), seed=0, position=7 * 10**9)
    assert sorted(_flat(_ids(stream, 1, 7))) == [str(i) for i in range(7)]


def test_a_prepared_data_set_streams_like_a_list(tmp_path):
    rows = "".join(
        f'{{"id": "{i}", "question": "Question {i}?", "golden_answers": ["{i}"]}}\n'
        for i in range(20)
    )
    (tmp_path / "q.jsonl").write_text(rows)
    prepare_questions({"train": tmp_path / "q.jsonl"}, tmp_path / "data")
    source = open_questions(tmp_path / "data", "train")
    from_disk, listed = QuestionStream(source, seed=4), QuestionStream(_questions(20), seed=4)
    assert [from_disk.take(6) for _ in range(10)] == [listed.take(6) for _ in range(10)]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {"seed": 0}, "the source is empty"),
        (3, {"seed": -1}, "seed must be"),
        (3, {"seed": 2**32}, "seed must be"),
        (3, {"seed": 0, "position": -1}, "position must not be negative"),
    ],
)
def test_arguments_out_of_range(count, options, message):
    with pytest.raises(ValueError, match=message):
        QuestionStream(_questions(count), **options)


def test_nothing_cannot_be_taken():
    stream = QuestionStream(_questions(3), seed=0)
    with pytest.raises(ValueError, match="At least 1 question has to be taken, not 0"):
        stream.take(0)
    assert stream.position == 0
