"""Development questions: which of them are asked, when, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.agreement import from_first
from sr1_jax.cluster import is_first
from sr1_jax.data.questions import Question, stratified
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.evaluator import Evaluator
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import write_whole
from sr1_jax.retrieval import Retriever
from sr1_jax.training.task import Task

Scores = dict[str, float]


class Development:
    """Scores a policy on a task's development questions.

    Drawn by config.seed, each source with the share that it has of all.

    Args:
        config: of the run.
        task: of the run.
        policy: its shape suffices; parameters come with each call.
        tokenizer: of the policy.
        mesh: that it runs on.
        method: how questions are answered.

    Attributes:
        name: of the set of questions; "" without one.
        count: of the questions asked before and after training.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        task: Task,
        policy: Decoder,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        method: str,
    ):
        self._config, self._task = config, task
        self._policy, self._tokenizer, self._mesh = policy, tokenizer, mesh
        self._method = method
        self.name, questions = next(iter(task.dev.items()), ("", []))
        self._while_training = self._drawn(questions, config.evaluation.questions)
        self._final = self._drawn(questions, config.evaluation.final_questions)
        self.count = len(self._final)
        self._evaluator = self._evaluator_of(task.retriever)

    def while_training(self, params: nnx.State) -> Scores:
        """Scores on config.evaluation.questions questions; none without questions."""
        return self._evaluator.run(params, self._while_training)[0] if self._while_training else {}

    def final(self, params: nnx.State) -> tuple[Scores, list[Trajectory]]:
        """Scores on config.evaluation.final_questions questions, and the greedy trajectories; none
        without questions."""
        return self._evaluator.run(params, self._final) if self._final else ({}, [])

    def final_scores(self, params: nnx.State) -> Scores:
        """The scores of `final`."""
        return self.final(params)[0]

    def other_worlds(self, params: nnx.State) -> dict[str, Scores]:
        """Scores in the other worlds of the task, by name; none without final questions."""
        if not self._final:
            return {}
        count = self._config.evaluation.final_questions
        return {
            name: self._evaluator_of(retriever).run(params, self._drawn(questions, count))[0]
            for name, (retriever, questions) in self._task.other_worlds.items()
        }

    def before(self, params: nnx.State, workdir: Path, facts: Mapping[str, Any]) -> Scores:
        """Scores of the policy before training, which a run that is started again reads back.

        Args:
            params: of that policy.
            workdir: of the run, for before.json.
            facts: that it depends on, JSON-able.
        """
        if not self._final:
            return {}
        path = workdir / "before.json"
        ids = "\n".join(question.id for question in self._final)
        made_by = {
            "facts": dict(facts),
            "questions": hashlib.sha256(ids.encode()).hexdigest(),
            "sampled": self._config.evaluation.sampled,
        }
        kept = from_first(_read(path))
        if kept.get("made_by") == made_by:
            return kept["scores"]
        scores, _ = self.final(params)
        if is_first():
            written = json.dumps({"made_by": made_by, "scores": scores}, indent=1)
            write_whole(path, written + "\n")
        return scores

    def _drawn(self, questions: Sequence[Question], count: int) -> list[Question]:
        return stratified(questions, count, self._config.seed)

    def _evaluator_of(self, retriever: Retriever) -> Evaluator:
        return Evaluator(
            self._policy, self._tokenizer, retriever, self._config, self._method, mesh=self._mesh
        )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
