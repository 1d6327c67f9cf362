"""Supervised training: the phases of warm_start.phases one after the other, each with scores."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.cluster import is_first
from sr1_jax.evaluation.progress import Live
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.storage.workdir import place_of
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.examples import phase_examples
from sr1_jax.training.phases import Phase, phases_of
from sr1_jax.training.policies import scratch_config
from sr1_jax.training.same_settings import as_json_values, check_same_settings
from sr1_jax.training.supervised import Example, SupervisedTrainer, supervised_batches
from sr1_jax.training.task import Task

# Steps over which the learning rate of a phase rises, or a quarter of the phase where that is less.
_WARMUP_STEPS = 30
# Checkpoints are numbered over all phases: a phase has fewer steps than this.
_PHASE_STRIDE = 10_000_000


def train_supervised(
    config: ml_collections.ConfigDict,
    task: Task,
    model: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    evaluate: Callable[[nnx.State], dict[str, float]] | None,
    *,
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Decoder, list[dict[str, Any]]]:
    """Trains on all phases.

    Args:
        config: of the run.
        task: has the examples.
        model: where to start; it is left as it is. With adapters only these train.
        tokenizer: of the model.
        mesh: that it is trained on.
        evaluate: parameters of a plain model -> scores; None: without.
        folder: for checkpoints every config.warm_start.checkpoint_every steps, which
            `forget_progress` deletes once the result is written. None: without.
        facts: JSON-able, that what is taken up again has to have been made with.

    Returns:
        The model at the end, and the scores along the way, each with its phase and step.

    Raises:
        ValueError: as `phase_examples` and `supervised_batches`.
    """
    with contextlib.ExitStack() as stack:
        saved = Saved(None, None)
        if folder is not None and config.warm_start.checkpoint_every:
            folder = place_of(folder.parent) / folder.name
            saved = Saved(stack.enter_context(RunCheckpoints(folder, keep=1)), facts)
        for number, phase in enumerate(phases_of(config.warm_start.phases)):
            if number >= saved.phase:
                examples = phase_examples(
                    config, task, phase, tokenizer, config.seed * 100 + number
                )
                model = _train_phase(
                    config, number, phase, examples, model, tokenizer.pad_id, mesh, evaluate, saved
                )
    return model, saved.scores


def forget_progress(folder: Path) -> None:
    """Deletes the checkpoints of supervised training: its result is written."""
    if is_first():
        epath.Path(place_of(folder.parent) / folder.name).rmtree(missing_ok=True)


def _train_phase(
    config: ml_collections.ConfigDict,
    number: int,
    phase: Phase,
    examples: Sequence[Example],
    model: Decoder,
    pad_id: int,
    mesh: Mesh,
    evaluate: Callable[[nnx.State], dict[str, float]] | None,
    saved: Saved,
) -> Decoder:
    """The model after a phase, whose scores go to `saved`."""
    warm_start = config.warm_start
    steps = phase.steps_for(len(examples), warm_start.batch)
    phase = dataclasses.replace(phase, steps=steps)
    trainer = SupervisedTrainer(
        model,
        mesh,
        schedule=learning_rate(phase),
        optimizer=warm_start.optimizer,
        context_weight=phase.context_weight,
        micro_batch=warm_start.micro_batch,
    )
    del model  # the trainer has a copy of what it changes
    batches = supervised_batches(
        examples,
        batch=warm_start.batch,
        buckets=phase.length_buckets or warm_start.length_buckets,
        pad_id=pad_id,
        seed=config.seed,
    )
    done, every = saved.take_up(trainer, number), warm_start.checkpoint_every
    with contextlib.closing(Live(f"supervised: {phase.name}", steps, start=done)) as live:
        for step, batch in enumerate(itertools.islice(batches, steps), start=1):
            if step <= done:
                continue  # drawn again, so that what follows is what would have followed
            loss = trainer.step(*batch)
            if step % 10 == 0 or step == steps:
                live.update(step, loss=float(loss))
            if evaluate and (step in phase.evaluate_at or step == steps):
                found = evaluate(trainer.policy_params())
                saved.scores.append({"phase": phase.name, "step": step} | found)
            if every and (step % every == 0 or step == steps):
                saved.save(trainer, number, step)
    return trainer.model


class Saved:
    """The checkpoints of supervised training.

    Args:
        checkpoints: where they are; None: nothing is saved.
        facts: that what is taken up again has to have been made with.

    Raises:
        ValueError: what is there was made with other ones.

    Attributes:
        phase: number of the phase that the newest checkpoint is of; 0 without one.
        scores: until then, and those that are found after it.
    """

    def __init__(self, checkpoints: RunCheckpoints | None, facts: Mapping[str, Any] | None):
        self._checkpoints, self._facts = checkpoints, as_json_values(dict(facts or {}))
        self._newest = None if checkpoints is None else checkpoints.latest_step
        found = {} if self._newest is None else checkpoints.facts(self._newest)
        if found:
            check_same_settings(found["facts"], self._facts, what="supervised training")
        self.phase: int = found.get("phase", 0)
        self._step: int = found.get("step", 0)
        self.scores: list[dict[str, Any]] = found.get("scores", [])

    def take_up(self, trainer: SupervisedTrainer, phase: int) -> int:
        """Puts the saved state into the trainer of its phase; returns the steps done in it."""
        if self._newest is None or phase != self.phase:
            return 0
        trainer.state = self._checkpoints.restore(self._newest, trainer.state)
        print(f"Supervised training is taken up after step {self._step}.", flush=True)
        return self._step

    def save(self, trainer: SupervisedTrainer, phase: int, step: int) -> None:
        """Saves the state after `step` steps of a phase, and the scores until then."""
        if self._checkpoints is None:
            return
        facts = {"facts": self._facts, "phase": phase, "step": step, "scores": self.scores}
        self._checkpoints.save(_PHASE_STRIDE * phase + step, trainer.state, facts)


def learning_rate(phase: Phase) -> optax.Schedule:
    """Rises from 0, then falls along a cosine to a share of its highest."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=phase.learning_rate,
        warmup_steps=min(_WARMUP_STEPS, phase.steps // 4),
        decay_steps=phase.steps,
        end_value=phase.learning_rate * phase.final_rate,
    )


def scratch_model(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> Decoder:
    """A small decoder with random parameters, for a tokenizer of its own."""
    return Decoder(scratch_config(config, tokenizer.vocab_size), rngs=nnx.Rngs(config.seed))
