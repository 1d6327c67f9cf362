"""Several methods, sets and samples in one evaluation, and a judge."""

import json

import pytest
from evaluated import write_questions

from sr1_jax import evaluate
from sr1_jax.evaluation import methods
from sr1_jax.evaluation.intervals import bootstrap, paired_macro_difference
from sr1_jax.evaluation.score_table import read_scores

# Several methods, samples, a judge


def test_methods_and_sets_in_one_call(world, capsys):
    world.checkpoints(2)
    found = world.evaluate(questions="{tmp}/nq.jsonl,{tmp}/hp.jsonl", method="search,rag,direct")
    # The weights are loaded once, the index is opened once, and each method has an engine.
    assert len(world.loaded) == 1
    assert world.engines == [
        (world.retriever, "search", True), (world.retriever, "rag", True), (None, "direct", True),
    ]  # fmt: skip
    of_sets = {(r["method"], r["questions"]): r["em"] for r in found.values() if "method" in r}
    tables = [r for r in found.values() if "methods" in r]
    assert of_sets.pop(("search", "nq+hp")) == 0.25 and len(of_sets) == 8 and len(tables) == 1
    (table,) = tables
    assert table["em"]["rag"]["macro average"]["mean"] == 0.5
    assert table["em"]["rag"]["nq"]["mean"] == of_sets["rag", "nq"] == 0.5
    names = {name.removesuffix(".json") for name in found}
    assert {n for row in table["results"].values() for n in row.values()} < names
    # Differences are those of the scores beside the results.
    values = {
        method: [
            read_scores(world.workdir / "eval" / f"{name}.scores.npz").values("em")
            for name in table["results"][method].values()
        ]
        for method in ("search", "rag", "direct")
    }
    for difference in table["differences"]:
        want = paired_macro_difference(values["search"], values[difference["to"]])
        assert (difference["em"], *difference["interval"]) == want
    assert [d["to"] for d in table["differences"]] == ["rag", "direct"]
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-3] == "Differences in exact match, on average over the sets:"
    assert lines[-2].startswith("search less rag: -0.250 [-0.")
    assert lines[-1] == "search less direct: +0.000 [+0.000, +0.000], not resolved"
    heading = next(line for line in lines if line.startswith("method"))
    assert heading.split() == ["method", "nq", "hp", "average"]
    (md,) = (world.workdir / "eval").glob("table.*.md")
    assert md.with_suffix(".json").name in found
    text = md.read_text()
    assert "| method | nq | hp | macro average |" in text
    interval = table["em"]["rag"]["nq"]["interval"]
    assert f"| rag | 0.500 [{interval[0]:.3f}, {interval[1]:.3f}] |" in text
    assert "search less rag: -0.250" in text


def test_several_methods_on_one_set(world, capsys):
    world.checkpoints(2)
    found = world.evaluate(method="search,rag")
    (table,) = (r for r in found.values() if "methods" in r)
    assert list(table["em"]["rag"]) == ["nq"] and len(found) == 3
    out = capsys.readouterr().out
    assert "Differences in exact match, on nq:\nsearch less rag: -0.250" in out


def test_no_table_overwrites_another(world):
    world.checkpoints(2, 4)
    (world.folder / "b").mkdir()
    write_questions(world.folder / "b" / "nq.jsonl", 8, start=100)
    both = "{tmp}/nq.jsonl,{tmp}/hp.jsonl"
    every = [
        ((), both), (("--limit=3",), both), (("--step=2",), both), (("--greedy=false",), both),
        (("--greedy=false", "--samples=2"), both), (("--config.rollout.passages=2",), both),
        ((), "{tmp}/b/nq.jsonl,{tmp}/hp.jsonl"), ((), "{tmp}/b/nq.jsonl,{tmp}/nq.jsonl"),
    ]  # fmt: skip
    for number, (arguments, questions) in enumerate(every, start=1):
        found = world.evaluate(*arguments, questions=questions, method="search,rag")
        assert sum(name.startswith("table.") for name in found) == number, arguments
    world.evaluate(questions=both, method="search,rag")
    assert len(list((world.workdir / "eval").glob("table.*.md"))) == len(every)


def test_the_table_of_seven_sets_and_eight_methods_fits_80_columns(world, monkeypatch, capsys):
    names = "nq triviaqa popqa hotpotqa 2wikimultihopqa musique bamboogle".split()
    for name in names:
        write_questions(world.folder / f"{name}.jsonl", 4, name)
    for method in ("cot", "ircot", "search_o1", "sft", "r1"):
        row = methods.METHODS["direct"]._replace(template="compact_direct")
        monkeypatch.setitem(methods.METHODS, method, row)
    monkeypatch.setattr(methods, "templates", lambda config: dict.fromkeys(
        methods.METHODS, "compact_direct"
    ))  # fmt: skip
    world.checkpoints(2)
    questions = ",".join(f"{{tmp}}/{name}.jsonl" for name in names)
    every = "search,direct,cot,rag,ircot,search_o1,sft,r1"
    world.evaluate(questions=questions, method=every)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    # Nothing is left out: each set has its column, each cell its interval below.
    for part in ("2wikimult", "ihopqa", "bamboogle", "macro", "search_o1"):
        assert part in text
    row = next(line for line in lines if line.startswith("search_o1"))
    assert len(row.split()) == 9
    below = lines[lines.index(row) + 1].split()
    assert len(below) == 8 and all(cell.startswith("±") for cell in below)


def test_best_and_vote_of_several_samples(world, capsys):
    world.checkpoints(2)
    world.lucky = True
    ((_, result),) = world.evaluate("--greedy=false", "--samples=5").items()
    # Of two questions all five are right, of two more one.
    assert result["em"] == pytest.approx((2 * 5 + 2) / 40)
    assert result["pass@5"] == 0.5
    assert result["pass@2"] == pytest.approx((2 + 2 * 2 / 5) / 8)
    # Who gives no answer has no vote.
    assert result["majority@5"] == 0.5
    assert {"em", "pass@2", "pass@4", "pass@5", "majority@5"} <= set(result["intervals"])
    assert "maj@5 pass@5" in capsys.readouterr().out


def test_every_score_has_its_interval_and_stands_beside_the_trajectory(world):
    world.checkpoints(2)
    rows = [
        {"id": f"s:dev:{n}", "question": f"Who {n}?", "golden_answers": ["Bo"],
         "metadata": {"supporting_titles": titles}}
        for n, titles in enumerate((["Bo"], ["Bo", "Al"], ["Al"], []))
    ]  # fmt: skip
    (world.folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((name, result),) = world.evaluate(questions="{tmp}/s.jsonl").items()
    assert result["gold_recall"] == pytest.approx(0.5) and result["answer_retrieved"] == 1.0
    path = world.workdir / "eval" / name
    table = read_scores(path.with_name(name.replace(".json", ".scores.npz")))
    for key, ends in result["intervals"].items():
        assert tuple(ends) == pytest.approx(bootstrap(table.values(key))[1:])
        assert ends[0] <= result[key] <= ends[1]
    lines = path.with_name(name.replace(".json", ".trajectories.jsonl")).read_text().splitlines()
    recalls = [json.loads(line)["scores"].get("gold_recall") for line in lines]
    assert recalls == [1.0, 0.5, 0.0, None]


class StandInJudge:
    """Finds every question right whose number is odd."""

    def __init__(self):
        self.asked = []

    def scores(self, items):
        self.asked += items
        return [int(item.question[4:-1]) % 8 == 0 for item in items]


def test_a_judge(world, monkeypatch):
    world.checkpoints(2)
    judge = StandInJudge()
    monkeypatch.setattr(evaluate, "_make_judge", lambda options: judge)
    flags = ("--judge=http://localhost:1/v1", "--judge_model=org/judge 7B")
    ((name, result),) = world.evaluate(*flags).items()
    assert ".judge_org-judge-7B." in name and result["judge_model"] == "org/judge 7B"
    assert (result["em"], result["judge"]) == (0.25, 0.125)
    assert [(item.prediction, item.golden_answers) for item in judge.asked] == [("Bo", ("Bo",))] * 2
    world.evaluate(*flags)
    assert len(judge.asked) == 2  # no pair is judged twice
    assert len(world.evaluate()) == 2  # and no result without a judge overwrites it


def test_a_judge_that_fails_costs_no_answer(world, monkeypatch):
    world.checkpoints(2)
    judge = StandInJudge()
    monkeypatch.setattr(evaluate, "_make_judge", lambda options: judge)
    monkeypatch.setattr(judge, "scores", lambda items: (_ for _ in ()).throw(RuntimeError("gone")))
    flags = ("--judge=http://localhost:1/v1", "--judge_model=m")
    with pytest.raises(RuntimeError, match="gone"):
        world.evaluate(*flags)
    assert len(world.finished) == 8 and world.results() == {}
    judge.scores = StandInJudge().scores
    ((_, result),) = world.evaluate(*flags).items()
    assert len(world.finished) == 8 and result["judge"] == 0.125


def test_correct_episodes_are_written_as_examples(world, capsys):
    world.checkpoints(2)
    path = world.folder / "out" / "examples.jsonl"
    arguments = ("--greedy=false", "--samples=2", f"--examples={path}")
    world.evaluate(*arguments, questions="{tmp}/nq.jsonl,{tmp}/hp.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # All stand-ins of a set write the same tokens, and equal ones teach nothing new.
    assert [row["id"] for row in rows] == ["nq:dev:0", "hp:dev:0"]
    assert all((row["ids"], row["mask"]) == ([5, 6], [0, 1]) for row in rows)
    assert f"{path} has 2 correct episodes." in capsys.readouterr().err
