"""What a step leaves for people: a row of metrics, some episodes, figures on the screen."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from sr1_jax.cluster import is_first
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.metrics import MetricsWriter, NoWriter, read_metrics
from sr1_jax.evaluation.progress import Live
from sr1_jax.evaluation.scores import hops_of, means_by, score
from sr1_jax.evaluation.trajectory_log import write_trajectories
from sr1_jax.evaluation.wandb_board import WandbBoard
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import write_whole
from sr1_jax.rewards import exact_match
from sr1_jax.training.dynamic_sampling import Sampled
from sr1_jax.training.same_settings import as_json_values

# Of the tokens of responses.
_PERCENTILES = (5, 50, 95)


class StepLog(contextlib.AbstractContextManager):
    """Writes what steps leave; of several processes the first alone does.

    Args:
        config: of the run.
        workdir: of the run.
        tokenizer: of the policy.
        start: steps done already.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        tokenizer: Tokenizer,
        *,
        start: int,
    ):
        self._workdir = workdir
        self._folder = workdir / "trajectories"
        self._tokenizer = tokenizer
        self._writer = MetricsWriter(workdir, start_step=start) if is_first() else NoWriter()
        self._board = None
        if config.log.wandb and is_first():
            self._board = WandbBoard(config.log.wandb, workdir, as_json_values(config.to_dict()))
        self._live = Live("training", config.steps, start=start)

    def write(
        self,
        step: int,
        metrics: Mapping[str, float],
        trajectories: Sequence[Trajectory],
        rows: Sequence[int],
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Writes the metrics of a step and some of its trajectories, and shows what tells most.

        Args:
            step: of training.
            metrics: of the step.
            trajectories: that it trained on.
            rows: which of them to keep.
            arrays: what the learner made of these, by name, [len(rows), T] each.
        """
        self._writer.write(step, metrics)
        if self._board is not None:
            self._board.write(step, metrics)
        if is_first():
            write_trajectories(
                self._folder, step, trajectories, self._tokenizer, rows=rows, arrays=arrays
            )
        self._live.update(
            step,
            reward=metrics["reward"],
            EM=metrics["em"],
            searches=metrics["searches"],
            entropy=metrics["policy/entropy"],
        )

    def go_back(self, step: int, number: int) -> None:
        """Takes back the metrics of the steps after one, which will come again.

        Their rows are kept in undone/<number>.jsonl; their trajectories are overwritten.

        Args:
            step: the last that stands.
            number: of the roll-back.
        """
        if not is_first():
            return
        self._writer.close()
        undone = [row for row in read_metrics(self._workdir) if row["step"] > step]
        lines = "".join(json.dumps(row) + "\n" for row in undone)
        write_whole(self._workdir / "undone" / f"{number}.jsonl", lines)
        self._writer = MetricsWriter(self._workdir, start_step=step)

    def __exit__(self, *_) -> None:
        self._live.close()
        self._writer.close()
        if self._board is not None:
            self._board.close()


def rollout_metrics(sampled: Sampled) -> dict[str, float]:
    """Of all trajectories of a step: means, percentiles of lengths, spread of rewards, exact match
    by source and by number of searches; and the mean reward of those that train. Keys:
    docs/metrics.md."""
    everything = [trajectory for group in sampled.groups for trajectory in group]
    asked = [q for q, group in zip(sampled.questions, sampled.groups) for _ in group]
    trained = [t.reward for t in sampled.trained if t.trains]
    rewards = [t.reward for t in everything]
    means = score(everything, hops_of(asked)) | {
        "reward": float(np.mean(rewards)),
        "reward_std": float(np.std(rewards)),
        "reward_min": float(np.min(rewards)),
        "reward_max": float(np.max(rewards)),
        "trained_reward": float(np.mean(trained)) if trained else 0.0,
        "context_tokens": float(np.mean([len(t.ids) for t in everything])),
    }
    lengths = [len(t.ids) - t.prompt_length for t in everything]
    for percent in _PERCENTILES:
        means[f"response_tokens_p{percent}"] = float(np.percentile(lengths, percent))
    exact = [float(exact_match(t.answer, t.golden_answers)) for t in everything]
    means |= means_by(exact, [len(t.searches) for t in everything], "em/searches_{}".format)
    if len({question.source for question in asked}) > 1:
        means |= means_by(exact, [question.source for question in asked], "em/{}".format)
    for term in everything[0].rewards:
        means[f"reward/{term}"] = float(np.mean([t.rewards[term] for t in everything]))
    return means | (sampled.metrics if len(sampled.groups[0]) > 1 else {})
