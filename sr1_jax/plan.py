"""Says what a run costs on TPUs, on a machine without one.

    pip install libtpu
    python -m sr1_jax.plan --config=configs/qwen2_5.py:size=7b,algo=ppo --topology=v5e:8x8 \
        [--json=plan.json] [--sweep=v5e:4x4,v5e:8x8] [--every] [--keep=DIR] \
        [--config.key=value …]

Compiles the programs of a step for the topology, with the settings of the config, and prints
memory, predicted time and collectives of each, the step they make, and what to change where it
does not fit. docs/plan.md explains the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

# Before anything imports JAX: the compiler is for TPUs, the host needs none.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import rich.console
from absl import flags

from sr1_jax import cli
from sr1_jax.planning.chips import chip_of
from sr1_jax.planning.plan import Plan, as_json, make_plan
from sr1_jax.planning.tables import print_plan, print_sweep

_ASSUMED = ("prompt_tokens", "searches", "segment_tokens", "observation_tokens")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values)
    define = {"flag_values": values}
    flags.DEFINE_string("topology", None, "TPU slice, e.g. v5e:8x8 or v5p:2x2x4.", **define)
    flags.DEFINE_list("sweep", [], "Several slices, with commas.", **define)
    flags.DEFINE_string("json", "", "Also write everything to this file.", **define)
    flags.DEFINE_bool("every", False, "All length buckets and sizes, not only those of an "
                      "average step and the largest.", **define)  # fmt: skip
    flags.DEFINE_string(
        "only", "", "Programs whose name starts so, e.g. 'policy,critic'.", **define
    )
    flags.DEFINE_string(
        "keep", "", "Folder of compiled programs: none is compiled twice.", **define
    )
    for name in _ASSUMED:
        flags.DEFINE_integer(name, None, f"Assumed {name.replace('_', ' ')}.", **define)
    flags.DEFINE_float("occupancy", None, "Assumed share of busy decode slots.", **define)
    cli.parse(values, argv, required=("config",))
    topologies = [*([values.topology] if values.topology else []), *values.sweep]
    if not topologies:
        raise ValueError("--topology is missing, e.g. --topology=v5e:8x8 (or --sweep=…).")
    for topology in topologies:
        chip_of(topology)
    assumed = {name: values[name].value for name in (*_ASSUMED, "occupancy")}
    console = rich.console.Console(soft_wrap=True)
    plans = []
    for topology in topologies:
        plan = _with_progress(values, topology, assumed)
        plans.append(plan)
        print_plan(plan, console)
        if values.json:
            # After each: a sweep takes an hour, and what is there stays.
            Path(values.json).write_text(json.dumps([as_json(p) for p in plans], indent=1) + "\n")
    if len(plans) > 1:
        print_sweep(plans, console)


def _with_progress(values: flags.FlagValues, topology: str, assumed: dict) -> Plan:
    """The plan of a topology; what is being compiled shows on stderr."""
    errors = rich.console.Console(stderr=True)
    with errors.status(f"{topology}: laying out the run") as status:

        def progress(done: int, total: int, name: str) -> None:
            if name:
                text = f"{topology}: compiling {name} ({done + 1} of {total})"
                status.update(text) if errors.is_terminal else errors.print(text)

        return make_plan(
            values.config,
            topology,
            every=values.every,
            only=values.only,
            keep=values.keep,
            progress=progress,
            **assumed,
        )


if __name__ == "__main__":
    cli.run(main)
