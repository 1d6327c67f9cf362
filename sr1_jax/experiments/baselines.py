"""The rows of the paper's table (arXiv 2503.09516, table 2), and the stages that make them.

All rows of a seed start from one base policy, read the same corpus, and answer the same questions.
Prompted rows are the base policy with another prompt; SFT, R1, rejection sampling and Search-R1
train it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from sr1_jax.experiments.derived import Overrides
from sr1_jax.experiments.plan import BASE, Plan, Row, from_base
from sr1_jax.training.phases import ANSWERS


class Baseline(NamedTuple):
    """A row of the table.

    Attributes:
        label: as people call it.
        method: that its policy answers by.
        training: "" for the base policy as it is, supervised, or rl.
        meaning: in a few words.
    """

    label: str
    method: str
    training: str
    meaning: str


# In the order of the paper; Search-R1 last.
BASELINES = {
    "direct": Baseline("Direct inference", "direct", "", "the base policy answers at once"),
    "cot": Baseline("Chain of thought", "cot", "", "it thinks, then answers"),
    "ircot": Baseline("IRCoT", "ircot", "", "each thought is a query (arXiv 2212.10509)"),
    "search_o1": Baseline(
        "Search-o1", "search_o1", "", "it searches, and reads in a prompt apart (arXiv 2501.05366)"
    ),
    "rag": Baseline("RAG", "rag", "", "passages for the question are in the prompt"),
    "search": Baseline("Search, untrained", "search", "", "where Search-R1 starts"),
    "sft": Baseline("SFT", "direct", "supervised", "trained on the golden answers"),
    "r1": Baseline("R1", "cot", "rl", "the same reinforcement learning without a search"),
    "rejection": Baseline(
        "Rejection sampling", "search", "supervised", "trained on its own correct searches"
    ),
    "grpo": Baseline("Search-R1, GRPO", "search", "rl", "groups of samples instead of a critic"),
    "ppo": Baseline("Search-R1, PPO", "search", "rl", "the paper's first choice"),
}
# What gains are counted over: the paper's own rows.
SEARCH_R1 = ("ppo", "grpo")


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """What a table is made of.

    Attributes:
        config: FILE.py[:argument] of Search-R1 with PPO.
        grpo: the same with GRPO; "": `config` with the paper's settings of GRPO.
        overrides: of the command line, for both.
        rows: keys of `BASELINES`.
        seeds: of the runs.
        questions: files to answer; (): those that the config develops on.
        limit: of each file; 0: all.
        rejection_samples: episodes a training question, of which the correct ones are learned.
        rejection_questions: training questions that are sampled; 0: all.
        supervised_rate: learning rate of SFT and of rejection sampling.
        supervised_epochs: passes of both over their examples.
    """

    config: str
    grpo: str = ""
    overrides: Overrides = ()
    rows: tuple[str, ...] = tuple(BASELINES)
    seeds: tuple[int, ...] = (0,)
    questions: tuple[str, ...] = ()
    limit: int = 0
    rejection_samples: int = 5
    rejection_questions: int = 0
    supervised_rate: float = 1e-5
    supervised_epochs: float = 3.0


def table_plan(
    config: ml_collections.ConfigDict,
    options: TableOptions,
    folder: Path,
    *,
    trained: Mapping[int, Sequence[str]],
    asked: Mapping[int, Sequence[str]],
    index: str = "",
    corpora: Mapping[int, str] | None = None,
) -> Plan:
    """The stages of a table.

    Args:
        config: of Search-R1 with PPO, overrides applied.
        options: what the table is made of.
        folder: of the table, absolute.
        trained: files of the training questions, by seed: for rejection sampling.
        asked: files that every row answers, by seed.
        index: see `from_base`.
        corpora: see `Plan`.
    """
    first = next((row for row in SEARCH_R1 if row in options.rows), options.rows[-1])
    plan = Plan(folder, options.seeds, asked, reference=first, limit=options.limit, corpora=corpora)
    for row in options.rows:
        trains = bool(BASELINES[row].training)
        label, method = BASELINES[row].label, BASELINES[row].method
        plan.rows[row] = Row(label, method, row if trains else BASE, of_base=not trains)
    given = (options.config, options.overrides)
    for seed in options.seeds:
        base = plan.train_base(seed, config, *given)
        prompted = [row.method for row in plan.rows.values() if row.of_base]
        if prompted:
            plan.evaluate(seed, "prompted", BASE, *given, base, prompted, "--base")
        start = from_base(config, plan.workdir(seed, BASE), index)
        for row in options.rows:
            if BASELINES[row].training:
                _add_trained(plan, seed, row, options, start, trained[seed])
    return plan


def _add_trained(
    plan: Plan,
    seed: int,
    row: str,
    options: TableOptions,
    start: Mapping[str, Any],
    questions: Sequence[str],
) -> None:
    """Adds the training of a row, and its evaluation."""
    baseline, config = BASELINES[row], options.config
    values: dict[str, Any] = dict(start) | {"method": baseline.method}
    if baseline.training == "supervised":
        examples = ANSWERS
        if row == "rejection":
            examples = str(_add_samples(plan, seed, options, questions))
        phase = {
            "name": row,
            "examples": examples,
            "epochs": options.supervised_epochs,
            "learning_rate": options.supervised_rate,
        }
        values |= {
            "steps": 0, "warm_start.phases": (phase,), "warm_start.optimizer": "adam",
        }  # fmt: skip
    elif row == "grpo" and options.grpo:
        config = options.grpo
    elif row == "grpo":
        values |= {
            "samples": 5,
            "learner.algorithm": "grpo",
            "learner.kl_in": "loss",
            "learner.kl_kind": "k3",
        }
    plan.train(seed, row, config, options.overrides, values)
    plan.evaluate(seed, row, row, config, options.overrides, values, [baseline.method])


def _add_samples(plan: Plan, seed: int, options: TableOptions, questions: Sequence[str]) -> Path:
    """Adds the sampling of training questions; returns the file of correct episodes."""
    examples = plan.workdir(seed, BASE) / "rejection.examples.jsonl"
    plan.add(
        seed, "rejection_samples", "evaluate", BASE, options.config, options.overrides,
        {"method": "search", "steps": 0},
        "--base", "--method=rejection", "--greedy=false",
        f"--samples={options.rejection_samples}",
        f"--limit={options.rejection_questions}",
        f"--questions={','.join(questions)}",
        f"--examples={examples}",
        *plan.corpus_flag(seed),
    )  # fmt: skip
    return examples


def check_rows(rows: Sequence[str]) -> None:
    """Refuses rows that there are not.

    Raises:
        ValueError: naming the row and those there are.
    """
    if not rows:
        raise ValueError(f"--rows names no row; the rows are {', '.join(BASELINES)}.")
    for row in rows:
        if row not in BASELINES:
            raise ValueError(f"--rows has {row!r}; the rows are {', '.join(BASELINES)}.")
    if len(set(rows)) != len(rows):
        raise ValueError("--rows names a row twice.")
