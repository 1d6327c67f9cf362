"""The end of a run on one page: tables, and the picture of its curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.evaluation.scores import standard_error
from sr1_jax.evaluation.tables import Row, print_scores, score_columns

_CURVES = (
    ("Exact match", {"training": "em", "development, greedy": "dev/greedy/em"}),
    ("Reward", {"training": "reward"}),
    ("Searches a question", {"training": "searches", "development": "dev/greedy/searches"}),
    ("Response tokens", {"with passages": "response_tokens", "policy's own": "policy_tokens"}),
    ("KL to the base policy (nats a token)", {"training": "kl"}),
    ("Entropy (nats a token)", {"training": "policy/entropy"}),
)


def draw_curves(workdir: Path) -> Path:
    """Draws metrics.jsonl as curves.png below `workdir` and returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(workdir)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axis, (title, lines) in zip(axes.flat, _CURVES):
        for label, key in lines.items():
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            if points:
                marker = "o" if len(points) < len(rows) / 2 else None
                axis.plot(*zip(*points), label=label, marker=marker, markersize=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        if axis.lines and len(lines) > 1:
            axis.legend(fontsize=8)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def print_summary(result: Mapping[str, Any], console: Console) -> None:
    """Prints the scores on the way of a supervised start, and those before and after training."""
    rows = [
        Row((f"{c['phase']} {c['step']}",), c)
        for part in ("warm_start", "supervised")
        for c in result.get(part, [])
    ]
    # Beside before and after, there is an after_… for each other world.
    after = sorted(key for key in result if key.startswith("after"))
    rows += [Row((_title(key),), result[key]) for key in ("before", *after) if key in result]
    if not rows:
        return
    last = rows[-1].scores
    columns = [
        column
        for way in ("greedy", "sampled")
        if f"{way}/em" in last
        for column in score_columns(last, prefix=f"{way}/", above=way, brief=True)
    ]
    title = f"Scores on {result['dev_questions']} questions of {result['dev']}"
    print_scores(console, title, ["policy"], rows, columns)
    if "after" in result:
        error = standard_error(result["after"]["greedy/em"], result["dev_questions"])
        console.print(f"Standard error of the last exact match: {error:.3f}.")
    if result.get("scripted_ceiling") is not None:
        console.print(f"A scripted perfect searcher would reach {result['scripted_ceiling']:.3f}.")
    console.print(f"{result['seconds']:.0f} seconds in all.")


def _title(key: str) -> str:
    return key.removeprefix("after_").replace("_", " ")
