"""The picture of a sweep: how the runs learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.experiments.plan import Plan

_PANELS = (
    ("Exact match on development questions", "dev/greedy/em"),
    ("Exact match in training", "em"),
    ("Searches a question", "searches"),
    ("Response tokens", "response_tokens"),
)
# Of noisy figures of single steps the mean of so many shares of the run is drawn.
_POINTS = 40


def curve(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric; of more than `_POINTS` values means of neighbours.

    Args:
        rows: of metrics.jsonl.
        key: of the metric.
    """
    points = np.array([(row["step"], row[key]) for row in rows if row.get(key) is not None])
    if not len(points):
        return np.empty(0), np.empty(0)
    parts = np.array_split(points, min(len(points), _POINTS))
    return tuple(np.array([part.mean(axis=0) for part in parts]).T)


def draw_sweep(plan: Plan, path: Path) -> None:
    """Draws the learning curves of all runs: the mean over seeds, and their range.

    Args:
        plan: whose runs are over.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for axis, (title, key) in zip(axes.flat, _PANELS):
        for number, (name, row) in enumerate(plan.rows.items()):
            found = [
                curve(read_metrics(plan.workdir(seed, row.run)), key)
                for seed in plan.seeds
                if (plan.workdir(seed, row.run) / "metrics.jsonl").is_file()
            ]
            found = [(steps, values) for steps, values in found if len(steps)]
            if not found:
                continue
            shared = found[0][0]
            values = np.array([np.interp(shared, *one) for one in found])
            colour, first = colours[number % len(colours)], name == plan.reference
            axis.plot(
                shared, values.mean(axis=0), label=row.label, color=colour,
                linewidth=2.5 if first else 1.2,
            )  # fmt: skip
            if len(found) > 1:
                axis.fill_between(
                    shared, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12,
                    linewidth=0,
                )  # fmt: skip
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
