"""The programs that evaluate and export: which policy they take, and what they refuse.

The policy and the engine are stand-ins here; tests/test_train_cli.py has whole runs."""

import shutil

import pytest
from evaluated import CONFIG

from sr1_jax import evaluate, export
from sr1_jax.evaluation import results
from sr1_jax.training.settings import RUN, default_config

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
        assert "is that of the checkpoint" in error and "leave lora.path='x' out" in error

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
        (
            ["--config.retrieval.missing=0.5", "--config.retrieval.noise.evaluation=1.0"],
            "retrieval.missing=0.5 excludes retrieval.noise",
        ),
        (["--questions={tmp}/none.jsonl"], "{tmp}/none.jsonl: no such file"),
        (["--questions={tmp}/nq.jsonl,{tmp}/bad.jsonl"], "{tmp}/bad.jsonl:1: malformed JSON"),
        (["--questions={tmp}/nq.jsonl,"], "there is nothing before or after a comma"),
        (["--questions={tmp}/nq.jsonl,{tmp}/a/nq.jsonl"], "has the questions of {tmp}/nq.jsonl"),
        (["--questions={tmp}/nq.jsonl,s3://b/x"], "--questions=s3://b/x: only paths of the file"),
        (["--corpus="], "--corpus is missing: search needs passages."),
        (["--method=google"], "--method=google: method must be one of search, direct"),
        (["--method=rag,search,rag"], "--method=rag,search,rag: rag is named twice."),
        (["--method=rag,direct", "--examples=x"], "--examples takes the episodes of one method"),
        (["--examples=s3://b/x"], "--examples=s3://b/x: only paths of the file system"),
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
