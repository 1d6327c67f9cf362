"""Writes the traces of many questions: plans all of them together, then plays each."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sr1_jax.data.questions import Question
from sr1_jax.environment import Trajectory
from sr1_jax.evaluation.trajectory_log import spans
from sr1_jax.imitation.plans import LeftOut, Options, Plan, Planner
from sr1_jax.imitation.report import Report
from sr1_jax.imitation.shown import Searches
from sr1_jax.imitation.stage import Stage
from sr1_jax.models.tokenizer import Tokenizer

NOT_FOUND = "the answer was not found"


class Trace(NamedTuple):
    """A question, how it was to be answered, and what came of it."""

    question: Question
    plan: Plan
    trajectory: Trajectory


def write_traces(
    questions: Sequence[Question],
    searches: Searches,
    stage: Stage,
    options: Options,
    *,
    seed: int,
    gave_up: float,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> tuple[list[Trace], Report]:
    """At most one trace a question, in their order.

    Args:
        questions: with different ids.
        searches: what the search tool shows.
        stage: to play plans on.
        options: of plans.
        seed: of what is drawn; each question draws by itself.
        gave_up: most traces that give up, as a share of all.
        progress: told what is done, and how far it is.

    Returns:
        The traces, and what can be said of them.
    """
    report = Report(searches.passages)
    planners = [
        Planner(question, options, random.Random(f"trace {seed} {question.id}"))
        for question in questions
    ]
    plans = _plan_all(planners, searches, lambda share: progress("searching", share))
    for planner in planners:
        firsts = planner.asked.first_queries(options.variants)
        report.count_recall(planner.asked, {v: searches[query] for v, query in firsts.items()})
    traces, hopeless = [], []
    for number, (question, plan) in enumerate(zip(questions, plans)):
        played = stage.play(question, plan) if isinstance(plan, Plan) else plan
        if isinstance(played, LeftOut):
            report.leave_out(question, played.reason)
        elif plan.kind == "gave_up":
            hopeless.append(Trace(question, plan, played))
        else:
            traces.append(Trace(question, plan, played))
        if number % 256 == 0:
            progress("writing", number / len(questions))
    kept = _some(hopeless, gave_up, len(traces), seed)
    for trace in hopeless:
        if trace.question.id not in kept:
            report.leave_out(trace.question, NOT_FOUND)
    kept |= {trace.question.id for trace in traces}
    place = {question.id: number for number, question in enumerate(questions)}
    traces = sorted(
        (trace for trace in [*traces, *hopeless] if trace.question.id in kept),
        key=lambda trace: place[trace.question.id],
    )
    for trace in traces:
        report.count(trace.question, trace.plan, trace.trajectory)
    return traces, report


def _plan_all(
    planners: Sequence[Planner], searches: Searches, progress: Callable[[float], None]
) -> list[Plan | LeftOut]:
    """The plan of each; the queries of all are searched together, round by round."""
    done: dict[int, Plan | LeftOut] = {}
    running = {number: planner.plan() for number, planner in enumerate(planners)}
    wanted = {number: next(planning) for number, planning in running.items()}
    while wanted:
        searches.ask([query for queries in wanted.values() for query in queries])
        still: dict[int, Sequence[str]] = {}
        for number, queries in wanted.items():
            try:
                still[number] = running[number].send({q: searches[q] for q in queries})
            except StopIteration as end:
                done[number] = end.value
        wanted = still
        progress(len(done) / len(planners))
    return [done[number] for number in range(len(planners))]


def _some(hopeless: Sequence[Trace], share: float, others: int, seed: int) -> set[str]:
    """Ids of as many traces that give up that they are at most `share` of all."""
    most = int(share * others / (1 - share)) if share < 1 else len(hopeless)

    def rank(trace: Trace) -> str:
        return hashlib.sha256(f"{seed} {trace.question.id}".encode()).hexdigest()

    return {trace.question.id for trace in sorted(hopeless, key=rank)[:most]}


def as_rows(traces: Sequence[Trace], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The traces as JSON-able data: `ids` and `mask` exactly, `spans` to read."""
    for question, plan, trajectory in traces:
        yield {
            "id": question.id,
            "kind": plan.kind,
            "answer": trajectory.answer,
            "golden_answers": list(trajectory.golden_answers),
            "searches": trajectory.searches,
            "passage_ids": [[p.id for p in hits] for hits in trajectory.passages],
            "tokens": len(trajectory.ids),
            "policy_tokens": int(trajectory.mask.sum()),
            "ids": trajectory.ids.tolist(),
            "mask": trajectory.mask.tolist(),
            "spans": [list(span) for span in spans(trajectory, tokenizer)],
        }
