"""What a step leaves for people: a row of metrics, some episodes, figures on the screen."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sr1_jax.cluster import is_first
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.metrics import MetricsWriter, NoWriter
from sr1_jax.evaluation.progress import Live
from sr1_jax.evaluation.scores import hops_of, score
from sr1_jax.evaluation.trajectory_log import write_trajectories
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.training.dynamic_sampling import Sampled


class StepLog(contextlib.AbstractContextManager):
    """Writes what steps leave; of several processes the first alone does.

    Args:
        workdir: of the run.
        tokenizer: of the policy.
        steps: of the whole run.
        start: steps done already.
    """

    def __init__(self, workdir: Path, tokenizer: Tokenizer, *, steps: int, start: int):
        self._folder = workdir / "trajectories"
        self._tokenizer = tokenizer
        self._writer = MetricsWriter(workdir, start_step=start) if is_first() else NoWriter()
        self._live = Live("training", steps, start=start)

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

    def __exit__(self, *_) -> None:
        self._live.close()
        self._writer.close()


def rollout_metrics(sampled: Sampled) -> dict[str, float]:
    """Means over all trajectories of a step, and over the rewards of those that train."""
    everything = [trajectory for group in sampled.groups for trajectory in group]
    hops = hops_of([q for q, group in zip(sampled.questions, sampled.groups) for _ in group])
    trained = [t.reward for t in sampled.trained if t.trains]
    means = score(everything, hops) | {
        "reward": float(np.mean([t.reward for t in everything])),
        "trained_reward": float(np.mean(trained)) if trained else 0.0,
        "context_tokens": float(np.mean([len(t.ids) for t in everything])),
    }
    for term in everything[0].rewards:
        means[f"reward/{term}"] = float(np.mean([t.rewards[term] for t in everything]))
    return means | (sampled.metrics if len(sampled.groups[0]) > 1 else {})


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Ends a run whose losses or gradients are no longer numbers.

    Raises:
        FloatingPointError: naming the step, the metrics, and what to do.
    """
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"Step {step}: {', '.join(bad)} not finite. The step's row in metrics.jsonl has null "
            "there; nothing was saved after the last checkpoint. Lower learner.learning_rate, "
            "learner.critic_learning_rate, learner.clip or learner.gradient_clip and start again "
            "with the same --workdir: the run goes on from that checkpoint."
        )
