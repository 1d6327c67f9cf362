"""How a run goes on where it stopped: only as the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from sr1_jax.agreement import check_same, from_first
from sr1_jax.models.pretrained import read_model_files
from sr1_jax.paths import local_path
from sr1_jax.rl.learner import Learner, LearnerState
from sr1_jax.storage import is_bucket, objects
from sr1_jax.training.checkpoints import RunCheckpoints, checkpoint_folder
from sr1_jax.training.fingerprints import objects_fingerprint, weights_fingerprint
from sr1_jax.training.same_settings import as_json_values, check_same_settings
from sr1_jax.training.settings import RUN, default_config, fixed_settings

# What the keys of a run's contents stand for, in messages.
_CONTENTS = {
    "data.questions": "other training questions",
    "data.dev": "other development questions",
    "data.corpus": "another corpus or index",
    "base": "other base weights",
    "critic.path": "other weights of the critic",
    "prompt": "another prompt",
    "lora.path": "other adapters to start from",
}


# What of the facts of a checkpoint is the state of the stream of training questions.
_STREAM = ("position", "curriculum")


class Resumed(NamedTuple):
    """Where a run goes on.

    Attributes:
        state: of the learner.
        step: steps done.
        taken: state of the stream of training questions, see `data.stream`; {} at the start.
        guarded: state of the guards, see `guards.Guards`; {} at the start.
    """

    state: LearnerState
    step: int
    taken: Mapping[str, Any]
    guarded: Mapping[str, Any]

    @property
    def position(self) -> int:
        """Training questions taken."""
        return self.taken.get("position", 0)


def weights_contents(config: ml_collections.ConfigDict, source: Path) -> dict[str, str]:
    """Fingerprints of the weights that a run starts from, by what they are.

    Args:
        config: of the run.
        source: the workdir with the base policy, where base.path does not name one.

    Returns:
        Without the base policy, if that is yet to be made.

    Raises:
        ValueError: processes see different weights.
    """
    contents = {}
    if config.base.path:
        contents["base"] = _fingerprint(config.base.path)
    elif (source / "base" / "model.json").is_file():
        contents["base"] = weights_fingerprint(source / "base")
    if config.critic.path:
        contents["critic.path"] = _fingerprint(config.critic.path)
    if config.lora.path:
        contents["lora.path"] = weights_fingerprint(local_path(config.lora.path, "lora.path"))
    check_same("The weights to start from", contents)
    return contents


def _fingerprint(path: str) -> str:
    """Of what is behind a name that `read_model_files` takes."""
    if is_bucket(path):
        return objects_fingerprint(path)
    return weights_fingerprint(Path(read_model_files(path).path))


def run_facts(config: ml_collections.ConfigDict, contents: Mapping[str, str]) -> dict[str, Any]:
    """What a resumed run has to have in common with what it goes on with; JSON-able."""
    fixed = as_json_values(fixed_settings(config.to_dict()))
    return {"config": fixed, "contents": dict(contents)}


def check_resumable(
    config: ml_collections.ConfigDict, workdir: Path, facts: Mapping[str, Any]
) -> None:
    """Refuses to resume another run; does nothing where no checkpoint is.

    Contents that are not known yet are left out.

    Args:
        config: of the run.
        workdir: of the run.
        facts: of `run_facts`.

    Raises:
        ValueError: naming the first setting, or what it was that the run read, that differs.
    """
    folder = checkpoint_folder(config, workdir)
    if is_bucket(folder):  # where the service may fail for one process alone
        there = from_first(bool(objects.listing(str(folder))))
        if not there:  # else `RunCheckpoints` asks
            objects.check_may_ask(str(folder), "checkpoint.folder")
    else:
        there = folder.is_dir()
        check_same(f"Folder {folder}", {"is there": there})
    if not there:
        return
    with RunCheckpoints(folder, keep=config.checkpoint.keep, reading=True) as checkpoints:
        if checkpoints.latest_step:
            _check_same_run(checkpoints.facts(checkpoints.latest_step), facts)


def take_up(checkpoints: RunCheckpoints, learner: Learner, facts: Mapping[str, Any]) -> Resumed:
    """The newest state of a run, or the first one.

    A state that is restored takes the place of the first, which is then never made.

    Args:
        checkpoints: of the run.
        learner: of the run.
        facts: of `run_facts`, complete.

    Raises:
        ValueError: as `check_resumable`.
    """
    step = checkpoints.latest_step or 0
    if not step:
        return Resumed(learner.initial_state(), 0, {}, {})
    saved = checkpoints.facts(step)
    _check_same_run(saved, facts, complete=True)
    state = checkpoints.restore(step, learner.abstract_state)
    print(f"Taken up again after step {step}.", flush=True)
    taken = {key: saved[key] for key in _STREAM if key in saved}
    return Resumed(state, step, taken, saved.get("guards", {}))


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a checkpoint; those that it was saved too early to have are at their defaults."""

    def under(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        both = {key for key in given if isinstance(defaults.get(key), Mapping)}
        return {**defaults, **given, **{key: under(given[key], defaults[key]) for key in both}}

    return under(saved, as_json_values(fixed_settings(default_config().to_dict())))


def _check_same_run(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, complete: bool = False
) -> None:
    """Compares facts; contents that only the checkpoint has count where those of now are complete,
    or else may only not be known yet."""
    # By the flags of today: what was saved may hold settings that have become free since.
    check_same_settings(_completed(RUN.without_free(saved["config"])), now["config"])
    before, here = saved.get("contents", {}), now["contents"]
    for key in {**here, **(before if complete else {})}:
        if before.get(key, "") != here.get(key, ""):
            raise ValueError(
                f"This workdir holds a checkpoint made with {_CONTENTS.get(key, key)} ({key}): "
                "use the old ones or another --workdir."
            )
