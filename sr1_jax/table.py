"""The paper's table: eight baselines and Search-R1, from one base policy, on the same questions.

    python -m sr1_jax.table --config=configs/harder.py --workdir=runs/table --seeds=0,1,2

Trains what has to be trained and asks every row the same questions, stage by stage; started again
with the same command it goes on where it stopped. Writes table.md and table.json to the workdir:
exact match by set and on average, with 95 % intervals, and what Search-R1 gains over each row.
--dry_run prints the commands instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import rich
from absl import flags

from sr1_jax import cli, cluster
from sr1_jax.data.sets import is_name, read_set
from sr1_jax.experiments.baselines import (
    BASELINES,
    TableOptions,
    check_rows,
    table_plan,
)
from sr1_jax.experiments.derived import derived_config
from sr1_jax.experiments.plan import Plan, check_overrides, check_questions, world_files
from sr1_jax.experiments.report import print_table, write_table
from sr1_jax.experiments.stages import cluster_flags, print_commands, run_stages, seeds_of
from sr1_jax.lock import lock_workdir
from sr1_jax.paths import local_path
from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import RUN, unknown_setting
from sr1_jax.training.task import index_name


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the table and its runs.", **define)
    flags.DEFINE_string("grpo", "", "File of settings of the row grpo; without it those of "
                        "--config, in groups of five, the KL in the loss.", **define)  # fmt: skip
    flags.DEFINE_list("rows", list(BASELINES), "Rows: " + "; ".join(
        f"{name}, {row.meaning}" for name, row in BASELINES.items()
    ), **define)  # fmt: skip
    flags.DEFINE_list("seeds", ["0"], "Of the runs; each has all rows.", **define)
    flags.DEFINE_string("questions", "", "Files to answer; without any those that the config "
                        "develops on.", **define)  # fmt: skip
    flags.DEFINE_integer("limit", 0, "First so many questions of a file; 0: all.", **define)
    flags.DEFINE_integer("rejection_samples", 5, "Episodes a training question.", **define)
    flags.DEFINE_integer("rejection_questions", 0, "Training questions that are sampled; 0: "
                         "all.", **define)  # fmt: skip
    flags.DEFINE_float("supervised_rate", 1e-5, "Learning rate of SFT and rejection "
                       "sampling.", **define)  # fmt: skip
    flags.DEFINE_float("supervised_epochs", 3.0, "Passes of both over their examples.", **define)
    flags.DEFINE_integer("jobs", 1, "Seeds under way at a time, each with its share of the "
                         "cores; 1 on accelerators.", **define)  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "Print the commands, run none.", **define)
    cluster.define_flags(values)
    cli.parse(values, argv, required=("config", "workdir"), usage=__doc__)
    folder = local_path(values.workdir, "--workdir").resolve()
    config, options = values.config, _options(values)
    plan = make_plan(config, options, folder)
    if values.dry_run:
        print_commands(plan.stages, folder)
        return
    shared = cluster_flags(argv)
    if values.jobs < 1 or (shared and values.jobs > 1):
        raise ValueError(f"--jobs={values.jobs} must be at least 1, and 1 on a cluster.")
    with contextlib.nullcontext() if shared else lock_workdir(folder):
        run_stages(plan.stages, folder, cluster_flags=shared, jobs=values.jobs)
        table = write_table(plan, "table")
    print_table(table, rich.get_console())


def make_plan(config: ml_collections.ConfigDict, options: TableOptions, folder: Path) -> Plan:
    """The stages of a table.

    Args:
        config: of Search-R1 with PPO, overrides applied.
        options: what the table is made of.
        folder: of the table, absolute.

    Raises:
        ValueError: settings that cannot work, of any of the runs.
    """
    check_rows(options.rows)
    check_overrides(options.overrides, ("seed", "method"))
    check_config(config)
    if "grpo" in options.rows and options.grpo:
        check_config(derived_config(options.grpo, options.overrides, {}))
    if config.base.workdir:
        raise ValueError(
            "base.workdir is set, but a table makes a base policy of its own: clear it."
        )
    data, corpora = config.data, None
    if data.world_people:
        trained, asked = (
            {seed: [path] for seed, path in world_files(folder, options.seeds, name).items()}
            for name in ("train", "heldout")
        )
        corpora = world_files(folder, options.seeds, "corpus")
    else:
        if not options.questions and not data.dev:
            raise ValueError("There are no questions to answer: give --questions, or data.dev.")
        trained, asked = (
            {seed: [part for part in text.split(",") if part] for seed in options.seeds}
            for text in (data.questions, data.dev)
        )
    if options.questions:
        asked = dict.fromkeys(options.seeds, options.questions)
    if not data.world_people or options.questions:
        check_questions(asked[options.seeds[0]], data.folder)
    if "rejection" in options.rows and not data.world_people:
        trained = dict.fromkeys(options.seeds, _to_sample(config, asked[options.seeds[0]]))
    corpus = Path(data.corpus) if data.corpus and not data.index else None
    index = index_name(config, corpus) if corpus and config.base.path else ""
    return table_plan(
        config, options, folder, trained=trained, asked=asked, index=index, corpora=corpora
    )


def _to_sample(config: ml_collections.ConfigDict, asked: Sequence[str]) -> tuple[str, ...]:
    """The training questions that rejection sampling samples.

    Raises:
        ValueError: they are chosen by settings that evaluations do not know, or some are asked.
    """
    data = config.data
    for key in ("filter", "limit", "weights"):
        if data[key]:
            raise ValueError(
                f"data.{key} chooses among training questions, and rejection sampling samples "
                "whole files: leave its row out, or write the chosen questions to a file."
            )
    parts = [part for part in data.questions.split(",") if part]
    specs = tuple(f"{part}:train" if is_name(part) and ":" not in part else part for part in parts)
    trained = {q.id for spec in specs for q in read_set(spec, data.folder, training=True)}
    both = [q.id for spec in asked for q in read_set(spec, data.folder) if q.id in trained]
    if both:
        raise ValueError(
            f"Question {both[0]} is asked, and rejection sampling would learn from it: "
            "data.questions and the questions that are asked have to differ."
        )
    return specs


def _options(values: flags.FlagValues) -> TableOptions:
    file, overrides = cli.config_given(values)
    seeds = seeds_of(values.seeds)
    for name in ("supervised_rate", "supervised_epochs"):
        if values[name].value <= 0:
            raise ValueError(f"--{name} must be above 0, not {values[name].value}.")
    for name, least in (("limit", 0), ("rejection_questions", 0), ("rejection_samples", 1)):
        if values[name].value < least:
            raise ValueError(f"--{name} must be at least {least}, not {values[name].value}.")
    return TableOptions(
        config=file,
        grpo=values.grpo,
        overrides=tuple(overrides),
        rows=tuple(values.rows),
        seeds=seeds,
        questions=tuple(part for part in values.questions.split(",") if part),
        limit=values.limit,
        rejection_samples=values.rejection_samples,
        rejection_questions=values.rejection_questions,
        supervised_rate=values.supervised_rate,
        supervised_epochs=values.supervised_epochs,
    )


if __name__ == "__main__":
    cli.run(main)
