"""What a workdir holds, for programs that use a run and make none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from sr1_jax.agreement import check_same
from sr1_jax.training.checkpoints import RunCheckpoints, checkpoint_folder
from sr1_jax.training.policies import was_fine_tuned

# Value of --step: the checkpoint with the best development score.
BEST = "best"


class SavedRun(NamedTuple):
    """A run in a workdir.

    Attributes:
        step: of the checkpoint to use; None: the policy before reinforcement learning.
        facts: saved with that checkpoint, or with the newest one; empty without checkpoints.
    """

    step: int | None
    facts: Mapping[str, Any]


def step_flag(values: flags.FlagValues) -> None:
    """Defines --step, the checkpoint to use: see `find_run`."""
    words = "The checkpoint after so many steps, or best: that of the best development score "
    words += "(checkpoint.best); without it the newest."
    parser = _StepParser()
    flags.DEFINE(parser, "step", None, words, flag_values=values)


class _StepParser(flags.ArgumentParser):
    """A number of steps, or `BEST`."""

    syntactic_help = "a number of steps, or best"

    def parse(self, argument: str | int) -> str | int:
        if argument == BEST:
            return argument
        try:
            return int(argument)
        except ValueError as error:
            raise ValueError(f"must be {self.syntactic_help}") from error


def find_run(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    base: bool = False,
    step: int | str | None = None,
) -> SavedRun:
    """What `policies.trained_policy` will load. Creates nothing.

    Args:
        config: of the run.
        workdir: of the run.
        base: the policy that training starts from is wanted.
        step: the checkpoint that is wanted, or `BEST`; None: the newest.

    Raises:
        ValueError: nothing of what is wanted is there, so that a mistyped workdir never gives the
            weights that training starts from; or adapters other than those of the run.
    """
    if base and step is not None:
        raise ValueError(f"--base and --step={step} exclude each other: which policy is meant?")
    folder = checkpoint_folder(config, workdir)
    there = {
        "the workdir": workdir.is_dir(),
        "checkpoints": folder.is_dir(),
        "a base policy": (workdir / "base" / "model.json").is_file(),
        "a fine-tuned policy": was_fine_tuned(workdir),
        "metrics": (workdir / "metrics.jsonl").is_file(),
        "a result": (workdir / "result.json").is_file(),
    }
    check_same(f"What {workdir} holds", there)
    steps, facts = [], {}
    if there["checkpoints"]:
        with RunCheckpoints(folder, keep=config.checkpoint.keep, reading=True) as checkpoints:
            steps = checkpoints.steps
            if step == BEST:
                step = _best_of(checkpoints)
            if steps and (step is None or step in steps):
                facts = checkpoints.facts(steps[-1] if step is None else step)
    if step is not None and step not in steps:
        have = f"only of {', '.join(map(str, steps))}" if steps else "none"
        raise ValueError(f"--step={step}: {folder} has no such checkpoint, {have}.")
    if base:
        if not (config.base.path or config.base.workdir or there["a base policy"]):
            raise ValueError(
                f"--base: {workdir} holds no base policy; name one by base.path or base.workdir."
            )
        return SavedRun(None, facts)
    if steps:
        _check_adapters(config, facts)
        return SavedRun(steps[-1] if step is None else step, facts)
    if not config.lora.path:
        _check_trained(workdir, folder, there)
    return SavedRun(None, facts)


def _best_of(checkpoints: RunCheckpoints) -> int:
    if checkpoints.best_step is None:
        raise ValueError(
            f"--step={BEST}: no checkpoint in {checkpoints.folder} has a development score. They "
            "have one where checkpoint.best and evaluation.every say so."
        )
    return checkpoints.best_step


def _check_trained(workdir: Path, folder: Path, there: Mapping[str, bool]) -> None:
    """Refuses a workdir without checkpoints, but for a finished run that needs none."""
    base = "--base takes the policy that training starts from."
    if not there["the workdir"]:
        raise ValueError(f"--workdir={workdir}: there is no such folder. {base}")
    if there["metrics"]:
        raise ValueError(
            f"{workdir}: a policy was trained here, but {folder} holds no checkpoint. Is "
            f"checkpoint.folder that of the run? {base}"
        )
    if not (there["a fine-tuned policy"] or there["a result"]):
        raise ValueError(
            f"--workdir={workdir}: no run was finished here, and none left a checkpoint. {base}"
        )


def _check_adapters(config: ml_collections.ConfigDict, facts: Mapping[str, Any]) -> None:
    saved = facts.get("config", {}).get("lora", {})
    if config.lora.path:
        raise ValueError(
            f"The policy of a run with a checkpoint is that of the checkpoint, also where training "
            f"started from adapters: leave lora.path={config.lora.path!r} out, or give another "
            "--workdir."
        )
    for key in ("rank", "alpha", "targets"):
        old, now = saved.get(key), config.lora[key]
        now = list(now) if isinstance(now, tuple) else now
        if key in saved and old != now and (saved["rank"] or config.lora.rank):
            raise ValueError(
                f"The run was trained with lora.{key}={old!r}, now it is {now!r}: give the "
                f"config of the run, or --config.lora.{key}=…"
            )
