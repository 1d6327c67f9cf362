"""The programs that evaluate and export: what they refuse, what they write. The policy and the
engine are stand-ins here; tests/test_train_cli.py has whole runs."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from sr1_jax import cli, evaluate, export
from sr1_jax.data.questions import read_questions
from sr1_jax.evaluation import methods, results
from sr1_jax.evaluation.intervals import bootstrap, paired_macro_difference
from sr1_jax.evaluation.score_table import read_scores
from sr1_jax.evaluation.scores import questions_sha256
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import Reward
from sr1_jax.rewards.settings import REWARD
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.same_settings import as_json_values
from sr1_jax.training.settings import RUN, default_config

CONFIG = Path(__file__).parent / "training" / "tiny_config.py"


def write_questions(path, count, source="nq", start=0):
    rows = (
        {"id": f"{source}:dev:{i}", "question": f"Who {i}?", "golden_answers": ["Bo"]}
        for i in range(start, start + count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Searched:
    """Stands for a retriever."""

    def __init__(self, fingerprint="corpus-1"):
        self.fingerprint = fingerprint


class World:
    """Files, a run with checkpoints, and what the stand-ins were asked."""

    def __init__(self, folder, make_trajectory, tokenizer):
        self.folder, self.workdir = folder, folder / "run"
        self._make, self.tokenizer = make_trajectory, tokenizer
        self.loaded, self.engines, self.asked = [], [], []
        self.retriever = Searched()
        self.stop_at = self.kill_after = None
        self.finished, self.lucky = [], False
        write_questions(folder / "nq.jsonl", 8)
        write_questions(folder / "hp.jsonl", 4, "hp")
        (folder / "corpus.jsonl").write_text('{"id": "0", "contents": "A\\nB"}\n')

    def trained_policy(self, config, workdir, mesh, *, base=False, step=None, merge=True):
        self.loaded.append((base, step))
        return (
            nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
            self.tokenizer,
            f"step {step}" if step else "base",
        )

    def make_engine(self, policy, tokenizer, retriever, config, method, *, greedy, mesh):
        self.engines.append((retriever, method, greedy))
        return self

    def run(self, questions, seed, samples, params, finished, skip):
        """Every question whose number divides by 4 is answered, by rag every other one; with luck
        the last of several samples of the next one, too."""
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((len(questions), seed, samples))
        method = self.engines[-1][1]
        self.stats = {"seconds": 2.0, "episodes": len(questions) * samples}
        run = []
        for question in questions:
            number = int(question.id.rsplit(":", 1)[1])
            for sample in range(samples):
                if (question.id, sample) in skip:
                    continue
                if len(self.finished) == self.kill_after:
                    raise KeyboardInterrupt
                luck = self.lucky and sample == samples - 1
                right = number % (2 if method == "rag" else 4) <= luck
                trajectory = self._make(
                    question_id=question.id,
                    sample=sample,
                    answer="Bo" if right else None,
                    golden_answers=question.golden_answers,
                    passages=[] if method == "direct" else [[Passage("0", "Bo", "x", 1.0)]],
                )
                self.finished.append((method, question.id, sample))
                finished(trajectory, question)
                run.append(trajectory)
        return Reward(REWARD.defaults(), 9).score(run, run)

    def checkpoints(self, *steps, config=None, contents=None, scores=None):
        config = config or default_config_of(CONFIG)
        facts = {
            "config": RUN.without_free(as_json_values(config.to_dict())),
            "contents": contents or {"data.corpus": "corpus-1"},
            "position": 0,
        }
        with RunCheckpoints(self.workdir / "checkpoints", keep=5) as checkpoints:
            for step in steps:
                score = (scores or {}).get(step)
                checkpoints.save(step, {"x": jnp.zeros(1)}, facts, score=score)

    def argv(self, *arguments, questions="{tmp}/nq.jsonl", method="search"):
        argv = [
            f"--config={CONFIG}", "--workdir={tmp}/run", f"--questions={questions}",
            f"--method={method}", *arguments,
        ]  # fmt: skip
        if method != "direct":
            argv.append("--corpus={tmp}/corpus.jsonl")
        return ["evaluate", *(argument.format(tmp=self.folder) for argument in argv)]

    def evaluate(self, *arguments, **options):
        evaluate.main(self.argv(*arguments, **options))
        return self.results()

    def results(self):
        """Results by file name."""
        files = (self.workdir / "eval").glob("*.json")
        return {path.name: json.loads(path.read_text()) for path in sorted(files)}


def default_config_of(path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.get_config()


@pytest.fixture
def world(tmp_path, monkeypatch, make_trajectory, small_tokenizer):
    world = World(tmp_path, make_trajectory, small_tokenizer)
    monkeypatch.setattr(evaluate, "trained_policy", world.trained_policy)
    monkeypatch.setattr(evaluate, "check_base", lambda *arguments: None)
    monkeypatch.setattr(evaluate.methods, "make_engine", world.make_engine)
    monkeypatch.setattr(evaluate.task, "open_index", lambda *arguments: world.retriever)
    monkeypatch.setenv("COLUMNS", "80")
    return world


@pytest.fixture
def refused(world, monkeypatch, capsys):
    """Function of (program, argv) -> its one line on stderr; it must leave no trace."""
    monkeypatch.delenv("SR1_JAX_TRACEBACK", raising=False)

    def run(program, argv):
        before = sorted(world.folder.rglob("*"))
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(program.main)
        error = capsys.readouterr().err
        assert exit_info.value.code == 2, error
        assert error.startswith("error: ") and error.count("\n") == 1
        assert sorted(world.folder.rglob("*")) == before and world.loaded == []
        return error

    return run


# Which policy


@pytest.mark.parametrize("program", [evaluate, export], ids=["evaluate", "export"])
class TestWorkdir:
    """A mistyped workdir gave the weights that training starts from, and exit code 0."""

    def argv(self, world, program, *arguments):
        if program is evaluate:
            return world.argv(*arguments)
        argv = [f"--config={CONFIG}", "--workdir={tmp}/run", "--output={tmp}/out", *arguments]
        return ["export", *(argument.format(tmp=world.folder) for argument in argv)]

    def test_that_is_not_there(self, world, refused, program):
        error = refused(program, self.argv(world, program))
        assert f"--workdir={world.workdir}: there is no such folder. --base takes" in error

    def test_without_a_base_policy(self, world, refused, program):
        error = refused(program, self.argv(world, program, "--base"))
        assert f"--base: {world.workdir} holds no base policy; name one by base.path" in error

    @pytest.mark.parametrize("name", ["data/corpus.jsonl", "base/model.json", "runs/qa/x"])
    def test_that_holds_no_run(self, world, refused, program, name):
        (world.workdir / name).parent.mkdir(parents=True)
        (world.workdir / name).write_text("{}")
        error = refused(program, self.argv(world, program))
        assert f"--workdir={world.workdir}: no run was finished here" in error

    def test_whose_checkpoints_are_elsewhere(self, world, refused, program):
        world.workdir.mkdir()
        (world.workdir / "metrics.jsonl").write_text('{"step": 1}\n')
        (world.workdir / "result.json").write_text("{}")
        error = refused(program, self.argv(world, program))
        assert f"{world.workdir}/checkpoints holds no checkpoint. Is checkpoint.folder" in error

    def test_without_the_checkpoint_asked_for(self, world, refused, program):
        world.checkpoints(2, 4)
        error = refused(program, self.argv(world, program, "--step=3"))
        assert "--step=3:" in error and "no such checkpoint, only of 2, 4." in error
        error = refused(program, self.argv(world, program, "--step=4", "--base"))
        assert "--base and --step=4 exclude each other" in error

    def test_the_best_one(self, world, refused, program, monkeypatch):
        world.checkpoints(2, 4, 6, scores={2: 0.25, 4: 0.5})
        error = refused(program, self.argv(world, program, "--step=best", "--base"))
        assert "--base and --step=best exclude each other" in error
        error = refused(program, self.argv(world, program, "--step=worst"))
        assert "must be a number of steps, or best" in error
        monkeypatch.setattr(export, "trained_policy", world.trained_policy)
        monkeypatch.setattr(export, "save_pretrained", lambda *a, **k: None)
        program.main(self.argv(world, program, "--step=best"))
        assert world.loaded == [(False, 4)]

    def test_without_a_score_there_is_no_best_one(self, world, refused, program):
        world.checkpoints(2)
        error = refused(program, self.argv(world, program, "--step=best"))
        assert "--step=best: no checkpoint in" in error and "checkpoint.best" in error

    def test_with_other_adapters(self, world, refused, program):
        world.checkpoints(2)
        error = refused(program, self.argv(world, program, "--config.lora.rank=8"))
        assert "was trained with lora.rank=0, now it is 8" in error
        error = refused(program, self.argv(world, program, "--config.lora.path=x"))
        assert "was trained with lora.path='', now it is 'x'" in error

    def test_adapters_say_what_to_run(self, world, monkeypatch, program):
        monkeypatch.setattr(export, "trained_policy", world.trained_policy)
        monkeypatch.setattr(export, "save_pretrained", lambda *a, **k: None)
        program.main(self.argv(world, program, "--config.lora.path=x"))
        assert world.loaded == [(False, None)]

    @pytest.mark.parametrize(
        ("flags", "loads"),
        [([], (False, 4)), (["--step=2"], (False, 2)), (["--step=4"], (False, 4))],
    )
    def test_with_checkpoints(self, world, monkeypatch, program, flags, loads):
        world.checkpoints(2, 4)
        monkeypatch.setattr(export, "trained_policy", world.trained_policy)
        monkeypatch.setattr(export, "save_pretrained", lambda *a, **k: None)
        program.main(self.argv(world, program, *flags))
        assert world.loaded == [loads]

    def test_of_a_run_without_reinforcement_learning(self, world, monkeypatch, program):
        world.workdir.mkdir()
        (world.workdir / "result.json").write_text("{}")
        monkeypatch.setattr(export, "trained_policy", world.trained_policy)
        monkeypatch.setattr(export, "save_pretrained", lambda *a, **k: None)
        program.main(self.argv(world, program))
        assert world.loaded == [(False, None)]


def test_base_needs_no_workdir(world):
    found = world.evaluate("--base", f"--config.base.workdir={world.folder}/other")
    assert world.loaded == [(True, None)] and len(found) == 1


# What is refused besides


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit=-3"], "--limit must not be negative, not -3; 0 stands for all."),
        (["--samples=0"], "--samples must be at least 1, not 0."),
        (["--samples=4"], "--samples=4: greedy decoding gives the same every time; add --greedy"),
        (["--config.rollout.passages=0"], "rollout.passages must be at least 1, not 0."),
        (["--config.rollout.template=x"], "no setting rollout.template any more: use protocol."),
        (["--config.environment.options.calc.threads=0"], "environment.options.calc.threads must"),
        (["--questions={tmp}/none.jsonl"], "{tmp}/none.jsonl: no such file"),
        (["--questions={tmp}/nq.jsonl,{tmp}/bad.jsonl"], "{tmp}/bad.jsonl:1: malformed JSON"),
        (["--questions={tmp}/nq.jsonl,"], "there is nothing before or after a comma"),
        (["--questions={tmp}/nq.jsonl,{tmp}/a/nq.jsonl"], "has the questions of {tmp}/nq.jsonl"),
        (["--questions={tmp}/nq.jsonl,gs://b/x"], "--questions=gs://b/x: only paths of the file"),
        (["--corpus="], "--corpus is missing: search needs passages."),
        (["--method=google"], "--method=google: method must be one of search, direct"),
        (["--method=rag,search,rag"], "--method=rag,search,rag: rag is named twice."),
        (["--method=rag,direct", "--examples=x"], "--examples takes the episodes of one method"),
        (["--examples=gs://b/x"], "--examples=gs://b/x: only paths of the file system"),
        (["--judge=http://x/v1"], "--judge=http://x/v1: name the model to ask there by --judge_m"),
        (["--judge_model=m"], "--judge_model=m: --judge is missing, the address of its API."),
    ],
)
def test_evaluation_refuses(world, refused, arguments, message):
    world.checkpoints(2)
    (world.folder / "bad.jsonl").write_text("{oops\n")
    (world.folder / "a").mkdir()
    shutil.copy(world.folder / "nq.jsonl", world.folder / "a")
    argv = world.argv() + [argument.format(tmp=world.folder) for argument in arguments]
    assert message.format(tmp=world.folder) in refused(evaluate, argv)


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


# Killed, and started again


def test_a_restart_asks_no_question_twice(world, capsys):
    world.checkpoints(2)
    arguments = ("--greedy=false", "--samples=3")
    options = dict(questions="{tmp}/nq.jsonl,{tmp}/hp.jsonl", method="search,rag")
    world.evaluate(*arguments, **options)
    folder = world.workdir / "eval"
    want = contents(folder)
    unbroken, world.finished = world.finished, []
    shutil.rmtree(folder)
    for kill_after in (0, 7, 8, 24, 40, 55):  # within questions and at their ends
        world.kill_after = kill_after
        with pytest.raises(KeyboardInterrupt):
            world.evaluate(*arguments, **options)
    world.kill_after = None
    capsys.readouterr()
    world.evaluate(*arguments, **options)
    assert "answers are there from an earlier start." in capsys.readouterr().err
    assert sorted(world.finished) == sorted(unbroken)
    assert contents(folder) == want
    assert not [path for path in folder.iterdir() if re.search("partial|under_way", path.name)]
    # What is over is asked again.
    world.evaluate(*arguments, **options)
    assert len(world.finished) == 2 * len(unbroken) and contents(folder) == want


def contents(folder):
    """All results less seconds and speed; what was taken up counts as speed."""

    def without_speed(data):
        if isinstance(data, dict):
            return {
                key: without_speed(value)
                for key, value in data.items()
                if key != "seconds" and not key.startswith("rollout/")
            }
        return data

    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            found[path.name] = without_speed(json.loads(path.read_text()))
        else:
            found[path.name] = path.read_bytes()
    return found


def test_other_weights_begin_anew(world, capsys, monkeypatch):
    world.checkpoints(2)
    world.kill_after = 5
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    world.kill_after, asked = None, len(world.finished)
    monkeypatch.setattr(evaluate, "params_fingerprint", lambda params: "other")
    world.evaluate()
    assert "answers that were given with other weights: they are not taken up." in (
        capsys.readouterr().err
    )
    assert len(world.finished) == asked + 8


def test_golden_answers_are_those_of_today(world):
    world.checkpoints(2)
    world.kill_after = 5
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    world.kill_after = None
    path = world.folder / "nq.jsonl"
    path.write_text(path.read_text().replace('"Bo"', '"Al"'))
    ((_, result),) = world.evaluate().items()
    assert result["em"] == 0.0


def test_tables_of_hostile_names_are_harmless(world, capsys):
    world.checkpoints(2)
    name = "nq\x1b]0;x\x07[red].jsonl"
    shutil.copy(world.folder / "nq.jsonl", world.folder / name)
    world.evaluate(questions=f"{{tmp}}/{name}")
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "Results on nq]0;x[red]" in out


def test_tools_without_search_need_no_passages(world):
    world.checkpoints(2)
    evaluate.main([*world.argv("--config.environment.tools=()"), "--corpus="])
    assert world.engines == [(None, "search", True)]


def test_settings_of_speed_exist():
    known = dict(RUN.walk())
    for key in (*results.SPEED, *results._SAMPLING, *results._WEIGHTS):
        assert key in known
    told = results.answering_settings(default_config().to_dict(), "search", greedy=False)
    assert "rollout.max_searches" in told and "rollout.slots" not in told
