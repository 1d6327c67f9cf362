"""Results of evaluations: what they say, what they are called, how they are shown."""

import json

import pytest
from evaluated import Searched, write_questions

from sr1_jax import evaluate
from sr1_jax.data.questions import read_questions
from sr1_jax.evaluation.scores import questions_sha256

# Results


def test_a_result_says_what_it_is_of(world):
    world.checkpoints(2)
    ((name, result),) = world.evaluate().items()
    sha256 = result["questions_sha256"]
    assert name == f"nq.search.step_2.greedy.questions_{sha256[:8]}.json"
    asked = read_questions(world.folder / "nq.jsonl")
    assert sha256 == questions_sha256(asked)
    told = {
        "questions": "nq", "count": 8, "method": "search", "policy": "step 2", "greedy": True,
        "samples": 1, "limit": 0, "settings_changed": {}, "em": 0.25,
    }  # fmt: skip
    assert {key: result[key] for key in told} == told
    assert result["em_standard_error"] == pytest.approx((0.25 * 0.75 / 8) ** 0.5)
    assert result["rollout/trajectories_per_second"] == 4.0
    rows = (world.workdir / "eval" / name.replace(".json", ".trajectories.jsonl")).read_text()
    assert len(rows.splitlines()) == 8
    assert world.engines == [(world.retriever, "search", True)] and world.asked == [(8, 1, 1)]


def test_no_evaluation_overwrites_another(world):
    """Neither by limit, decoding, samples, policy, method or settings, nor by another file of the
    same name."""
    world.checkpoints(2, 4)
    (world.folder / "b").mkdir()
    write_questions(world.folder / "b" / "nq.jsonl", 8, start=100)
    more = ("--config.retrieval.k1=1.5", "--config.rollout.passages=2")
    every = [
        (),
        ("--limit=5",),
        ("--limit=3",),
        ("--greedy=false",),
        ("--greedy=false", "--samples=2"),
        ("--step=2",),
        ("--config.rollout.max_searches=2",),
        ("--config.rollout.max_searches=3",),
        ("--config.protocol.search_template=search",),
        ("--config.environment.options.calc.url=a/b",),
        ("--config.environment.options.calc.url=a_b",),
        ("--config.retrieval.stemmer=none", *more, "--config.retrieval.b=0.1"),
        ("--config.retrieval.stemmer=none", *more, "--config.retrieval.b=0.2"),
        ("--greedy=false", "--config.rollout.temperature=0.5"),
        ("--greedy=false", "--config.seed=7"),
        (f"--questions={world.folder}/b/nq.jsonl",),
    ]  # fmt: skip
    for number, arguments in enumerate(every, start=1):
        assert len(world.evaluate(*arguments)) == number, arguments
    world.evaluate("--config.rollout.slots=16")  # settings of speed change no result
    names = set(world.evaluate("--config.rollout.temperature=0.5"))  # greedy: not used
    assert len(names) == len(every)
    for part in (
        ".limit_5.", ".sampled.samples_2.", ".step_2.", ".rollout.max_searches=2.",
        ".protocol.search_template=search.", ".settings_",
    ):  # fmt: skip
        assert sum(part in name for name in names) >= 1, part
    assert max(map(len, names)) < 160


def test_other_settings_than_the_runs_are_said(world, capsys):
    world.checkpoints(2)
    world.retriever = Searched("another-corpus")
    arguments = ("--config.rollout.max_searches=3", "--config.retrieval.k1=1.5")
    ((_, result),) = world.evaluate(*arguments, "--config.protocol.rag_template=rag").items()
    error = capsys.readouterr().err
    for said in (
        "These settings are not those of the run: ",
        "rollout.max_searches=3 (run: 1)",
        "retrieval.k1=1.5 (run: 0.9)",
        "data.corpus='another-' (run: 'corpus-1')",
    ):
        assert said in error
    assert "rag_template" not in error  # of another method
    assert result["settings_changed"]["rollout.max_searches"] == [1, 3]


def test_what_a_retriever_spent_is_told_at_the_end(world, capsys):
    world.checkpoints(2)
    world.retriever.told_at_end = lambda: "It cost 3."
    world.evaluate("--config.retrieval.web.max_requests=7")
    told = capsys.readouterr()
    assert told.out.endswith("It cost 3.\n") and told.err == ""


def test_the_runs_settings_are_no_news(world, capsys):
    world.checkpoints(2)
    world.evaluate("--config.rollout.slots=16", "--config.learner.clip=0.1")
    assert capsys.readouterr().err == ""


def test_without_a_run_the_name_has_the_settings(world):
    base = ("--base", f"--config.base.workdir={world.folder}/other")
    world.evaluate(*base)
    world.evaluate(*base, "--config.rollout.slots=16")
    world.evaluate(*base, "--config.rollout.max_searches=3")
    world.evaluate(*base, "--config.lora.path=x")
    world.retriever = Searched("another")
    names = list(world.evaluate(*base))
    assert len(names) == 4 and all(".base.greedy.questions_" in n for n in names)
    assert all(".settings_" in name for name in names)


def test_samples_of_a_question_are_no_questions(world):
    world.checkpoints(2)
    ((name, result),) = world.evaluate("--greedy=false", "--samples=5").items()
    assert ".sampled.samples_5." in name
    assert (result["count"], result["samples"], result["em"]) == (8, 5, 0.25)
    # Five equal samples tell as much as one.
    assert result["em_standard_error"] == pytest.approx((0.25 * 0.75 / 8) ** 0.5)


def test_rejection_keeps_the_correct_episodes_as_examples(world):
    world.checkpoints(2)
    arguments = ("--greedy=false", "--samples=5")
    ((name, result),) = world.evaluate(*arguments, method="rejection").items()
    assert name.startswith("nq.rejection.step_2.sampled.samples_5.")
    assert world.engines == [(world.retriever, "rejection", False)]
    # Every sample of the stand-in has the same ids.
    assert (result["examples"], result["repeated_examples"]) == (1, 9)
    kept = result["examples_by_question"]
    assert len(kept) == 8 and sum(kept.values()) == 1
    path = world.workdir / "eval" / name.replace(".json", ".examples.jsonl")
    (example,) = map(json.loads, path.read_text().splitlines())
    assert example == {
        "id": "nq:dev:0", "sample": 0, "answer": "Bo", "ids": [5, 6], "mask": [0, 1],
    }  # fmt: skip
    # The prompts of search are its own.
    ((name, _),) = (
        item for item in world.evaluate(
            *arguments, "--config.protocol.search_template=search", method="rejection"
        ).items() if item[0] != name
    )  # fmt: skip
    assert name.endswith(".protocol.search_template=search.json")


def test_a_prompt_that_reads_counts_where_it_is_used(world, refused):
    world.checkpoints(2)
    changed = "--config.protocol.reader_template=reader_examples_chatml"
    names = set(world.evaluate(changed))
    assert not any("reader" in name for name in names)
    (name,) = set(world.evaluate(changed, method="search_o1")) - names
    assert name.endswith(".protocol.reader_template=reader_examples_chatml.json")
    evaluate.main(world.argv("--config.protocol.reader_template=search"))  # reads nothing
    with pytest.raises(ValueError, match=r"protocol\.reader_template: .* has no \{query\}"):
        evaluate.main(world.argv("--config.protocol.reader_template=search", method="search_o1"))


def test_several_files_and_their_average(world, capsys):
    world.checkpoints(2)
    write_questions(world.folder / "one.jsonl", 1, "one")
    names = ("nq", "hp", "one")
    questions = ",".join(f"{{tmp}}/{name}.jsonl" for name in names)
    found = world.evaluate(questions=questions)
    assert {r["questions"]: r["em"] for r in found.values()} == {
        "nq": 0.25, "hp": 0.25, "one": 1.0, "nq+hp+one": 0.5,
    }  # fmt: skip
    (mean,) = (result for result in found.values() if "files" in result)
    assert (mean["count"], mean["files"]) == (13, ["nq", "hp", "one"])
    errors = [(0.25 * 0.75 / 8) ** 0.5, (0.25 * 0.75 / 4) ** 0.5, 0.0]
    assert mean["em_standard_error"] == pytest.approx(sum(e**2 for e in errors) ** 0.5 / 3)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    low, high = next(r for r in found.values() if r["questions"] == "nq")["intervals"]["em"]
    half = f"{(high - low) / 2:.3f}"
    assert any(line.split()[:4] == ["nq", "8", "0.250", half] for line in lines)
    assert any(line.split()[:4] == ["macro", "average", "13", "0.500"] for line in lines)
    assert "±: half the 95% interval of EM, drawn by question." in lines
    assert "answering 4 questions of hp by search …" in lines and "loading the policy …" in lines


def test_a_kill_loses_the_file_under_way_at_most(world):
    world.checkpoints(2)
    world.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        world.evaluate(questions="{tmp}/nq.jsonl,{tmp}/hp.jsonl")
    (result,) = world.results().values()
    assert result["questions"] == "nq"
    assert not list((world.workdir / "eval").glob("*.tmp"))


def test_one_table_has_all_results_on_the_same_questions(world, capsys):
    world.checkpoints(2)
    world.evaluate()
    world.evaluate("--limit=5")  # other questions
    world.evaluate("--greedy=false", "--samples=3")
    folder = world.workdir / "eval"
    (folder / "nq.old.json").write_text("{oops")
    (folder / "nq.older.json").write_text('{"em": 1.0}')  # without a hash: of what?
    capsys.readouterr()
    evaluate.main(world.argv("--config.rollout.max_searches=2"))
    out, err = capsys.readouterr()
    assert f"{folder}/nq.old.json is damaged" in err
    lines = out[out.index("Results on nq") :].splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith("search ")]
    assert sorted(" ".join(row[:6]) for row in rows) == [
        "search step 2 (1) greedy 8",
        "search step 2 greedy 8 0.250",
        "search step 2 sampled ×3 8",
    ]
    assert lines[-1] == "(1) rollout.max_searches=2 (run: 1)"
