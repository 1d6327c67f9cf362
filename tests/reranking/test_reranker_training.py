"""Training of a reranker: examples, the loss, a run from questions to a folder."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_encoders import write_bert

from sr1_jax import train_reranker as program
from sr1_jax.data.questions import as_question
from sr1_jax.models.cross_encoder_folder import load_cross_encoder, start_cross_encoder
from sr1_jax.reranking import examples as ex
from sr1_jax.reranking.trainer import RerankerTrainer, list_loss
from sr1_jax.retrieval import Passage, open_retriever
from sr1_jax.sharding import make_mesh
from sr1_jax.training.settings import default_config


def question(text="who wrote hamlet", answers=("Shakespeare",), **metadata):
    return as_question(
        {"id": f"t:dev:{text}", "question": text, "golden_answers": answers, "metadata": metadata}
    )


def passages(*texts, title="T"):
    return [Passage(str(i), title, text, 0.0) for i, text in enumerate(texts)]


FOUND = passages("by Shakespeare", "a dog", "shakespeare's cat", "SHAKESPEARE.", "a cat", "t")


def test_passages_that_hold_an_answer_are_good():
    (example,), left_out = ex.make_examples([question()], [FOUND], 3)
    # "shakespeare's" normalises to another word.
    assert [p.id for p in example.good] == ["0", "3"]
    assert [p.id for p in example.bad] == ["1", "2", "4", "5"]
    assert not left_out


def test_those_of_a_supporting_page_are_better():
    titled = [*FOUND, Passage("6", '"Hamlet"', "William Shakespeare", 0.0)]
    titled.append(Passage("7", "Hamlet", "a dog", 0.0))
    asked = question(supporting_titles=["hamlet"])
    (example,), _ = ex.make_examples([asked], [titled], 3)
    assert [p.id for p in example.good] == ["6"]
    assert [p.id for p in example.bad] == ["1", "2", "4", "5"]  # of that page none is bad


def test_what_teaches_nothing_is_counted_by_reason():
    asked = [question(answers=["yes"]), question(answers=["Marlowe"]), question()]
    made, left_out = ex.make_examples(asked, [FOUND, FOUND, FOUND[:2]], 3)
    assert made == [] and left_out == {ex.CLOSED: 1, ex.NOT_FOUND: 1, ex.TOO_FEW: 1}


def test_lists_are_drawn_by_the_seed():
    made = [
        ex.Example(f"q{n}", tuple(passages("good", "fine")), tuple(passages(*map(str, range(9)))))
        for n in range(7)
    ]
    options = {"batch": 2, "candidates": 4, "epochs": 3}
    drawn = list(ex.draw_lists(made, seed=0, **options))
    assert len(drawn) == ex.batches_in(7, 2, 3) == 10
    assert drawn == list(ex.draw_lists(made, seed=0, **options))
    assert drawn != list(ex.draw_lists(made, seed=1, **options))
    asked = [text for batch in drawn for text in batch.questions]
    assert all(sorted(asked[i : i + 7]) == sorted(q.question for q in made) for i in (0, 7))
    for batch in drawn:
        for good, *bad in batch.passages:
            assert good.text in ("good", "fine")
            assert len({p.id for p in bad}) == 3 and all(p.text.isdigit() for p in bad)
    assert {batch.passages[0][0].text for batch in drawn} == {"good", "fine"}


def test_recall_by_hand():
    asked = [question(), question(answers=["dog"]), question(answers=["no"])]
    found = [FOUND[1:], FOUND, FOUND]  # ranks 3 and 2; yes or no is left out
    assert ex.answer_recall(asked, found, (1, 2, 3, 9)) == [0, 0.5, 1, 1]
    assert math.isnan(ex.answer_recall(asked[2:], found[2:], (1,))[0])


def test_the_loss_is_cross_entropy():
    scores = np.random.default_rng(0).normal(size=(3, 4))
    scores[0, 0] = 9
    expected = np.mean([-math.log(math.exp(s[0]) / sum(map(math.exp, s))) for s in scores])
    loss, accuracy = list_loss(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(scores.argmax(1) == 0), rtol=1e-6)
    assert list_loss(jnp.zeros((2, 3)))[1] == 0  # nobody leads a tie
    # Its gradient is that of softmax: shares less one for the first.
    gradient = jax.grad(lambda s: list_loss(s)[0])(jnp.asarray(scores, jnp.float32))
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(gradient, (shares - np.eye(4)[0]) / 3, atol=1e-6)


ANSWERS = "cat dog paris hamlet".split()


def lists_of(count):
    """Of each question the good passage repeats its word; a model has to compare the two."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        word, *others = rng.permutation(ANSWERS)
        rows.append((f"who {word}", passages(f"the {word}", *(f"the {other}" for other in others))))
    return ex.Lists([text for text, _ in rows], [found for _, found in rows])


def test_it_learns_and_devices_change_nothing(tmp_path):
    folder = write_bert(tmp_path / "m")
    losses = {}
    for devices in (1, 8):
        model = start_cross_encoder(folder, seed=0)
        mesh = make_mesh(devices=jax.devices()[:devices])
        trainer = RerankerTrainer(model, mesh, steps=60, learning_rate=3e-3)
        steps = 60 if devices == 1 else 3
        losses[devices] = [trainer.step(lists_of(8)) for _ in range(steps)]
    np.testing.assert_allclose(
        [step.loss for step in losses[8]], [step.loss for step in losses[1][:3]], rtol=1e-4
    )
    assert losses[1][0].loss == pytest.approx(math.log(4), abs=0.3)
    assert losses[1][-1].loss < 0.3 * losses[1][0].loss and losses[1][-1].accuracy == 1
    with pytest.raises(ValueError, match="cannot be shared evenly by 8 devices"):
        trainer.step(lists_of(3))
    long = lists_of(8)._replace(questions=["cat " * 30] * 8)
    with pytest.raises(ValueError, match=r"leaves no room for a passage in --max_tokens=32"):
        trainer.step(long)


@pytest.fixture
def files(tmp_path):
    """Questions that name a word, and a corpus in which each word has a good and bad passages."""
    words = [f"{word} {n}" for word in ANSWERS for n in range(10, 16)]
    # By words all four fit alike, so that the good one, which is the last, is found last.
    ends = ("bark", "bark", "bark", "running")
    corpus = [f"who {word} wrote the {word} : {end}" for word in words for end in ends]
    rows = ({"id": str(i), "contents": f"title\n{text}"} for i, text in enumerate(corpus))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, some in (("train", words[:16]), ("dev", words[16:])):
        asked = (
            {"id": f"{name}:x:{i}", "question": f"who wrote {w}", "golden_answers": ["running"]}
            for i, w in enumerate(some)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    write_bert(tmp_path / "m")
    return tmp_path


def arguments(folder, output="out", **more):
    given = {"model": "m", "questions": "train.jsonl", "corpus": "corpus.jsonl"}
    given |= {"dev": "dev.jsonl", "output": output, "report": f"{output}.json"}
    paths = [f"--{name}={folder / file}" for name, file in given.items() if name not in more]
    options = {"batch": 8, "candidates": 3, "depth": 8, "epochs": 6, "learning_rate": 1e-3}
    options |= {"max_tokens": 32} | more
    return ["train_reranker", *paths, *(f"--{name}={value}" for name, value in options.items())]


def test_from_questions_to_a_folder(files, capsys):
    program.main(arguments(files))
    report = json.loads((files / "out.json").read_text())
    assert len(report["steps"]) == 12 and report["questions"] == 16
    assert report["steps"][-1]["loss"] < report["steps"][0]["loss"]
    shown = capsys.readouterr().out
    assert "16 of 16 questions teach" in shown and "retrieval.rerank.model=" in shown
    # What is printed is what the settings then find.
    config = default_config().retrieval
    config.rerank.update({"model": str(files / "out"), "depth": 8, "max_tokens": 32})
    retriever = open_retriever(config, files / "corpus.jsonl")
    asked = [json.loads(line) for line in (files / "dev.jsonl").read_text().splitlines()]
    found = retriever.search([row["question"] for row in asked], 10)
    again = ex.answer_recall([as_question(row) for row in asked], found, (1, 2, 3, 10))
    assert report["recall"]["dev"]["trained"] == again
    program.main(arguments(files, "again"))
    one, same = (load_cross_encoder(files / name).params for name in ("out", "again"))
    jax.tree.map(np.testing.assert_array_equal, one, same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 9}, "--candidates=9 passages a list cannot be drawn of --depth=8"),
        ({"batch": 3}, "--batch=3 must be a multiple of the 8 devices"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"learning_rate": 0}, "--learning_rate must be above 0"),
        ({"max_tokens": 99}, "max_tokens=99 exceeds the 32 positions"),
        ({"corpus": ""}, "--corpus is missing"),
        ({"batch": 800}, "16 of 16 questions teach anything .*too few for --batch=800"),
        ({"output": "/"}, "/ exists and is not empty"),
    ],
)
def test_what_cannot_be_is_refused(files, changes, message):
    with pytest.raises(ValueError, match=message):
        program.main(arguments(files, **changes))
    assert not (files / "out").exists()


def test_development_files_of_one_name_are_told_apart_or_refused(files):
    dev = f"{files}/dev.jsonl,{files}/dev.jsonl"
    with pytest.raises(ValueError, match="--dev has two files called dev"):
        program.main(arguments(files, dev=dev))


def test_development_questions_are_not_trained_on(files):
    with pytest.raises(ValueError, match="8 questions of dev are among --questions, such as dev:x"):
        program.main(arguments(files, questions=f"{files}/train.jsonl,{files}/dev.jsonl"))
