"""A plan as tables to read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sr1_jax.planning.chips import GIB
from sr1_jax.planning.plan import SPARE, Plan, Row, advice
from sr1_jax.planning.sweep import Case, growth


def print_plan(plan: Plan, console: Console) -> None:
    """All of a plan: memory, time, collectives, the step, and what to change."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.run.mesh.shape.items())
    console.print(
        f"[bold]{plan.topology}[/]  {plan.chips} chips, mesh {mesh}; a device has "
        f"{_gib(plan.chip.memory)} GiB, {plan.chip.flops / 1e12:.0f} TFLOP/s bf16, "
        f"{plan.chip.bandwidth / 1e9:.0f} GB/s, a ring {plan.chip.ring / 1e9:.0f} GB/s"
    )
    held = ", ".join(f"{name} {_gib(size)}" for name, size in plan.resident.items())
    console.print(
        f"Held on a device, GiB: {held}; at rollouts all {_gib(sum(plan.resident.values()))}"
    )
    console.print(_memory_table(plan))
    console.print(_time_table(plan))
    _print_step(plan, console)
    _print_findings(plan, console)


def print_sweep(found: Sequence[tuple[Case, Plan | str]], console: Console) -> None:
    """One line a case, then what more chips give and which term holds it back.

    Args:
        found: cases with their plans, or with why there is none.
        console: to print on.
    """
    columns = ("case", "chips", "fits", "GiB, most", "of GiB", "s/step", "tokens/s/chip",
               "policy update, of peak", "largest term")  # fmt: skip
    table = _table("All cases", columns)
    for case, plan in found:
        if isinstance(plan, str):
            table.add_row(escape(str(case)), "", "refused", *[""] * 6)
            continue
        most = max((row.total for row in plan.rows), default=0)
        update = [r for r in plan.rows if r.name.startswith("policy accumulate") and r.calls]
        table.add_row(
            escape(str(case)),
            str(plan.chips),
            "yes" if plan.all_fit else "NO",
            _gib(most),
            _gib(plan.chip.memory),
            f"{plan.step_seconds:.1f}",
            f"{plan.tokens_per_second:.0f}",
            f"{update[0].share_of_peak:.0%}" if update else "",
            next(iter(plan.terms), ""),
        )
    console.print(table)
    for (one, fewer), (other, more) in itertools.pairwise(found):
        if one.settings != other.settings or isinstance(fewer, str) or isinstance(more, str):
            continue
        given = growth(fewer, more)
        if given is None:
            continue
        terms = ", ".join(
            f"{term} {before:.2f} → {after:.2f} s" for term, before, after in given.held_back[:3]
        )
        console.print(
            f"{escape(str(other))}: {given.chips:.3g} times the chips of {one.topology}, a step "
            f"{given.speed:.2f} times as fast" + (f"; held back by {terms}." if terms else ".")
        )
    for case, plan in found:
        if isinstance(plan, str):
            console.print(f"{escape(str(case))} refused: {escape(plan)}")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table


def _memory_table(plan: Plan) -> Table:
    columns = ("program", "arguments", "temporaries", "output", "aliased", "beside", "together",
               "free", "fits", "largest with V")  # fmt: skip
    table = _table(f"Memory of a device, GiB; {SPARE:.0%} has to stay free", columns)
    for row in plan.rows:
        if row.memory is None:
            table.add_row(row.name, *[""] * 4, _gib(sum(row.beside.values())), "", "", "NO", "")
            continue
        memory = row.memory
        parts = (memory.arguments, memory.temporaries, memory.output, memory.aliased)
        free = 1 - row.total / plan.chip.memory
        vocabulary = (
            escape(f"{row.vocabulary[0]} {_gib(row.vocabulary[1])}") if row.vocabulary else ""
        )
        table.add_row(
            row.name,
            *map(_gib, parts),
            _gib(sum(row.beside.values())),
            _gib(row.total),
            f"{free:.0%}",
            "yes" if plan.fits(row) else "NO",
            vocabulary,
        )
    return table


def _time_table(plan: Plan) -> Table:
    columns = ("program", "calls", "TFLOP", "GB", "GB sent", "ms: FLOPs", "bytes", "cycles",
               "network", "predicted", "of peak")  # fmt: skip
    table = _table("One call on a device; loops count as often as they run", columns)
    for row in plan.rows:
        if row.costs is None or row.time is None:
            table.add_row(row.name, _calls(row), *[""] * 9)
            continue
        costs, time = row.costs, row.time
        table.add_row(
            row.name,
            _calls(row),
            f"{costs.flops / 1e12:.2f}",
            f"{costs.bytes / 1e9:.1f}",
            f"{sum(costs.collectives.values()) / 1e9:.2f}",
            *(f"{1e3 * x:.1f}" for x in (time.compute, time.memory, time.cycles, time.network)),
            f"{1e3 * time.seconds:.1f}",
            f"{row.share_of_peak:.0%}" if row.needed else "",
        )
    return table


def _print_step(plan: Plan, console: Console) -> None:
    config, a = plan.run.config, plan.assumed
    episodes = config.questions * config.samples
    console.print(
        f"A step: {episodes} episodes of {a.length} tokens on average (assumed: prompt "
        f"{a.prompt_tokens}, {a.searches} searches, {a.segment_tokens} sampled a segment, "
        f"observations of {a.observation_tokens}; {a.occupancy:.0%} of decode slots busy)."
    )
    total = plan.step_seconds
    for term, seconds in list(plan.terms.items())[:6]:
        console.print(f"  {term:<20} {seconds:8.2f} s  {seconds / max(total, 1e-9):4.0%}")
    console.print(
        f"  together             {total:8.2f} s, {plan.tokens_per_second:.0f} tokens/s and chip; "
        f"most of it: {next(iter(plan.terms), 'nothing')}. Searches and host work come on top."
    )


def _print_findings(plan: Plan, console: Console) -> None:
    for row in plan.rows:
        if row.costs and row.costs.collectives:
            kinds = ", ".join(
                f"{kind} {sent / 1e9:.2f} GB in {row.costs.collective_calls[kind]}"
                for kind, sent in row.costs.collectives.most_common()
            )
            console.print(f"  {row.name}: {kinds}")
    for row in plan.rows:
        if plan.holds_too_many_logits(row):
            console.print(
                f"[bold]{row.name}[/] holds more logits than learner.chunk_tokens="
                f"{plan.run.config.learner.chunk_tokens} says: {escape(row.vocabulary[0])}."
            )
    loops = [r.name for r in plan.rows if r.costs and r.costs.unknown_loops]
    if loops:
        console.print(f"Loops of unknown length count one step: {', '.join(loops)}.")
    kernels = [r.name for r in plan.rows if r.costs and r.costs.unknown_kernels]
    if kernels:
        console.print(f"Kernels of unknown FLOPs count none: {', '.join(kernels)}.")
    if plan.decode_overhead:
        console.print(
            f"A decode step moves {plan.decode_overhead:.2f} times the bytes of weights and live "
            f"cache: {plan.assumed.filled:.0f} of {plan.run.config.rollout.max_context_tokens} "
            "positions a slot, as of the average episode."
        )
    for row in plan.rows:
        if not plan.fits(row):
            why = row.problem or f"{_gib(row.total)} of {_gib(plan.chip.memory)} GiB together"
            console.print(
                f"[bold]{row.name} does not fit[/]: {why}. Try "
                f"{escape(', or '.join(advice(plan, row)))}."
            )
    if plan.all_fit:
        console.print(f"Everything fits with at least {SPARE:.0%} to spare.")


def _calls(row: Row) -> str:
    return f"{row.calls:.4g}" if row.calls else "–"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"
