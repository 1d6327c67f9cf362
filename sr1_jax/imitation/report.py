"""What was written: kinds, lengths, questions left out and why, and how well first queries find."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sr1_jax.data.questions import Question
from sr1_jax.environment import Trajectory
from sr1_jax.imitation.asked import Asked
from sr1_jax.imitation.plans import KINDS, Plan
from sr1_jax.imitation.shown import Shown

_PERCENTILES = (50, 95, 100)


class Report:
    """Counts.

    Args:
        passages: that a search brings back.
    """

    def __init__(self, passages: int):
        self._passages = passages
        # [source][kind], [source][reason]
        self.kinds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.left_out: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self._lengths: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
        self._searches: collections.Counter = collections.Counter()
        self._in_passage = 0
        # [source, variant] -> questions asked so; of these found in the first 1, 2, … passages.
        self._asked: collections.Counter = collections.Counter()
        self._found: dict[tuple[str, str], np.ndarray] = {}

    def count(self, question: Question, plan: Plan, trajectory: Trajectory) -> None:
        """Counts a trace that is kept."""
        self.kinds[question.source][plan.kind] += 1
        self._lengths[plan.kind].append((len(trajectory.ids), int(trajectory.mask.sum())))
        self._searches[len(trajectory.searches)] += 1
        self._in_passage += plan.in_passage

    def leave_out(self, question: Question, reason: str) -> None:
        """Counts a question without a trace."""
        self.left_out[question.source][reason] += 1

    def count_recall(self, asked: Asked, shown: Mapping[str, Shown]) -> None:
        """Counts what first queries find: whether an answer stands in the first passages.

        All passages count whole, whether they are shown or cut; questions whose answer lies in
        themselves are left out.
        """
        if not asked.findable:
            return
        for variant, found in shown.items():
            key = (asked.question.source, variant)
            self._asked[key] += 1
            holds = [
                asked.finder.find(f"{p.title}\n{p.text}") is not None
                for p in found.passages[: self._passages]
            ]
            holds += [False] * (self._passages - len(holds))
            before = self._found.get(key, np.zeros(self._passages, int))
            self._found[key] = before + np.logical_or.accumulate(holds)

    def reasons(self) -> str:
        """Why questions were left out, the commonest reason first."""
        total = sum(self.left_out.values(), collections.Counter())
        return "; ".join(f"{reason} ({count})" for reason, count in total.most_common())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "traces": sum(map(len, self._lengths.values())),
            "kinds": {source: dict(counts) for source, counts in sorted(self.kinds.items())},
            "left_out": {source: dict(counts) for source, counts in sorted(self.left_out.items())},
            "searches": {str(n): count for n, count in sorted(self._searches.items())},
            "answers_as_in_a_passage": self._in_passage,
            "lengths": {kind: lengths for kind, lengths in self._length_rows()},
            "recall": [
                {
                    "source": source,
                    "query": variant,
                    "questions": self._asked[source, variant],
                    "recall": (counts / self._asked[source, variant]).round(4).tolist(),
                }
                for (source, variant), counts in sorted(self._found.items())
            ],
        }

    def _length_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        everything = [pair for pairs in self._lengths.values() for pair in pairs]
        for kind in (*KINDS, "all"):
            pairs = everything if kind == "all" else self._lengths.get(kind, [])
            if pairs:
                tokens, policy = np.array(pairs).T
                yield (
                    kind,
                    {
                        "traces": len(pairs),
                        "tokens": _percentiles(tokens),
                        "policy_tokens": _percentiles(policy),
                    },
                )

    def print(self, console: Console) -> None:
        """Prints tables."""
        sources = sorted({*self.kinds, *self.left_out})
        _print_counts(console, "traces", sources, self.kinds, KINDS)
        reasons = collections.Counter()
        for counts in self.left_out.values():
            reasons.update(counts)
        if reasons:
            order = [reason for reason, _ in reasons.most_common()]
            _print_counts(console, "questions left out", sources, self.left_out, order)
        table = _table("tokens: median, 95 %, most", ["kind", "traces", "all", "of the policy"])
        for kind, row in self._length_rows():
            lengths = (" ".join(map(str, row[key])) for key in ("tokens", "policy_tokens"))
            table.add_row(kind, str(row["traces"]), *lengths)
        console.print(table)
        ranks = [f"top {rank}" for rank in range(1, self._passages + 1)]
        table = _table("answers found by first queries", ["source", "query", "questions", *ranks])
        for row in self.to_dict()["recall"]:
            shares = (f"{share:.3f}" for share in row["recall"])
            table.add_row(row["source"], row["query"], str(row["questions"]), *shares)
        console.print(table)


def _percentiles(values: np.ndarray) -> list[int]:
    return [int(np.percentile(values, q, method="nearest")) for q in _PERCENTILES]


def _print_counts(
    console: Console,
    title: str,
    sources: Sequence[str],
    counts: Mapping[str, collections.Counter],
    names: Sequence[str],
) -> None:
    table = _table(title, ["", *sources, "all"])
    for name in names:
        row = [counts[source][name] if source in counts else 0 for source in sources]
        if sum(row):
            table.add_row(name, *map(str, row), str(sum(row)))
    console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table
