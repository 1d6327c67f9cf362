"""The paper's table: eight baselines and Search-R1, from one base policy, on the same questions.

    python -m sr1_jax.table --config=configs/harder.py --workdir=runs/table --seeds=0,1,2

Trains what has to be trained and asks every row the same questions, stage by stage; started again
with the same command it goes on where it stopped. Writes table.md and table.json to the workdir:
exact match by set and on average, with 95 % intervals, and what Search-R1 gains over each row.
--dry_run prints the commands instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags

from sr1_jax import cli
from sr1_jax.data.sets import is_name, read_set
from sr1_jax.experiments.baselines import (
    BASELINES,
    TableOptions,
    check_rows,
    table_plan,
)
from sr1_jax.experiments.derived import derived_config
from sr1_jax.experiments.plan import (
    Plan,
    check_overrides,
    check_untuned,
    files_asked,
    index_of,
    world_files,
)
from sr1_jax.experiments.program import define_flags, questions_of, run_experiment
from sr1_jax.experiments.stages import seeds_of
from sr1_jax.paths import disk_path
from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import RUN, unknown_setting


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define_flags(values)
    define = {"flag_values": values}
    flags.DEFINE_string("grpo", "", "File of settings of the row grpo; without it those of "
                        "--config, in groups of five, the KL in the loss.", **define)  # fmt: skip
    flags.DEFINE_list("rows", list(BASELINES), "Rows: " + "; ".join(
        f"{name}, {row.meaning}" for name, row in BASELINES.items()
    ), **define)  # fmt: skip
    flags.DEFINE_integer("rejection_samples", 5, "Episodes a training question.", **define)
    flags.DEFINE_integer("rejection_questions", 0, "Training questions that are sampled; 0: "
                         "all.", **define)  # fmt: skip
    flags.DEFINE_float("supervised_rate", 1e-5, "Learning rate of SFT and rejection "
                       "sampling.", **define)  # fmt: skip
    flags.DEFINE_float("supervised_epochs", 3.0, "Passes of both over their examples.", **define)
    cli.parse(values, argv, required=("config", "workdir"), usage=__doc__)
    folder = disk_path(values.workdir, "--workdir").resolve()
    plan = make_plan(values.config, _options(values), folder)
    run_experiment(plan, values, argv, "table")


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
    check_untuned(config)
    if config.base.workdir:
        raise ValueError(
            "base.workdir is set, but a table makes a base policy of its own: clear it."
        )
    data, seeds = config.data, options.seeds
    asked, corpora = files_asked(config, folder, seeds, options.questions)
    if data.world_people:
        trained = {s: [path] for s, path in world_files(folder, seeds, "train").items()}
    elif "rejection" in options.rows:
        trained = dict.fromkeys(seeds, _to_sample(config, asked[seeds[0]]))
    else:
        trained = dict.fromkeys(seeds, ())
    return table_plan(
        config,
        options,
        folder,
        trained=trained,
        asked=asked,
        index=index_of(config),
        corpora=corpora,
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
        questions=questions_of(values),
        limit=values.limit,
        rejection_samples=values.rejection_samples,
        rejection_questions=values.rejection_questions,
        supervised_rate=values.supervised_rate,
        supervised_epochs=values.supervised_epochs,
    )


if __name__ == "__main__":
    cli.run(main)
