"""Trains a policy to search.

    python -m sr1_jax.train --config=configs/demo.py --workdir=runs/demo [--config.key=value …]

Reads top to bottom: settings, mesh, data, base policy (pretrained, from another run, or by a
supervised warm start), reinforcement learning, final evaluation. Started again with the same
workdir, it goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import rich
from absl import flags
from jax.sharding import Mesh

from sr1_jax import cli, cluster
from sr1_jax.agreement import check_same
from sr1_jax.cluster import is_first
from sr1_jax.evaluation.methods import prompt_fingerprint
from sr1_jax.evaluation.progress import working
from sr1_jax.evaluation.summary import draw_curves, print_summary
from sr1_jax.evaluation.trajectory_log import as_row, print_trajectories, write_rows
from sr1_jax.lock import lock_workdir
from sr1_jax.programs import kept_programs
from sr1_jax.retrieval.hooks import counts_of, told_at_end
from sr1_jax.sharding import make_mesh
from sr1_jax.terminal import one_line
from sr1_jax.training.base import base_policy, fine_tune
from sr1_jax.training.checks import check_config, check_mesh
from sr1_jax.training.development import Development
from sr1_jax.training.learning import make_learner
from sr1_jax.training.loop import reinforce
from sr1_jax.training.policies import check_base
from sr1_jax.training.profiling import ProfiledSteps
from sr1_jax.training.resume import check_resumable, run_facts, weights_contents
from sr1_jax.training.settings import RUN, unknown_setting
from sr1_jax.training.task import files_task
from sr1_jax.workdirs import other_workdir, training_workdir
from sr1_jax.world.task import world_task

_SHOWN_TRAJECTORIES = 10


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("profile_steps", "", "Steps to trace into the workdir's folder profile, "
                        "for xprof: 10-12.", flag_values=values)  # fmt: skip
    cluster.define_flags(values)
    cli.parse(values, argv, required=("config", "workdir"), usage=__doc__)
    profile = ProfiledSteps.parse(values.profile_steps)
    cluster.join_by_flags(values)
    with training_workdir(values.workdir) as workdir:
        train(values.config, workdir, profile)


def train(
    config: ml_collections.ConfigDict, workdir: Path, profile: ProfiledSteps | None = None
) -> dict[str, Any]:
    """Runs everything `config` asks for; returns what goes to `workdir`/result.json.

    Of several processes all call it with the same config; only the first prints and, but for
    data, base policy and checkpoints, writes.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, found before anything expensive; or
            another run is at work in `workdir`.
        FloatingPointError: training diverged.
    """
    check_config(config)
    check_same("The config", config.to_dict())
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_mesh(config, mesh)
    check_base(config, mesh)  # before the index of a corpus is built
    with (
        lock_workdir(workdir) if is_first() else contextlib.nullcontext(),
        kept_programs(config.compilation_cache, workdir),
    ):
        return _train(config, workdir, mesh, profile)


def _train(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh, profile: ProfiledSteps | None
) -> dict[str, Any]:
    began = time.perf_counter()
    source = other_workdir(config.base.workdir) if config.base.workdir else workdir
    make_task = world_task if config.data.world_people else files_task
    with working("reading the data"):
        task = make_task(config, source)
        contents = dict(task.contents) | weights_contents(config, source)
        contents["prompt"] = prompt_fingerprint(config, config.method)
    check_resumable(config, workdir, run_facts(config, contents))

    policy = base_policy(config, task, source, mesh)
    contents |= weights_contents(config, source)  # of a policy that was just made, too
    development = Development(
        config, task, policy.shape, policy.tokenizer, mesh, method=config.method
    )
    result = {"method": config.method, "dev": development.name, "dev_questions": development.count}
    result |= policy.origin
    if development.count:
        with working("evaluating the policy before training"):
            params = policy.before_training(config, mesh)
            result["before"] = development.before(params, workdir, run_facts(config, contents))
            del params  # they may be arrays that training need not hold
    if config.warm_start.phases and (config.base.workdir or config.base.path):
        result["supervised"] = fine_tune(
            config, workdir, task, policy, mesh, development,
            {name: contents[name] for name in ("base", "lora.path") if name in contents},
        )  # fmt: skip
    result["seconds_before_rl"] = time.perf_counter() - began

    if config.steps:
        learner = make_learner(config, policy.hand_over(), policy.tokenizer, mesh)
        policy.params = reinforce(
            config, workdir, task, learner, policy, mesh, development, contents, profile
        )
        if is_first():
            draw_curves(workdir)
    elif config.lora.path and "supervised" not in result:
        policy.params = policy.before_training(config, mesh)
    result["seconds_rl"] = time.perf_counter() - began - result["seconds_before_rl"]

    if development.count:
        with working("evaluating the policy after training"):
            result["after"], trajectories = development.final(policy.params)
            result["dev_questions"] = len(trajectories)  # those that fit
            for name, scores in development.other_worlds(policy.params).items():
                result[f"after_{name}"] = scores
        if is_first():
            rows = [as_row(trajectory, policy.tokenizer) for trajectory in trajectories]
            write_rows(workdir / "dev_trajectories.jsonl", rows)
        shown = trajectories[:_SHOWN_TRAJECTORIES]
        print_trajectories(shown, policy.tokenizer, rich.get_console())
    if told := told_at_end(task.retriever):
        result["search"] = counts_of(task.retriever)
    result["seconds"] = time.perf_counter() - began
    if is_first():
        (workdir / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print_summary(result, rich.get_console())
    if told:
        print(one_line(told))
    return result


if __name__ == "__main__":
    cli.run(main)
