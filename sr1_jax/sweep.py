"""A list of runs with several seeds: one table, one picture.

    python -m sr1_jax.sweep --list=configs/sweeps/paper_ablations.txt --workdir=runs/ablations \\
        --seeds=0,1,2

Runs of a seed start from one base policy and answer the same questions at their end. Started again
with the same command, a sweep goes on where it stopped. Writes sweep.md, sweep.json and sweep.png
to the workdir: exact match with 95 % intervals, the difference from the first run of the list, and
the curves of all. --config.KEY=VALUE changes a setting of every run; --dry_run prints the
commands instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sr1_jax import cli
from sr1_jax.config_files import split_overrides
from sr1_jax.experiments.curves import draw_sweep
from sr1_jax.experiments.derived import Overrides
from sr1_jax.experiments.plan import Plan, check_overrides, files_asked, index_of
from sr1_jax.experiments.program import define_flags, questions_of, run_experiment
from sr1_jax.experiments.stages import seeds_of
from sr1_jax.experiments.sweeps import checked_configs, read_list, sweep_plan
from sr1_jax.paths import disk_path, local_path


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    define_flags(values)
    define = {"flag_values": values}
    flags.DEFINE_string("list", None, "File of runs: a name, a file of settings and changes to it "
                        "a line.", **define)  # fmt: skip
    flags.DEFINE_list("runs", [], "Names of the list; without any all.", **define)
    rest, overrides = split_overrides(argv)
    cli.parse(values, rest, required=("list", "workdir"), usage=__doc__)
    folder = disk_path(values.workdir, "--workdir").resolve()
    run_experiment(_plan(values, overrides, folder), values, argv, "sweep", draw_sweep)


def _plan(values: flags.FlagValues, overrides: Overrides, folder: Path) -> Plan:
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
    asked, corpora = files_asked(first, folder, seeds, questions_of(values))
    return sweep_plan(
        entries,
        configs,
        tuple(overrides),
        folder,
        seeds=seeds,
        asked=asked,
        limit=values.limit,
        corpora=corpora,
        indexes={name: index_of(config) for name, config in configs.items()},
    )


if __name__ == "__main__":
    cli.run(main)
