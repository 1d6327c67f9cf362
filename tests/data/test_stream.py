"""The stream of question batches."""

from itertools import islice

import pytest

from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import question_batches


def _questions(count):
    return [Question(str(i), f"Question {i}?", (str(i),)) for i in range(count)]


def _ids(batches, count):
    return [[question.id for question in batch] for batch in islice(batches, count)]


def _flat(batches):
    return [question_id for batch in batches for question_id in batch]


@pytest.mark.parametrize(("count", "batch_size"), [(12, 3), (7, 3), (3, 8), (1, 4), (5, 5), (9, 1)])
def test_every_question_once_an_epoch(count, batch_size):
    epochs = 6
    batches = _ids(
        question_batches(_questions(count), batch_size, seed=3), -(-epochs * count // batch_size)
    )
    assert {len(batch) for batch in batches} == {batch_size}
    stream = _flat(batches)
    for epoch in range(epochs):
        chunk = stream[epoch * count : (epoch + 1) * count]
        assert sorted(chunk, key=int) == [str(i) for i in range(count)]


def test_batches_are_lists_of_the_questions_themselves():
    questions = _questions(4)
    batch = next(question_batches(questions, 3, seed=0))
    assert type(batch) is list
    assert all(questions[int(question.id)] is question for question in batch)


def test_epochs_differ():
    epochs = _ids(question_batches(_questions(50), 50, seed=0), 20)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert all(epoch != sorted(epoch, key=int) for epoch in epochs)


def test_seed_decides_the_order():
    def stream(seed):
        return _ids(question_batches(_questions(50), 50, seed=seed), 5)

    assert stream(1) == stream(1)
    # Neighbouring seeds share no epoch, not even shifted by one.
    assert not {tuple(epoch) for epoch in stream(1)} & {tuple(epoch) for epoch in stream(2)}


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (3, 8)])
def test_resuming_continues_exactly(count, batch_size):
    questions = _questions(count)
    whole = _ids(question_batches(questions, batch_size, seed=5), 8)
    for step in range(8):
        resumed = question_batches(questions, batch_size, seed=5, start_step=step)
        assert _ids(resumed, 8 - step) == whole[step:]


def test_very_late_steps():
    batches = question_batches(_questions(7), 1, seed=0, start_step=7 * 10**9)
    assert sorted(_flat(_ids(batches, 7))) == [str(i) for i in range(7)]


def test_a_prepared_data_set_streams_like_a_list(tmp_path):
    rows = "".join(
        f'{{"id": "{i}", "question": "Question {i}?", "golden_answers": ["{i}"]}}\n'
        for i in range(20)
    )
    (tmp_path / "q.jsonl").write_text(rows)
    prepare_questions({"train": tmp_path / "q.jsonl"}, tmp_path / "data")
    source = open_questions(tmp_path / "data", "train")
    from_disk = islice(question_batches(source, 6, seed=4), 10)
    assert list(from_disk) == list(islice(question_batches(_questions(20), 6, seed=4), 10))


@pytest.mark.parametrize(
    ("count", "batch_size", "options", "message"),
    [
        (0, 1, {"seed": 0}, "the source is empty"),
        (3, 0, {"seed": 0}, "batch_size must be at least 1"),
        (3, 1, {"seed": -1}, "seed must be"),
        (3, 1, {"seed": 2**32}, "seed must be"),
        (3, 1, {"seed": 0, "start_step": -1}, "start_step must not be negative"),
    ],
)
def test_arguments_out_of_range(count, batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        question_batches(_questions(count), batch_size, **options)
