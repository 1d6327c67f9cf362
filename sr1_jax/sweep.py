"""A list of runs with several seeds: one table, one picture.

    python -m sr1_jax.sweep --list=configs/sweeps/ablations.txt --workdir=runs/ablations \\
        --seeds=0,1,2

Runs of a seed start from one base policy and answer the same questions at their end. Started again
with the same command, a sweep goes on where it stopped. Writes sweep.md, sweep.json and sweep.png
to the workdir: exact match with 95 % intervals, the difference from the first run of the list, and
the curves of all. --config.KEY=VALUE changes a setting of every run; --dry_run prints the
commands instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import rich
from absl import flags

from sr1_jax import cli, cluster
from sr1_jax.config_files import split_overrides
from sr1_jax.experiments.curves import draw_sweep
from sr1_jax.experiments.plan import Plan, check_overrides, check_questions, world_files
from sr1_jax.experiments.report import print_table, write_table
from sr1_jax.experiments.stages import (
    cluster_flags,
    print_commands,
    run_stages,
    seeds_of,
)
from sr1_jax.experiments.sweeps import checked_configs, read_list, sweep_plan
from sr1_jax.lock import lock_workdir
from sr1_jax.paths import local_path


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("list", None, "File of runs: a name, a file of settings and changes to it "
                        "a line.", **define)  # fmt: skip
    flags.DEFINE_string("workdir", None, "Folder of the sweep and its runs.", **define)
    flags.DEFINE_list("seeds", ["0"], "Each has all runs.", **define)
    flags.DEFINE_list("runs", [], "Names of the list; without any all.", **define)
    flags.DEFINE_string("questions", "", "Files to answer; without any those that the first run "
                        "develops on.", **define)  # fmt: skip
    flags.DEFINE_integer("limit", 0, "First so many questions of a file; 0: all.", **define)
    flags.DEFINE_integer("jobs", 1, "Seeds under way at a time, each with its share of the "
                         "cores; 1 on accelerators.", **define)  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Print the commands, run none.", **define)
    cluster.define_flags(values)
    rest, overrides = split_overrides(argv)
    cli.parse(values, rest, required=("list", "workdir"), usage=__doc__)
    folder = local_path(values.workdir, "--workdir").resolve()
    plan = _plan(values, overrides, folder)
    if values.dry_run:
        print_commands(plan.stages, folder)
        return
    shared = cluster_flags(argv)
    if values.jobs < 1 or (shared and values.jobs > 1):
        raise ValueError(f"--jobs={values.jobs} must be at least 1, and 1 on a cluster.")
    with contextlib.nullcontext() if shared else lock_workdir(folder):
        run_stages(plan.stages, folder, cluster_flags=shared, jobs=values.jobs)
        table = write_table(plan, "sweep")
        draw_sweep(plan, folder / "sweep.png")
    print_table(table, rich.get_console())


def _plan(values: flags.FlagValues, overrides: Sequence, folder) -> Plan:
    entries = read_list(local_path(values.list, "--list"))
    if values.runs:
        known = [entry.name for entry in entries]
        for name in values.runs:
            if name not in known:
                raise ValueError(f"--runs has {name!r}; the list has {', '.join(known)}.")
        # The first of the list stays: it is what the others are compared with.
        entries = [e for e in entries if e is entries[0] or e.name in values.runs]
    if values.limit < 0:
        raise ValueError(f"--limit must not be negative, not {values.limit}; 0 stands for all.")
    seeds = seeds_of(values.seeds)
    check_overrides([*overrides, *(pair for entry in entries for pair in entry.overrides)])
    configs = checked_configs(entries, overrides)
    first = configs[entries[0].name]
    files = [part for part in (values.questions or first.data.dev).split(",") if part]
    asked, corpora = dict.fromkeys(seeds, files), None
    if first.data.world_people:
        corpora = world_files(folder, seeds, "corpus")
    if first.data.world_people and not values.questions:
        asked = {seed: [path] for seed, path in world_files(folder, seeds, "heldout").items()}
    elif not files:
        raise ValueError("There are no questions to answer: give --questions, or data.dev.")
    if not first.data.world_people or values.questions:
        check_questions(files, first.data.folder)
    return sweep_plan(
        entries,
        configs,
        tuple(overrides),
        folder,
        seeds=seeds,
        asked=asked,
        limit=values.limit,
        corpora=corpora,
    )


if __name__ == "__main__":
    cli.run(main)
