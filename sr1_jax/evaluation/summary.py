"""The end of a run on one page: tables, and the picture of its curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.evaluation.scores import standard_error

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
    """Prints every checkpoint of the warm start, and the scores before and after."""
    rows: list[tuple[str, Mapping[str, float]]] = [
        (f"{c['phase']} {c['step']}", c) for c in result.get("warm_start", [])
    ]
    rows += [(f"{c['phase']} {c['step']}", c) for c in result.get("supervised", [])]
    titles = {
        "before": "before",
        "after": "after",
        "after_facts_changed": "new facts",
    }
    rows += [(title, result[key]) for key, title in titles.items() if key in result]
    if not rows:
        return
    kinds = [kind for kind in ("greedy", "sampled") if f"{kind}/em" in rows[-1][1]]
    parts = ["em", *sorted({k.split("/")[1] for k in rows[-1][1] if "_hop" in k})]
    # Fits 80 columns: what is not a terminal is taken to be that wide.
    title = f"Exact match on {result['dev_questions']} questions of {result['dev']}"
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", overflow="fold")
    for kind in kinds:
        for part in parts:
            table.add_column(
                f"{kind}\n{part.removeprefix('em_').replace('_', '-')}",
                justify="right",
                no_wrap=True,
            )
        table.add_column(f"{kind}\nsearch", justify="right", no_wrap=True)
    for title, scores in rows:
        cells = []
        for kind in kinds:
            for part in parts:
                share = scores.get(f"{kind}/{part}")
                cells.append("" if share is None else f"{share:.3f}")
            cells.append(f"{scores[f'{kind}/searches']:.2f}")
        table.add_row(title, *cells)
    console.print(table)
    if "after" in result:
        error = standard_error(result["after"]["greedy/em"], result["dev_questions"])
        console.print(f"Standard error of the last exact match: {error:.3f}.")
    if "scripted_ceiling" in result:
        console.print(f"A scripted perfect searcher would reach {result['scripted_ceiling']:.3f}.")
    console.print(f"{result['seconds']:.0f} seconds in all.")
