"""What the programs of experiments share: flags, and running a plan to its table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import rich
from absl import flags

from sr1_jax import cluster
from sr1_jax.experiments.plan import Plan
from sr1_jax.experiments.report import print_table, write_table
from sr1_jax.experiments.stages import cluster_flags, print_commands, run_stages
from sr1_jax.lock import lock_workdir


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that every experiment has."""
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the experiment and its runs.", **define)
    flags.DEFINE_list("seeds", ["0"], "Each has all runs.", **define)
    flags.DEFINE_string("questions", "", "Files to answer; without any those that are developed "
                        "on.", **define)  # fmt: skip
    flags.DEFINE_integer("limit", 0, "First so many questions of a file; 0: all.", **define)
    flags.DEFINE_integer("jobs", 1, "Seeds under way at a time, each with its share of the "
                         "cores; 1 on accelerators.", **define)  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Print the commands, run none.", **define)
    cluster.define_flags(values)


def questions_of(values: flags.FlagValues) -> tuple[str, ...]:
    """The parts of --questions."""
    return tuple(part for part in values.questions.split(",") if part)


def run_experiment(
    plan: Plan,
    values: flags.FlagValues,
    argv: Sequence[str],
    name: str,
    draw: Callable[[Plan, Path], None] | None = None,
) -> None:
    """Runs what is not done yet of a plan, or prints its commands; writes and prints its table.

    Args:
        plan: of the experiment.
        values: of `define_flags`, parsed.
        argv: the command line, whose cluster flags the stages get too.
        name: of the files of the table.
        draw: draws `name`.png.

    Raises:
        ValueError: a bad --jobs; or as `run_stages` and `write_table`.
    """
    if values.dry_run:
        print_commands(plan.stages, plan.folder)
        return
    shared = cluster_flags(argv)
    if values.jobs < 1 or (shared and values.jobs > 1):
        raise ValueError(f"--jobs={values.jobs} must be at least 1, and 1 on a cluster.")
    with contextlib.nullcontext() if shared else lock_workdir(plan.folder):
        run_stages(plan.stages, plan.folder, cluster_flags=shared, jobs=values.jobs)
        table = write_table(plan, name)
        if draw is not None:
            draw(plan, plan.folder / f"{name}.png")
    print_table(table, rich.get_console())
