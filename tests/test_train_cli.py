"""The programs that train and evaluate: bad input in one line, and one whole run."""

import gc
import importlib.util
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_checkpoints
from flax import nnx

from sr1_jax import cli, compare, evaluate, export, plan, train
from sr1_jax.models import load_pretrained
from sr1_jax.sharding import make_mesh
from sr1_jax.training import base, loop
from sr1_jax.training.policies import starting_policy, trained_policy

CONFIG = Path(__file__).parent / "training" / "tiny_config.py"
FILES = [
    "--config.data.world_people=0",
    "--config.data.questions={tmp}/questions.jsonl",
    "--config.data.corpus={tmp}/corpus.jsonl",
    "--config.base.path={tmp}/model",
    "--config.warm_start.phases=()",
]
QUESTION = '{"id": "q:0", "question": "Where?", "golden_answers": ["Bo"]}\n'
PASSAGE = '{"id": "0", "contents": "Ann\\nAnn was born in Bo."}\n'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function of (program, arguments) -> what it printed to stderr as it failed with code 2.

    `{tmp}` in an argument is the folder of the test. What the program left in its workdir must
    be whole.
    """
    monkeypatch.delenv("SR1_JAX_TRACEBACK", raising=False)

    def run(program, *arguments):
        argv = ["program", *(argument.format(tmp=tmp_path) for argument in arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(program.main)
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1 and error.endswith("\n")
        workdir = tmp_path / "run"
        if workdir.exists():
            assert {path.name for path in workdir.iterdir()} <= {"data", "base", ".lock"}
            assert not [p for p in workdir.rglob("*") if p.name.startswith((".world", "tmp"))]
            assert not list(workdir.rglob("*.tmp"))
        return error.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """A small folder of weights in {tmp}/model, the --config.base.path of FILES."""
    (tmp_path / "model").mkdir()
    small_checkpoints.write_folder(tmp_path / "model", small_checkpoints.train_backend())


def start(*arguments, config=CONFIG):
    return [f"--config={config}", "--workdir={tmp}/run", *arguments]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={tmp}/run"], "--config is missing."),
        ([f"--config={CONFIG}"], "--workdir is missing."),
        (start("--config.nonsense=1"), "nonsense"),
        (start("--config.learner.nonsense=1"), "nonsense"),
        (start("--nonsense=1"), "nonsense"),
        (start("--config.steps=many"), "many"),
        (start("--config.learner.clip=wide"), "wide"),
        (start(config="{tmp}/none.py"), "{tmp}/none.py"),
        (start("steps=3"), "unexpected argument 'steps=3'; flags are --name=value."),
        (
            start("--config.base.path=model"),
            "model",
        ),
        (
            start("--config.protocol.template_path={tmp}/none.txt"),
            "protocol.template_path: {tmp}/none.txt is not a file.",
        ),
        (start("--config.method=google"), "method must be one of search, direct, cot, rag,"),
        (start("--processes=2"), "--processes and --process need --coordinator=HOST:PORT"),
        (start("--coordinator=me"), "--coordinator must be HOST:PORT, not 'me'."),
        (
            start("--config.learner.algorithm=grpo", "--config.samples=1", "--config.questions=8"),
            "compares the samples of a question: samples must be at least 2, not 1.",
        ),
        (
            start("--config.learner.micro_batch=3"),
            "A mini-batch of 8 trajectories does not divide into micro-batches of "
            "learner.micro_batch=3.",
        ),
        (
            start("--config.learner.micro_batch=4"),
            "learner.micro_batch=4 does not divide over the 8 devices of mesh axes data and fsdp.",
        ),
        (start("--config.rollout.slots=12"), "rollout.slots=12 does not divide over the 8 devices"),
        (start("--config.warm_start.batch=4"), "warm_start.batch=4 does not divide over the 8"),
        (start("--config.mesh.tensor=3"), "tensor=3 does not fit 8 devices"),
        (start("--config.data.world_people=41"), "must be 0 or a multiple of 16 from 64 to 960"),
    ],
)
def test_training_refuses(run, tmp_path, arguments, message):
    assert message.format(tmp=tmp_path) in run(train, *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("program", "arguments", "name"),
    [
        (train, [f"--config={CONFIG}", "--workdir=s3://bucket/run"], "--workdir=s3://bucket/run"),
        (train, start("--config.base.workdir=s3://b/run"), "base.workdir=s3://b/run"),
        (train, start("--config.checkpoint.folder=s3://b/run"), "checkpoint.folder=s3://b/run"),
        (evaluate, start("--questions=s3://b/dev.jsonl"), "--questions=s3://b/dev.jsonl"),
        (export, start("--output=s3://bucket/model"), "--output=s3://bucket/model"),
        (compare, ["s3://bucket/a", "runs/b"], "workdir=s3://bucket/a"),
        (plan, [f"--config={CONFIG}", "--topology=v5e:1x1", "--json=s3://b/p"], "--json=s3://b/p"),
    ],
)
def test_buckets_of_other_services_are_refused(
    run, tmp_path, monkeypatch, program, arguments, name
):
    monkeypatch.chdir(tmp_path)
    error = run(program, *arguments)
    assert error.startswith(
        f"{name}: only paths of the file system and of buckets (gs://bucket/name) are read"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("program", [train, evaluate, export, compare, plan])
def test_help(monkeypatch, capsys, program, flag):
    monkeypatch.setattr(sys, "argv", ["program", flag])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(program.main)
    assert exit_info.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"python -m {program.__name__}" in printed.out
    assert ("--output" if program in (compare, export) else "--config") in printed.out


@pytest.mark.parametrize(
    ("questions", "corpus", "message"),
    [
        (None, PASSAGE, "{tmp}/questions.jsonl: no such file"),
        (QUESTION, None, "{tmp}/corpus.jsonl: no such file"),
        (QUESTION + "{oops\n", PASSAGE, "{tmp}/questions.jsonl:2: malformed JSON"),
        (QUESTION * 2, PASSAGE, "{tmp}/questions.jsonl:2: duplicate id 'q:0'"),
        ("", PASSAGE, "{tmp}/questions.jsonl: no questions; the file is empty."),
        (QUESTION, PASSAGE + '{"id": "1"}\n', "{tmp}/corpus.jsonl:2: key 'contents' is missing"),
        (QUESTION, "", "{tmp}/corpus.jsonl: no passages; the corpus is empty."),
    ],
)
def test_training_refuses_files(run, tmp_path, checkpoint, questions, corpus, message):
    for name, text in (("questions", questions), ("corpus", corpus)):
        if text is not None:
            (tmp_path / f"{name}.jsonl").write_text(text)
    assert message.format(tmp=tmp_path) in run(train, *start(*FILES))


def test_the_policy_that_was_loaded_is_not_kept_beside_the_learner(
    tmp_path, monkeypatch, checkpoint
):
    (tmp_path / "questions.jsonl").write_text(QUESTION)
    (tmp_path / "corpus.jsonl").write_text(PASSAGE)
    loaded = []

    def load(*arguments):
        policy, tokenizer = starting_policy(*arguments)
        loaded.extend(weakref.ref(x) for x in jax.tree.leaves(nnx.state(policy)))
        return policy, tokenizer

    def stop(*arguments, **named):
        gc.collect()
        assert len(loaded) > 10
        assert [array for array in loaded if array() is not None] == []
        raise ValueError("far enough")

    monkeypatch.setattr(base, "starting_policy", load)
    monkeypatch.setattr(loop, "roll_out", stop)
    arguments = ["--config.mesh.data=4", "--config.mesh.tensor=2"]
    argv = [argument.format(tmp=tmp_path) for argument in start(*FILES, *arguments)]
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    with pytest.raises(ValueError, match="far enough"):
        train.main(sys.argv)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.base.path={tmp}/none"], "{tmp}/none: there is no such file or folder."),
        (
            ["--config.model.preset=qwen3-4b"],
            "{tmp}/model/config.json: by vocab_size the model's vocab_size is 300, but that of "
            "qwen3-4b is 151936. Name another model.preset",
        ),
        (
            ["--config.mesh.tensor=8"],
            "head/kernel/value: axis vocab of size 300 does not divide over 8 devices",
        ),
    ],
)
@pytest.mark.parametrize("program", [train, evaluate], ids=["train", "evaluate"])
def test_a_bad_base_is_found_before_the_index_is_built(
    run, tmp_path, checkpoint, program, arguments, message
):
    if program is evaluate:
        arguments = [
            *arguments, "--questions={tmp}/questions.jsonl", "--corpus={tmp}/corpus.jsonl", "--base"
        ]  # fmt: skip
    (tmp_path / "questions.jsonl").write_text(QUESTION)
    (tmp_path / "corpus.jsonl").write_text(PASSAGE)
    error = run(program, *start(*FILES, *arguments))
    assert message.format(tmp=tmp_path) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("size=8b", "size must be one of 0.5b, 1.5b, 3b, 7b, 14b, 32b, 72b"),
        ("sise=7b", "the keys are size, algo, variant"),
    ],
)
def test_a_bad_argument_of_a_config(run, argument, message):
    file = Path(__file__).parents[1] / "configs" / "qwen2_5.py"
    assert message in run(train, *start(config=f"{file}:{argument}"))


def test_a_budget_that_holds_no_prompt(run):
    error = run(
        train, *start("--config.rollout.max_context_tokens=12", "--config.warm_start.phases=()")
    )
    assert "which leaves no room for an answer in rollout.max_context_tokens=12" in error
    assert "Question world:heldout:" in error


def test_a_budget_that_holds_no_observation(run):
    error = run(
        train, *start("--config.rollout.max_observation_tokens=5", "--config.warm_start.phases=()")
    )
    assert "An observation of 5 tokens cannot hold its tags" in error


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "sr1_jax.train", f"--config={CONFIG}"]
    command += [f"--workdir={tmp_path}/run", "--config.nonsense=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# A whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """GRPO for two steps from a random policy; arguments for the programs."""
    workdir = tmp_path_factory.mktemp("cli") / "run"
    arguments = [
        "program",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        "--config.steps=2",
        "--config.warm_start.phases=()",
        "--config.learner.algorithm=grpo",
        "--config.learner.kl_in=loss",
        "--config.learner.kl_kind=k3",
        "--config.learner.clip_high=0.28",  # None by default
        "--config.reward.format_weight=0.1",
        "--config.reward.terms=(('em_format', 1.0), ('truncated', -1.0))",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        train.main(arguments)
    return SimpleNamespace(workdir=workdir, arguments=arguments)


@pytest.fixture
def evaluated(trained, monkeypatch):
    """Function of flags -> the result of an evaluation on eight held-out questions."""

    def run(method, *flags):
        data, rows = trained.workdir / "data", trained.workdir / "dev_trajectories.jsonl"
        # The questions of the run itself, which are drawn from the whole file.
        line_of = {row["id"]: row for row in read_rows(data / "heldout.jsonl")}
        asked = [line_of[row["question_id"]] for row in read_rows(rows)]
        questions = trained.workdir.parent / "heldout.jsonl"
        questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
        argv = [*trained.arguments, f"--questions={questions}", f"--method={method}"]
        argv += ["--limit=8", *flags]
        if method != "direct":
            argv.append(f"--corpus={data / 'corpus.jsonl'}")
        monkeypatch.setattr(sys, "argv", argv)
        evaluate.main(argv)
        return json.loads(newest(trained.workdir / "eval", ".json").read_text())

    return run


def newest(folder, ending):
    return max(
        (p for p in folder.iterdir() if p.name.endswith(ending)), key=lambda p: p.stat().st_mtime_ns
    )


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_leaves_what_it_should(trained):
    names = {path.name for path in trained.workdir.iterdir()}
    assert names == {
        ".lock", "base", "before.json", "checkpoints", "curves.png", "data",
        "dev_trajectories.jsonl", "metrics.jsonl", "result.json", "tensorboard", "trajectories",
    }  # fmt: skip
    result = json.loads((trained.workdir / "result.json").read_text())
    assert (result["dev"], result["dev_questions"], result["method"]) == ("heldout", 8, "search")
    for key in ("before", "after", "after_facts_changed"):
        assert 0 <= result[key]["greedy/em"] <= 1
    assert [row["step"] for row in read_rows(trained.workdir / "metrics.jsonl")] == [1, 2]
    rows = read_rows(trained.workdir / "trajectories" / "step-000002.jsonl")
    assert len(rows) == 8 and {row["sample"] for row in rows} == {0, 1}


def newest_policy(workdir):
    spec = importlib.util.spec_from_file_location("tiny", CONFIG)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return trained_policy(module.get_config(), workdir, make_mesh())


def test_an_export_is_the_policy_of_the_checkpoint(trained, tmp_path, capsys, monkeypatch):
    argv = [*trained.arguments, f"--output={tmp_path}/out", "--dtype=float32"]
    monkeypatch.setattr(sys, "argv", argv)
    export.main(argv)
    assert f"Wrote the policy (step 2) to {tmp_path}/out." in capsys.readouterr().out
    exported, tokenizer = load_pretrained(tmp_path / "out")
    policy, ours, _ = newest_policy(trained.workdir)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(exported), nnx.state(policy))
    assert (tokenizer.token_bytes, tokenizer.eos_ids) == (ours.token_bytes, ours.eos_ids)
    with pytest.raises(ValueError, match="out exists and is not empty; give another folder"):
        export.main(argv)
    with pytest.raises(ValueError, match=r"--output is missing"):
        export.main(trained.arguments)


def test_a_bucket_is_refused_by_every_command(trained, evaluated, tmp_path, monkeypatch):
    bucket = "--config.base.workdir=s3://bucket/run"
    argv = [*trained.arguments, f"--output={tmp_path}/out", bucket]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(ValueError, match=r"base\.workdir.*s3://bucket/run"):
        export.main(argv)
    with pytest.raises(ValueError, match=r"base\.workdir.*s3://bucket/run"):
        evaluated("direct", bucket)
    with pytest.raises(ValueError, match=r"rollout\.passages must be at least 1"):
        evaluated("direct", "--config.rollout.passages=0")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_trained_policy_is_that_of_the_checkpoint(trained):
    policy, _, origin = newest_policy(trained.workdir)
    assert origin == "step 2"
    folder = (trained.workdir / "checkpoints" / "2" / "state").resolve()
    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.restore(folder)["policy"]["params"]
    got = jax.tree_util.tree_leaves_with_path(nnx.state(policy))
    want = jax.tree_util.tree_leaves(saved)
    assert len(got) == len(want) > 10
    for (_, a), b in zip(got, want):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_evaluation_by_search_equals_that_of_training(trained, evaluated):
    result = evaluated("search")
    assert (result["method"], result["policy"], result["count"]) == ("search", "step 2", 8)
    assert result["greedy"] is True
    after = json.loads((trained.workdir / "result.json").read_text())["after"]
    for key in ("em", "f1", "searches", "response_tokens", "truncated", "em_1_hop"):
        assert result[key] == after[f"greedy/{key}"]
    assert result["em_standard_error"] == pytest.approx(
        (result["em"] * (1 - result["em"]) / 8) ** 0.5
    )
    rows = read_rows(newest(trained.workdir / "eval", ".trajectories.jsonl"))
    assert [row.pop("scores")["em"] for row in rows] == [row["reward"] for row in rows]
    assert rows == read_rows(trained.workdir / "dev_trajectories.jsonl")
    assert len({row["question_id"] for row in rows}) == 8


def test_evaluation_without_search(trained, evaluated, capsys):
    direct = evaluated("direct")
    assert (direct["method"], direct["searches"]) == ("direct", 0)
    rag = evaluated("rag", "--base")
    assert (rag["method"], rag["policy"], rag["searches"]) == ("rag", "base", 0)
    rows = read_rows(newest(trained.workdir / "eval", ".trajectories.jsonl"))
    # The passages stand in the prompt, so no token of them is the policy's.
    assert all(row["spans"][0][0] == 0 and "<information>" in row["spans"][0][1] for row in rows)
    out = capsys.readouterr().out
    assert "Results on heldout" in out and "direct" in out and "rag" in out


def test_sampled_evaluation_says_so(evaluated):
    assert evaluated("direct", "--greedy=false")["greedy"] is False
