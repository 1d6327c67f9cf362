"""A run goes on as itself or not at all; whoever is refused reads why."""

import contextlib
import copy
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest
import small_checkpoints

from sr1_jax.evaluation.methods import prompt_fingerprint
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.resume import check_resumable, run_facts, take_up, weights_contents
from sr1_jax.training.settings import default_config

CONTENTS = {"data.questions": "q", "data.dev": "d", "data.corpus": "c", "base": "b"}


@pytest.fixture
def config():
    return default_config()


@pytest.fixture
def saved(config, tmp_path):
    """Checkpoints of a run after step 5, and its workdir."""
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(5, {"x": jnp.ones(3)}, run_facts(config, CONTENTS) | {"position": 40})
    with contextlib.closing(checkpoints):
        yield checkpoints, tmp_path
        checkpoints._manager.wait_until_finished()


class Learner:
    """Makes a first state, if it is asked for one."""

    def __init__(self):
        self.made = 0

    @property
    def abstract_state(self):
        return {"x": jax.ShapeDtypeStruct((3,), "float32", sharding=jnp.zeros(3).sharding)}

    def initial_state(self):
        self.made += 1
        return {"x": jnp.zeros(3)}


def test_a_first_state_is_made_only_for_a_first_step(saved, config, tmp_path):
    """Formerly it stayed beside the restored one for as long as the run lasted."""
    checkpoints, _ = saved
    learner = Learner()
    resumed = take_up(checkpoints, learner, run_facts(config, CONTENTS))
    assert (resumed.step, resumed.position, learner.made) == (5, 40, 0)
    assert resumed.state["x"].tolist() == [1.0, 1.0, 1.0]
    with contextlib.closing(RunCheckpoints(tmp_path / "none", keep=1)) as empty:
        first = take_up(empty, learner, run_facts(config, CONTENTS))
    assert (first.step, first.position, learner.made) == (0, 0, 1)
    assert first.state["x"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data.questions", r"made with other training questions \(data\.questions\)"),
        ("data.dev", r"made with other development questions \(data\.dev\)"),
        ("data.corpus", r"made with another corpus or index \(data\.corpus\)"),
        ("base", r"made with other base weights \(base\)"),
    ],
)
def test_other_contents_are_refused_by_name(saved, config, key, message):
    """All were accepted, if their files had the old names."""
    checkpoints, workdir = saved
    facts = run_facts(config, CONTENTS | {key: "other"})
    with pytest.raises(ValueError, match=message):
        take_up(checkpoints, Learner(), facts)
    with pytest.raises(ValueError, match=message):
        check_resumable(config, workdir, facts)


def test_another_critic_is_refused(saved, config):
    checkpoints, _ = saved
    facts = run_facts(config, CONTENTS | {"critic.path": "v"})
    with pytest.raises(ValueError, match=r"other weights of the critic \(critic\.path\)"):
        take_up(checkpoints, Learner(), facts)


def test_a_policy_that_is_yet_to_be_made_is_not_compared(saved, config):
    _, workdir = saved
    known = {key: value for key, value in CONTENTS.items() if key != "base"}
    check_resumable(config, workdir, run_facts(config, known))


def test_where_nothing_was_saved_there_is_nothing_to_compare(config, tmp_path):
    check_resumable(config, tmp_path / "run", run_facts(config, CONTENTS))
    assert not (tmp_path / "run").exists()


def test_settings_are_compared_by_their_flags(saved, config):
    checkpoints, workdir = saved
    config.steps, config.learner.clip, config.evaluation.every = 9, 0.1, 7
    config.environment.options.search.timeout_seconds = 5.0
    config.data.corpus = "moved.jsonl"
    check_resumable(config, workdir, run_facts(config, CONTENTS))
    for key, value in (("learner.gamma", 0.5), ("rollout.passages", 9), ("seed", 3)):
        changed = config.copy_and_resolve_references()
        section, _, name = key.rpartition(".")
        (changed[section] if section else changed)[name] = value
        with pytest.raises(ValueError, match=rf"a checkpoint made with {key}=.*, now it is"):
            take_up(checkpoints, Learner(), run_facts(changed, CONTENTS))


def test_the_weights_of_a_run(config, tmp_path):
    for name in ("model", "critic"):
        (tmp_path / name).mkdir()
        small_checkpoints.write_folder(tmp_path / name, small_checkpoints.train_backend())
    assert weights_contents(config, tmp_path) == {}  # a warm start is to come
    config.base.path = str(tmp_path / "model")
    one = weights_contents(config, tmp_path)
    config.critic.path = str(tmp_path / "critic")
    both = weights_contents(config, tmp_path)
    assert set(one) == {"base"} and set(both) == {"base", "critic.path"}
    assert one["base"] == both["base"] == both["critic.path"]
    weights = copy.deepcopy(small_checkpoints.make_tensors(small_checkpoints.CONFIG))
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    small_checkpoints.write_folder(
        tmp_path / "model", small_checkpoints.train_backend(), tensors=weights
    )
    assert weights_contents(config, tmp_path)["base"] != one["base"]


@pytest.mark.parametrize("key", ["critic.path", "lora.path", "prompt"])
def test_what_the_checkpoint_had_must_not_be_gone(config, tmp_path, key):
    """A critic dropped from the settings would leave its adapters on the policy's trunk."""
    with contextlib.closing(RunCheckpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        facts = run_facts(config, CONTENTS | {key: "v"})
        checkpoints.save(5, {"x": jnp.ones(3)}, facts | {"position": 40})
        checkpoints._manager.wait_until_finished()
        with pytest.raises(ValueError, match=re.escape(f"({key})")):
            take_up(checkpoints, Learner(), run_facts(config, CONTENTS))
        # Before the policy is made not everything is known yet.
        check_resumable(config, tmp_path, run_facts(config, CONTENTS))


def test_how_a_tool_of_ones_own_is_called_may_change_but_not_its_own_options(saved, tmp_path):
    config = default_config()
    given = {"timeout_seconds": 5.0, "failure": "raise", "digits": 3}
    config.environment.options.calculate = ml_collections.ConfigDict(given)
    folder = tmp_path / "own"
    with contextlib.closing(RunCheckpoints(folder / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(5, {"x": jnp.ones(3)}, run_facts(config, CONTENTS) | {"position": 40})
        checkpoints._manager.wait_until_finished()
    config.environment.options.calculate.timeout_seconds = 9.0
    config.environment.options.calculate.failure = "empty"
    check_resumable(config, folder, run_facts(config, CONTENTS))
    config.environment.options.calculate.digits = 4
    with pytest.raises(ValueError, match=r"environment\.options\.calculate\.digits=3, now it is 4"):
        check_resumable(config, folder, run_facts(config, CONTENTS))


def test_a_prompt_is_known_by_what_it_says(config, tmp_path):
    first, moved = tmp_path / "first.txt", tmp_path / "moved.txt"
    first.write_text("Find out: {question}")
    moved.write_text("Find out: {question}")
    prints = []
    for file, chat in ((first, False), (moved, False), (moved, True)):
        config.protocol.template_path, config.protocol.chat = str(file), chat
        prints.append(prompt_fingerprint(config, "search"))
    moved.write_text("Say: {question}")
    prints.append(prompt_fingerprint(config, "search"))
    assert prints[0] == prints[1] and len(set(prints)) == 3
    assert prompt_fingerprint(config, "rag") != prints[0]
