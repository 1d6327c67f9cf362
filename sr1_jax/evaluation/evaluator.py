"""Evaluation while training, and of the result: greedy and sampled."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.data.questions import Question
from sr1_jax.environment import Trajectory
from sr1_jax.evaluation.methods import make_engine
from sr1_jax.evaluation.scores import score_of_those_run
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.retrieval import Retriever


class Evaluator:
    """Runs development questions by one method, each process its share of them.

    Args:
        model: shape of the policy; parameters come with each call.
        tokenizer: of the policy.
        retriever: may be None for `direct`.
        config: of the run.
        method: one of `METHODS`.
        mesh: see `Engine`.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        retriever: Retriever,
        config: ml_collections.ConfigDict,
        method: str,
        *,
        mesh: Mesh | None = None,
    ):
        self._seed = config.seed
        kinds = {"greedy": True} | ({"sampled": False} if config.evaluation.sampled else {})
        self._engines = {
            name: make_engine(model, tokenizer, retriever, config, method, greedy=greedy, mesh=mesh)
            for name, greedy in kinds.items()
        }

    def run(
        self, params: nnx.State, questions: Sequence[Question]
    ) -> tuple[dict[str, float], list[Trajectory]]:
        """Scores of `questions`, prefixed greedy/ and sampled/, and the greedy trajectories."""
        scores: dict[str, float] = {}
        kept: list[Trajectory] = []
        for name, engine in self._engines.items():
            # A seed of its own: evaluation never draws the random stream of training.
            trajectories = engine.run(questions, seed=self._seed + 1, params=params)
            means = score_of_those_run(trajectories, questions)
            scores |= {f"{name}/{key}": value for key, value in means.items()}
            kept = kept or trajectories
        return scores, kept
