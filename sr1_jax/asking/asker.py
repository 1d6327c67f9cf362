"""An engine that is asked one question at a time."""

from __future__ import annotations

import collections
import time

import ml_collections
from jax.sharding import Mesh

from sr1_jax.asking.answer import Answered
from sr1_jax.data.questions import Question
from sr1_jax.environment.watched import Event, Watch, Wrote
from sr1_jax.rollout import Engine
from sr1_jax.sharding import batch_parts

# Tokens between two looks at what was written: few, so that text comes steadily.
_DECODE_STEPS = 4


def asking_config(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    *,
    passages: int = 0,
    temperature: float | None = None,
) -> ml_collections.ConfigDict:
    """The settings of a run, for one question at a time: as few slots as the mesh has places for.

    Args:
        config: of the run.
        mesh: the device mesh.
        passages: that a search brings back; 0: as the run's.
        temperature: of sampling; None: as the run's.
    """
    config = config.copy_and_resolve_references()
    rollout = config.rollout
    rollout.slots = batch_parts(mesh)
    rollout.decode_steps = min(rollout.decode_steps, _DECODE_STEPS)
    if passages:
        rollout.passages = passages
    if temperature is not None:
        rollout.temperature = float(temperature)
    return config


class Asker:
    """Asks an engine; questions know nothing of each other.

    Args:
        engine: of the policy; one that keeps caches answers sooner.
        seed: of what is sampled. A question that comes again is sampled anew.
    """

    def __init__(self, engine: Engine, seed: int = 0):
        self._engine, self._seed = engine, seed
        self._asked: collections.Counter[str] = collections.Counter()

    def warm_up(self) -> None:
        """Compiles all that an answer needs, and prefills what all prompts begin with."""
        self._engine.warm_up()
        self._prefill()

    def check(self, question: str) -> None:
        """Refuses a question that cannot be asked.

        Raises:
            ValueError: naming it.
        """
        check_text(question)
        if not self._engine.fits(_as_question(question)):
            raise ValueError(
                f"The question {question[:40]!r}… leaves no room for an answer: shorten it, or "
                "raise rollout.max_context_tokens."
            )

    def ask(self, question: str, watch: Watch) -> Answered:
        """Answers a question.

        Args:
            question: at least one word.
            watch: is told what happens, as soon as it happens.

        Raises:
            ValueError, RuntimeError: as `check`; or a tool failed as often as its options allow.
        """
        self.check(question)
        began, first = time.perf_counter(), None

        def told(asked: Question, sample: int, event: Event) -> None:
            nonlocal first
            if first is None and isinstance(event, Wrote):
                first = time.perf_counter() - began
            watch(asked, sample, event)

        seed = self._seed + self._asked[question]
        self._asked[question] += 1
        try:
            (trajectory,) = self._engine.run([_as_question(question)], seed=seed, watch=told)
        except (KeyboardInterrupt, RuntimeError):
            # The engine has let go of its cache; the device fills it while the next is typed.
            self._prefill()
            raise
        return Answered(question, trajectory, time.perf_counter() - began, first)

    def _prefill(self) -> None:
        """Feeds what all prompts begin with."""
        self._engine.prefill(_as_question("?"))


def check_text(question: str) -> None:
    """Refuses a question without words, which is known before anything is loaded.

    Raises:
        ValueError: saying so.
    """
    if not question.strip():
        raise ValueError("A question is empty; ask something.")


def _as_question(question: str) -> Question:
    # The text names the question: what is sampled does not depend on what was asked before. Nobody
    # has an answer to compare with; what the episode earns is not looked at.
    return Question(f"ask:{question}", question, ("not known",))
