"""What is saved comes back; a run taken up again is the run it would have been."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.evaluation.trajectory_log import write_trajectories
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.sharding import make_mesh, named, tree_shardings
from sr1_jax.train import train
from sr1_jax.training import base as base_module
from sr1_jax.training import step_log
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.policies import decoder_config, trained_policy
from sr1_jax.training.saved_base import load_base, save_base
from sr1_jax.training.settings import default_config

OTHER_CONTENTS = {
    "corpus.jsonl": r"another corpus or index \(data\.corpus\)",
    "train.jsonl": r"other training questions \(data\.questions\)",
    "base": r"other base weights \(base\)",
}


@pytest.fixture
def state():
    """Arrays split over the mesh, replicated ones and a scalar."""
    mesh = make_mesh(2, 2, 2)
    rng = np.random.default_rng(0)
    return {
        "kernel": jax.device_put(rng.normal(size=(4, 6)).astype("f4"), named(mesh, "embed", "ff")),
        "scale": jax.device_put(np.arange(3.0, dtype="f4"), named(mesh)),
        "count": jax.device_put(np.int32(7), named(mesh)),
        "none": None,
    }


def test_round_trip(tmp_path, state, equal_trees):
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_step is None
    checkpoints.save(3, state, {"config": {"steps": [1, 2]}})
    checkpoints.close()
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_step == 3
    assert checkpoints.facts(3) == {"config": {"steps": [1, 2]}}
    restored = checkpoints.restore(3, jax.tree.map(jnp.zeros_like, state))
    checkpoints.close()
    equal_trees(restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)


def test_restored_onto_another_mesh(tmp_path, state, equal_trees):
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {})
    one = named(make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    restored = checkpoints.restore(1, jax.tree.map(lambda x: jax.device_put(x, one), state))
    checkpoints.close()
    equal_trees(restored, state)
    assert all(x.sharding == one for x in jax.tree.leaves(restored))


def test_the_newest_are_kept(tmp_path, state):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_saving_is_over_before_the_buffers_are_donated(tmp_path):
    """Training goes on, and reuses the memory, while a checkpoint is being written."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((512, 1024))
    checkpoints = RunCheckpoints(tmp_path, keep=9)
    for number in range(1, 4):
        x = step(x)
        checkpoints.save(number, {"x": x}, {})
        for _ in range(3):
            x = step(x)
    like = {"x": x}
    for number in range(1, 4):
        restored = checkpoints.restore(number, like)["x"]
        np.testing.assert_array_equal(restored, np.full((512, 1024), 4 * number - 3))
    checkpoints.close()


# Base policies


@pytest.fixture(scope="module")
def policy():
    config = DecoderConfig(
        vocab_size=352, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff_width=16,
        qkv_bias=True, tied_embeddings=False, unroll=2,
    )  # fmt: skip
    return Decoder(config, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def base_tokenizer():
    from sr1_jax.models.small_tokenizer import train_small_tokenizer

    return train_small_tokenizer(["<search> mayor of Paris</search>"] * 3, 352)


def test_base_policy_round_trip(tmp_path, policy, base_tokenizer, equal_trees):
    mesh = make_mesh(2, 2, 2)
    save_base(tmp_path / "base", policy.config, nnx.state(policy), base_tokenizer)
    loaded, tokenizer = load_base(tmp_path / "base", mesh)
    assert loaded.config == policy.config
    equal_trees(nnx.state(loaded), nnx.state(policy))
    params = nnx.state(loaded)
    assert jax.tree.map(lambda x: x.sharding, params) == tree_shardings(params, mesh)
    text = "<search> mayor of Paris</search>"
    assert tokenizer.encode(text) == base_tokenizer.encode(text)
    assert (tokenizer.eos_ids, tokenizer.pad_id) == (base_tokenizer.eos_ids, base_tokenizer.pad_id)


def test_a_base_policy_in_another_precision(tmp_path, policy, base_tokenizer, mesh):
    save_base(tmp_path / "base", policy.config, nnx.state(policy), base_tokenizer)
    asked = {"dtype": "bfloat16", "param_dtype": "bfloat16", "remat": "full"}
    loaded, _ = load_base(tmp_path / "base", mesh, **asked)
    assert loaded.config == dataclasses.replace(policy.config, **asked)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(policy))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), rounded)
    config = default_config()
    config.base.workdir = str(tmp_path)
    config.base.update(asked)
    assert decoder_config(config) == loaded.config
    config.base.workdir = ""  # and of one from scratch
    assert {key: getattr(decoder_config(config), key) for key in asked} == asked


def test_a_base_policy_is_complete_or_not_there(tmp_path, policy, base_tokenizer, mesh):
    with pytest.raises(ValueError, match="holds no base policy; run the warm start first"):
        load_base(tmp_path / "base", mesh)
    save_base(tmp_path / "base", policy.config, nnx.state(policy), base_tokenizer)
    (tmp_path / "base" / "model.json").unlink()  # written last: as if it had been cut off before
    with pytest.raises(ValueError, match="holds no base policy"):
        load_base(tmp_path / "base", mesh)


# Whole runs


def test_the_finished_run_has_trained(finished, tiny_config, mesh, equal_trees):
    rows = read_metrics(finished.workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["trained_tokens"] > 0 for row in rows)
    assert all(row["policy/gradient_norm"] > 0 for row in rows)
    assert all(row["rollout_gap"] < 1e-4 for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(rows[-1]["kl"]) > 1e-4
    assert ["dev/greedy/em" in row for row in rows] == [False, False, True, False]
    base, _, origin = trained_policy(tiny_config, finished.workdir, mesh, base=True)
    assert origin == "base"
    trained, _, origin = trained_policy(tiny_config, finished.workdir, mesh)
    assert origin == "step 4"
    with pytest.raises(AssertionError):
        equal_trees(nnx.state(trained), nnx.state(base))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_taken_up_again_it_is_the_same_run(
    finished, derived, tmp_path, capsys, same_run, monkeypatch
):
    """Told to end in the second step, which is finished and saved."""

    def told_to_end(folder, step, *rest, **named):
        write_trajectories(folder, step, *rest, **named)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(step_log, "write_trajectories", told_to_end)
        derived.checkpoint.every = 4
        with pytest.raises(InterruptedError, match=r"saved after step 2\. Start again"):
            train(derived, tmp_path / "run")
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    # As if it had been cut off in step 4, after the last checkpoint.
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "reward": 77.0}\n{"step": 4, "rew')
    capsys.readouterr()
    train(derived, tmp_path / "run")
    assert "Taken up again after step 2." in capsys.readouterr().out

    same_run(tmp_path / "run", finished.workdir, steps=(2, 4))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_finished_run_started_again_only_evaluates(finished):
    before = (finished.workdir / "metrics.jsonl").read_text()
    asked = (finished.workdir / "before.json").stat().st_mtime_ns
    result = train(finished.config, finished.workdir)
    assert (finished.workdir / "before.json").stat().st_mtime_ns == asked  # read, not run again
    assert (finished.workdir / "metrics.jsonl").read_text() == before
    for key in ("before", "after", "after_facts_changed", "warm_start", "scripted_ceiling"):
        assert result[key] == finished.result[key]
    assert json.loads((finished.workdir / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("learner", "gamma", 0.9), ("rollout", "passages", 2), ("", "questions", 8)],
)
def test_other_settings_are_refused(finished, section, key, value):
    """Before anything is changed in the workdir."""
    config = finished.config.copy_and_resolve_references()
    target = config[section] if section else config
    old = target[key]
    target[key] = value
    name = f"{section}.{key}" if section else key
    before = (finished.workdir / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=rf"{name}={old}, now it is {value}: use the old setting"):
        train(config, finished.workdir)
    assert (finished.workdir / "metrics.jsonl").read_text() == before


def test_what_a_run_may_have_stopped_for_can_be_mended(finished):
    """A retriever that failed, a loss that was not finite."""
    config = finished.config.copy_and_resolve_references()
    config.environment.options.search.failure = "empty"
    config.learner.learning_rate, config.learner.clip = 1e-5, 0.1
    assert train(config, finished.workdir)["after"] == finished.result["after"]


@pytest.mark.parametrize("changed", ["corpus.jsonl", "train.jsonl", "base"])
def test_a_run_is_not_resumed_on_other_data_or_weights(finished, tmp_path, changed):
    """All were accepted: only settings were compared."""
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    if changed == "base":
        (file,) = (workdir / "base").glob("tokenizer.json")
        file.write_text(file.read_text() + "\n")
    else:
        lines = (workdir / "data" / changed).read_text().splitlines(keepends=True)
        (workdir / "data" / changed).write_text("".join(lines[:-1]))
    finished.config.steps = 5
    try:
        with pytest.raises(ValueError, match=OTHER_CONTENTS[changed]):
            train(finished.config, workdir)
    finally:
        finished.config.steps = 4
    assert read_metrics(workdir) == read_metrics(finished.workdir)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_resumed_step_needs_no_more_memory(finished, derived, tmp_path, monkeypatch):
    """Formerly the first state stayed beside the restored one as long as the run lasted."""
    live = []

    def measure(*arguments, **named):
        gc.collect()
        live.append(sum(array.nbytes for array in jax.live_arrays()))
        return write_trajectories(*arguments, **named)

    monkeypatch.setattr(step_log, "write_trajectories", measure)
    derived.steps, derived.checkpoint.every = 2, 0  # what is being saved counts, too
    train(derived, tmp_path / "run")
    derived.steps = 3
    train(derived, tmp_path / "run")
    fresh, second, resumed = live
    assert resumed == second == fresh


def test_two_runs_in_one_workdir(finished, derived):
    """They deleted each other's checkpoints."""
    before = sorted(path.name for path in (finished.workdir / "checkpoints").iterdir())
    code = (
        "import sys, time; from pathlib import Path; from sr1_jax.lock import lock_workdir\n"
        "with lock_workdir(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(finished.workdir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"is in use by process {holder.pid}"):
            train(finished.config, finished.workdir)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert sorted(p.name for p in (finished.workdir / "checkpoints").iterdir()) == before


def test_supervised_fine_tuning_is_kept(finished, derived, tmp_path, monkeypatch, equal_trees):
    """The SFT baseline: evaluated and exported as what it is, and not trained again."""
    derived.steps, derived.evaluation.final_questions = 0, 4
    derived.warm_start.phases = finished.config.warm_start.phases[-1:]
    result = train(derived, tmp_path / "sft")
    tuned, _, what = trained_policy(derived, tmp_path / "sft", make_mesh())
    assert what == "supervised"
    base, _, what = trained_policy(derived, tmp_path / "sft", make_mesh(), base=True)
    assert what == "base"
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), nnx.state(tuned), nnx.state(base))
    assert any(jax.tree.leaves(moved))

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(base_module, "train_supervised", no_training)
    again = train(derived, tmp_path / "sft")
    assert (again["after"], again["supervised"]) == (result["after"], result["supervised"])
    derived.warm_start.batch *= 2
    with pytest.raises(ValueError, match=r"holds supervised/ made with warm_start\.batch="):
        train(derived, tmp_path / "sft")


def test_a_base_policy_of_other_settings_is_refused(finished, tmp_path):
    shutil.copytree(finished.workdir / "base", tmp_path / "base")
    config = finished.config.copy_and_resolve_references()
    config.warm_start.batch *= 2
    with pytest.raises(ValueError, match=r"holds base/ made with warm_start\.batch="):
        train(config, tmp_path)


def test_another_world_is_refused(finished, derived, tmp_path):
    derived.seed = 1
    with pytest.raises(ValueError, match=r"holds the world of seed=0, now it is 1"):
        train(derived, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
