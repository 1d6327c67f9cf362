"""Says what a run costs on TPUs, on a machine without one.

    pip install libtpu
    python -m sr1_jax.plan --config=configs/qwen2_5.py:size=7b,algo=ppo --topology=v5e:8x8 \
        [--json=plan.json] [--sweep=v5e:4x4,v5e:8x8] [--vary=learner.micro_batch=32,64] \
        [--every] [--keep=DIR] [--config.key=value …]

Compiles the programs of a step for the topology, with the settings of the config, and prints
memory, predicted time and collectives of each, the step they make, and what to change where it
does not fit. docs/plan.md explains the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

# Before anything imports JAX: the compiler is for TPUs, the host needs none.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from pathlib import Path

import ml_collections
import rich.console
from absl import flags
from rich.markup import escape

from sr1_jax import cli
from sr1_jax.chips import chip_of
from sr1_jax.paths import output_or_none
from sr1_jax.planning.plan import Plan, as_json, make_plan
from sr1_jax.planning.preemption import GB, USUAL, Cloud
from sr1_jax.planning.sweep import Case, cases_of
from sr1_jax.planning.tables import print_plan, print_sweep
from sr1_jax.retrieval.listing import IndexShape
from sr1_jax.training.settings import RUN, unknown_setting

_ASSUMED = ("prompt_tokens", "searches", "segment_tokens", "observation_tokens")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("topology", None, "TPU slice, e.g. v5e:8x8 or v5p:2x2x4.", **define)
    flags.DEFINE_list("sweep", [], "Several slices, with commas.", **define)
    flags.DEFINE_multi_string(
        "vary", [], "A setting and several values, e.g. learner.micro_batch=32,64; may be given "
        "again for another setting: all combinations are planned.", **define
    )  # fmt: skip
    flags.DEFINE_string("json", "", "Also write everything to this file.", **define)
    flags.DEFINE_bool("every", False, "All length buckets and sizes, not only those of an "
                      "average step and the largest.", **define)  # fmt: skip
    flags.DEFINE_string(
        "only", "", "Programs whose name starts so, e.g. 'policy,critic'.", **define
    )
    flags.DEFINE_string(
        "keep", "", "Folder of compiled programs: none is compiled twice.", **define
    )
    flags.DEFINE_string(
        "index", "", "Passages and width of a dense index that the devices hold besides, e.g. "
        "21015324x768; its dtype is retrieval.dense.dtype.", **define
    )  # fmt: skip
    for name in _ASSUMED:
        flags.DEFINE_integer(name, None, f"Assumed {name.replace('_', ' ')}.", **define)
    flags.DEFINE_float("occupancy", None, "Assumed share of busy decode slots.", **define)
    flags.DEFINE_float("preemption_hours", USUAL.hours, "Assumed between two.", **define)
    flags.DEFINE_float("preemption_notice", USUAL.notice, "Assumed seconds of it.", **define)
    flags.DEFINE_float("preemption_storage", USUAL.storage / GB, "Assumed GB a second of a host "
                       "to and from storage.", **define)  # fmt: skip
    flags.DEFINE_float("preemption_copy", USUAL.copy / GB, "Assumed GB a second of a host from "
                       "its chips.", **define)  # fmt: skip
    flags.DEFINE_float("preemption_start", USUAL.start, "Assumed seconds until a new run computes.",
                       **define)  # fmt: skip
    cli.parse(values, argv, required=("config",), usage=__doc__)
    topologies = [*([values.topology] if values.topology else []), *values.sweep]
    index = IndexShape.parse(values.index) if values.index else None
    if not topologies:
        raise ValueError("--topology is missing, e.g. --topology=v5e:8x8 (or --sweep=…).")
    for topology in topologies:
        chip_of(topology)
    _cloud_of(values).check()
    cases = cases_of(topologies, values.vary)
    configs = [case.applied(values.config) for case in cases]
    with output_or_none(values.json, "--json") as file:
        _plan_all(values, cases, configs, index, file)


def _cloud_of(values: flags.FlagValues) -> Cloud:
    return Cloud(
        values.preemption_hours,
        values.preemption_notice,
        values.preemption_storage * GB,
        values.preemption_copy * GB,
        values.preemption_start,
    )


def _plan_all(
    values: flags.FlagValues,
    cases: Sequence[Case],
    configs: Sequence[ml_collections.ConfigDict],
    index: IndexShape | None,
    file: Path | None,
) -> None:
    """Plans each case, and shows and writes what is found."""
    assumed = {name: values[name].value for name in (*_ASSUMED, "occupancy")}
    console = rich.console.Console()
    found: list[tuple[Case, Plan | str]] = []
    for case, config in zip(cases, configs):
        if case.settings:
            console.print(f"[bold]{case}[/]")
        try:
            plan = _with_progress(values, case, config, assumed, index)
        except ValueError as error:
            if len(cases) == 1:
                raise
            # What does not fit one slice is no reason to lose the others.
            found.append((case, str(error)))
            console.print(f"{case}: {escape(str(error))}")
            continue
        found.append((case, plan))
        print_plan(plan, console)
        if file:
            # After each: a sweep takes an hour, and what is there stays.
            plans = [as_json(p) | {"settings": c.settings} for c, p in found if isinstance(p, Plan)]
            file.write_text(json.dumps(plans, indent=1) + "\n")
    if len(found) > 1:
        print_sweep(found, console)
    if not any(isinstance(plan, Plan) for _, plan in found):
        raise ValueError(found[0][1])


def _with_progress(
    values: flags.FlagValues,
    case: Case,
    config: ml_collections.ConfigDict,
    assumed: dict,
    index: IndexShape | None,
) -> Plan:
    """The plan of a case; what is being compiled shows on stderr."""
    errors = rich.console.Console(stderr=True)
    with errors.status(f"{case}: laying out the run") as status:

        def progress(done: int, total: int, name: str) -> None:
            if name:
                text = f"{case}: compiling {name} ({done + 1} of {total})"
                status.update(text) if errors.is_terminal else errors.print(text)

        return make_plan(
            config,
            case.topology,
            every=values.every,
            only=values.only,
            keep=values.keep,
            index=index,
            cloud=_cloud_of(values),
            progress=progress,
            **assumed,
        )


if __name__ == "__main__":
    cli.run(main)
