"""Corpora without the passages that answer questions."""

import gzip
import itertools
import json
import random

import pytest

from sr1_jax import withhold as program
from sr1_jax.data.questions import Question
from sr1_jax.evaluation.withheld import Gold, withhold
from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.corpus import read_corpus
from sr1_jax.retrieval.words import QueryWords
from sr1_jax.rewards.retrieval import holds_any, open_answers, plain_title


def question(text, *answers, number=0, titles=()):
    return Question(f"q{number}", text, tuple(answers), {"supporting_titles": list(titles)})


BORDER = question("Which river forms the border of Aland and Borduria?", "the Long River")
FILM = question("When was the film Green Hills released?", "1997", number=1)
BOTH = question("Are Ada and Bob both poets?", "yes", number=2, titles=["Ada", "Bob (poet)"])


@pytest.mark.parametrize(
    ("title", "text", "told"),
    [
        ("Aland", "Its border with Borduria is the Long River.", True),
        ("Aland", "Its border with Borduria is The Long  River, as ever.", True),
        ("Aland", "It has a border with Borduria along a river.", False),
        ("Song", "A long river of tears.", False),  # one stem beside the answer's is too few
        ("Border songs", "A long river of Aland.", True),
        ("Aland", "Borders in Borduria: the long riverbank.", False),  # whole words
        ("Green Hills", "A film of 1997.", True),
        ("1997", "A year without films.", False),
        ("Yes", "Are Ada and Bob both poets? Yes.", False),
    ],
)
def test_what_tells_an_answer(title, text, told):
    assert Gold([BORDER, FILM, BOTH]).tells(title, text) == told


def test_supporting_titles():
    gold = Gold([BORDER, BOTH])
    assert gold.has_title('"ADA"') and gold.has_title("Bob (poet)")
    assert not gold.has_title("Bob")


def test_every_passage_and_question_by_themselves():
    """Against the definition, pair by pair, on random texts of few words."""
    chance = random.Random(0)
    words = "red blue green old new river hill king queen song".split()

    def text(count):
        return " ".join(chance.choice(words) for _ in range(count))

    questions = [question(text(4), text(1), text(2), number=i) for i in range(12)]
    gold, split = Gold(questions), QueryWords("english", "en").split

    def told_by(title, text, question):
        for answer in open_answers(question):
            asked = set(split(question.question)) - set(split(answer))
            shared = asked & set(split(f"{title} {text}"))
            held = holds_any(Passage("", title, text, 0.0), [answer])
            if held and len(shared) >= min(2, len(asked)):
                return True
        return False

    found = []
    for _ in range(300):
        passage = text(1), text(chance.randint(1, 5))
        found.append(any(told_by(*passage, q) for q in questions))
        assert gold.tells(*passage) == found[-1]
    assert 30 < sum(found) < 270


@pytest.fixture
def files(tmp_path):
    passages = [
        ("a", "Aland", "Its border with Borduria is the Long River."),
        ("b", "Ada", "A poet."),
        ("c", "Weather", "It rains."),
    ]
    with open(tmp_path / "corpus.jsonl", "w") as file:
        for id, title, text in passages:
            file.write(json.dumps({"id": id, "title": title, "text": text}) + "\n")
    with open(tmp_path / "questions.jsonl", "w") as file:
        for q in (BORDER, FILM, BOTH):
            row = {"id": q.id, "question": q.question, "golden_answers": list(q.golden_answers)}
            file.write(json.dumps(row | {"metadata": q.metadata}) + "\n")
    return tmp_path


def test_the_program(files, capsys):
    arguments = [
        "withhold", f"--corpus={files / 'corpus.jsonl'}",
        f"--questions={files / 'questions.jsonl'}",
        f"--out={files / 'rest.jsonl.gz'}", f"--report={files / 'report.json'}",
    ]  # fmt: skip
    program.main(arguments)
    assert list(read_corpus(files / "rest.jsonl.gz")) == [("c", "Weather", "It rains.")]
    with gzip.open(files / "rest.jsonl.gz", "rt") as file:
        assert [*json.loads(next(file))] == ["id", "title", "text"]
    said = capsys.readouterr().out
    assert "3 passages - 1 of supporting titles - 1 that hold an answer = 1" in said
    report = json.loads((files / "report.json").read_text())
    assert (report["passages"], report["by_title"], report["by_answer"]) == (3, 1, 1)
    with pytest.raises(ValueError, match="is there already"):
        program.main(arguments)


def test_refused(files):
    corpus = files / "corpus.jsonl"
    with pytest.raises(ValueError, match=r"name a \.jsonl"):
        withhold(corpus, [BORDER], files / "rest.txt")
    with pytest.raises(ValueError, match="none would be left"):
        withhold(
            corpus, [question("Weather?", "rains", titles=["Ada", "Aland"])], files / "o.jsonl"
        )
    assert not (files / "o.jsonl").exists()


def test_titles_are_compared_as_metrics_compare_them():
    spellings = ["Ada", '"Ada"', " ada "]
    for one, other in itertools.product(spellings, repeat=2):
        assert Gold([question("Who?", "x", titles=[one])]).has_title(other)
        assert plain_title(one) == plain_title(other)
