"""A plan as tables to read, none wider than 80 columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sr1_jax.chips import GIB
from sr1_jax.planning.plan import SPARE, Plan, Row, advice
from sr1_jax.planning.preemption import MOST_LOST, held_at_resumption
from sr1_jax.planning.sweep import Case, growth
from sr1_jax.rl.program_keys import Accumulate


def print_plan(plan: Plan, console: Console) -> None:
    """All of a plan: memory, work and time, the step, and what to change."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.run.mesh.shape.items())
    _say(
        console,
        f"[bold]{plan.topology}[/]  {plan.chips} chips, mesh {mesh}; a device has "
        f"{_gib(plan.chip.memory)} GiB, {plan.chip.flops / 1e12:.0f} TFLOP/s bf16, "
        f"{plan.chip.bandwidth / 1e9:.0f} GB/s, a ring {plan.chip.ring / 1e9:.0f} GB/s",
    )
    held = ", ".join(f"{name} {_gib(size)}" for name, size in plan.resident.items())
    _say(
        console,
        f"Held on a device, GiB: {held}; at rollouts all {_gib(sum(plan.resident.values()))}",
    )
    title = f"Memory of a device, GiB; {SPARE:.0%} has to stay free"
    _print_table(console, title, _memory_table(plan))
    title = "Work of one call on a device; loops count as often as they run"
    _print_table(console, title, _work_table(plan))
    _print_table(console, "Time of one call, ms", _time_table(plan))
    _print_step(plan, console)
    _print_preemption(plan, console)
    _print_collectives(plan, console)
    _print_vocabulary(plan, console)
    _print_findings(plan, console)


def print_sweep(found: Sequence[tuple[Case, Plan | str]], console: Console) -> None:
    """One line a case, then what more chips give and which term holds it back.

    Args:
        found: cases with their plans, or with why there is none.
        console: to print on.
    """
    columns = ("", "slice", "chips", "fits", "GiB", "s/step", "tokens/s", "of peak", "largest term")
    table = _table(columns, left=2)
    for number, (case, plan) in enumerate(found, start=1):
        if isinstance(plan, str):
            table.add_row(str(number), case.topology, "", "refused", *[""] * 5)
            continue
        updates = [r for r in plan.rows if r.calls and _is_policy_update(r)]
        table.add_row(
            str(number),
            case.topology,
            str(plan.chips),
            "yes" if plan.all_fit else "NO",
            _gib(max((row.total for row in plan.rows), default=0)),
            f"{plan.step_seconds:.1f}",
            f"{plan.tokens_per_second:.0f}",
            f"{updates[0].share_of_peak:.0%}" if updates else "",
            next(iter(plan.terms), ""),
        )
    _print_table(console, "All cases", table)
    console.print()
    _say(
        console,
        "GiB: of the fullest program; tokens/s: of a chip; of peak: a policy update's FLOPs.",
    )
    for number, (case, _) in enumerate(found, start=1):
        if case.settings:
            _say(console, f"{number:3} {escape(str(case))}")
    _print_growth(found, console)
    for case, plan in found:
        if isinstance(plan, str):
            _say(console, f"{escape(str(case))} refused: {escape(plan)}")


def _print_growth(found: Sequence[tuple[Case, Plan | str]], console: Console) -> None:
    for (one, fewer), (other, more) in itertools.pairwise(found):
        if one.settings != other.settings or isinstance(fewer, str) or isinstance(more, str):
            continue
        given = growth(fewer, more)
        if given is None:
            continue
        terms = ", ".join(
            f"{term} {before:.2f} → {after:.2f} s" for term, before, after in given.held_back[:3]
        )
        _say(
            console,
            f"{escape(str(other))}: {given.chips:.3g} times the chips of {one.topology}, a step "
            f"{given.speed:.2f} times as fast" + (f"; held back by {terms}." if terms else "."),
        )


def _is_policy_update(row: Row) -> bool:
    return isinstance(row.key, Accumulate) and row.key.model == "policy"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False)


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print()
    _say(console, f"[bold]{title}[/]")
    console.print(table)


def _table(columns: Sequence[str], left: int = 1) -> Table:
    """A table whose first columns are texts and the others numbers.

    Args:
        columns: their headings, a word a line; cells are never broken.
        left: how many are texts.
    """
    table = Table(box=rich.box.SIMPLE_HEAD, padding=0, show_edge=False)
    for number, column in enumerate(columns):
        justify = "left" if number < left else "right"
        table.add_column(column.replace(" ", "\n"), justify=justify, no_wrap=True)
    return table


def _memory_table(plan: Plan) -> Table:
    columns = ("program", "given", "temp.", "made", "in place", "also held", "all",
               "free", "fits")  # fmt: skip
    table = _table(columns)
    for row in plan.rows:
        also_held = _gib(sum(row.also_held.values()))
        if row.memory is None:
            table.add_row(row.name, *[""] * 4, also_held, "", "", "NO")
            continue
        memory = row.memory
        parts = (memory.arguments, memory.temporaries, memory.output, memory.aliased)
        table.add_row(
            row.name,
            *map(_gib, parts),
            also_held,
            _gib(row.total),
            f"{1 - row.total / plan.chip.memory:.0%}",
            "yes" if plan.fits(row) else "NO",
        )
    return table


def _work_table(plan: Plan) -> Table:
    columns = ("program", "calls a step", "TFLOP", "GB moved", "GB sent", "of it alone")
    table = _table(columns)
    for row in plan.rows:
        calls = f"{row.calls:.4g}" if row.calls else "–"
        if row.costs is None:
            table.add_row(row.name, calls, *[""] * 4)
            continue
        costs = row.costs
        table.add_row(
            row.name,
            calls,
            _short(costs.flops / 1e12),
            _short(costs.bytes / 1e9),
            _short(sum(costs.collectives.values()) / 1e9),
            _short(costs.blocking / 1e9),
        )
    return table


def _time_table(plan: Plan) -> Table:
    columns = ("program", "FLOPs", "bytes", "cycles", "network", "waits", "predicted", "of peak")
    table = _table(columns)
    for row in plan.rows:
        if row.time is None:
            table.add_row(row.name, *[""] * 7)
            continue
        time = row.time
        waits = time.blocking + time.waiting
        parts = (time.compute, time.memory, time.cycles, time.network, waits, time.seconds)
        table.add_row(
            row.name,
            *map(_ms, parts),
            f"{row.share_of_peak:.0%}" if row.needed else "",
        )
    return table


def _print_step(plan: Plan, console: Console) -> None:
    config, a = plan.run.config, plan.assumed
    console.print()
    episodes = config.questions * config.samples
    _say(
        console,
        f"A step: {episodes} episodes of {a.length} tokens on average (assumed: prompt "
        f"{a.prompt_tokens}, {a.searches} searches, {a.segment_tokens} sampled a segment, "
        f"observations of {a.observation_tokens}; {a.occupancy:.0%} of decode slots busy).",
    )
    total = plan.step_seconds
    for term, seconds in list(plan.terms.items())[:6]:
        _say(console, f"  {term:<20} {seconds:8.2f} s  {seconds / max(total, 1e-9):4.0%}")
    _say(
        console,
        f"  together             {total:8.2f} s, {plan.tokens_per_second:.0f} tokens/s and chip",
    )
    _say(console, "Searches and work of the hosts come on top.")


def _print_preemption(plan: Plan, console: Console) -> None:
    cost = plan.preemption
    if cost is None:
        return
    cloud = cost.cloud
    console.print()
    _say(
        console,
        f"[bold]Preemptions[/] (assumed: one in {cloud.hours:g} h, {cloud.notice:g} s of notice, a "
        f"host moves {cloud.storage / 1e9:g} GB/s to storage and {cloud.copy / 1e9:g} GB/s from "
        f"its chips, programs run after {cloud.start:g} s)",
    )
    _say(
        console,
        f"A checkpoint has {cost.bytes / 1e9:.1f} GB, at most {cost.most_written / 1e9:.1f} a "
        f"host: training waits {cost.pause:.1f} s, it is written after {cost.write:.0f} s, in time "
        f"after {cost.saved_in_time:.0%} of all notices. Coming back takes {cost.comeback:.0f} s.",
    )
    least = cost.best_interval()
    if math.isinf(least):
        how = f"Every notice is met: {cost.loss(least):.1%} of the time is lost"
    else:
        how = (
            f"Least is lost, {cost.loss(least):.1%}, with a checkpoint every {least / 60:.0f} "
            f"minutes (checkpoint.minutes)"
        )
    longest = cost.longest_interval(MOST_LOST)
    if longest is None:
        how += f"; {MOST_LOST:.0%} is out of reach."
    elif math.isfinite(longest):
        how += f"; up to every {longest / 60:.0f} minutes it is at most {MOST_LOST:.0%}."
    else:
        how += "."
    _say(console, how)
    _say(
        console,
        f"While it is taken up again a device holds at most {_gib(held_at_resumption(plan.run))} "
        "GiB: no more than in an update.",
    )


def _print_collectives(plan: Plan, console: Console) -> None:
    rows = [row for row in plan.rows if row.costs and row.costs.collectives]
    if not rows:
        return
    table = _table(("program", "", "GB sent", "times"), left=2)
    for row in rows:
        for number, (kind, sent) in enumerate(row.costs.collectives.most_common()):
            calls = f"{row.costs.collective_calls[kind]}"
            table.add_row(row.name if number == 0 else "", kind, _short(sent / 1e9), calls)
    _print_table(console, "Collectives of one call", table)


def _print_vocabulary(plan: Plan, console: Console) -> None:
    rows = [row for row in plan.rows if row.vocabulary]
    if not rows:
        return
    table = _table(("program", "", "GiB"), left=2)
    for row in rows:
        shape, size = row.vocabulary
        table.add_row(row.name, escape(shape), _gib(size))
    _print_table(console, "Largest buffers with a vocabulary axis", table)


def _print_findings(plan: Plan, console: Console) -> None:
    console.print()
    for row in plan.rows:
        if plan.holds_too_many_logits(row):
            _say(
                console,
                f"[bold]{row.name}[/] holds more logits than learner.chunk_tokens="
                f"{plan.run.config.learner.chunk_tokens} says: {escape(row.vocabulary[0])}.",
            )
    loops = [r.name for r in plan.rows if r.costs and r.costs.unknown_loops]
    if loops:
        _say(console, f"Loops of unknown length count one step: {', '.join(loops)}.")
    kernels = [r.name for r in plan.rows if r.costs and r.costs.unknown_kernels]
    if kernels:
        _say(console, f"Kernels of unknown FLOPs count none: {', '.join(kernels)}.")
    if plan.decode_overhead:
        _say(
            console,
            f"A decode step moves {plan.decode_overhead:.2f} times the bytes of weights and live "
            f"cache: {plan.assumed.filled:.0f} of {plan.run.config.rollout.max_context_tokens} "
            "positions a slot, as of the average episode.",
        )
    for row in plan.rows:
        if not plan.fits(row):
            why = row.problem or f"{_gib(row.total)} of {_gib(plan.chip.memory)} GiB together"
            _say(
                console,
                f"[bold]{row.name} does not fit[/]: {escape(why)}. Try "
                f"{escape(', or '.join(advice(plan, row)))}.",
            )
    if plan.all_fit:
        _say(console, f"Everything fits with at least {SPARE:.0%} to spare.")


def _gib(size: float) -> str:
    return _short(size / GIB)


def _short(value: float) -> str:
    """Two digits after the point where there is room for them in five characters, or one, or
    none."""
    digits = 2 if value < 99.995 else 1 if value < 999.95 else 0
    return f"{value:.{digits}f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.{0 if seconds > 1 else 1}f}"
