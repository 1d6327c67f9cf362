"""The supervised start: the phases of warm_start.phases one after the other, each with scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.evaluation.progress import Live
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.training.phases import Phase, phases_of
from sr1_jax.training.policies import scratch_config
from sr1_jax.training.supervised import SupervisedTrainer, supervised_batches
from sr1_jax.training.task import Supervised

# Steps over which the learning rate of a phase rises, or a quarter of the phase where that is less.
_WARMUP_STEPS = 30


def train_supervised(
    config: ml_collections.ConfigDict,
    supervised: Supervised,
    model: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    evaluate: Callable[[nnx.State], dict[str, float]] | None,
) -> tuple[nnx.State, list[dict[str, Any]]]:
    """Trains on all phases.

    Args:
        config: of the run.
        supervised: has the examples.
        model: where to start; it is left as it is.
        tokenizer: of the model.
        mesh: that it is trained on.
        evaluate: parameters -> scores; None: without.

    Returns:
        The parameters at the end, and the scores along the way, each with its phase and step.
    """
    graph, params = nnx.split(model)
    del model
    scores: list[dict[str, Any]] = []
    for number, phase in enumerate(phases_of(config.warm_start.phases)):
        trainer = SupervisedTrainer(
            nnx.merge(graph, params),
            mesh,
            schedule=learning_rate(phase),
            context_weight=phase.context_weight,
        )
        batches = supervised_batches(
            supervised.examples(phase, tokenizer, config.seed * 100 + number),
            batch=config.warm_start.batch,
            buckets=phase.length_buckets or config.warm_start.length_buckets,
            pad_id=tokenizer.pad_id,
            seed=config.seed,
        )
        with contextlib.closing(Live(f"warm start: {phase.name}", phase.steps)) as live:
            for step in range(1, phase.steps + 1):
                loss = trainer.step(*next(batches))
                if step % 10 == 0 or step == phase.steps:
                    live.update(step, loss=float(loss))
                if evaluate and (step in phase.evaluate_at or step == phase.steps):
                    found = evaluate(trainer.state.params)
                    scores.append({"phase": phase.name, "step": step} | found)
        params = trainer.state.params
    return params, scores


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
