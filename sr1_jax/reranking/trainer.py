"""Trains a cross-encoder on lists of passages of which the first is the good one.

The loss is that of ListNet with one relevant passage a list, softmax cross-entropy over its scores
(Cao et al. 2007; for rerankers Gao, Dai and Callan 2021, arXiv 2101.08751, "localized contrastive
estimation"). Deviations from what is usual: no dropout, so that a run is the same every time
without a random state, and scores are computed as searches compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.models.cross_encoder_folder import PairModel
from sr1_jax.reranking.examples import Lists
from sr1_jax.retrieval.embedder import passage_text
from sr1_jax.retrieval.pair_scorer import PairTokens
from sr1_jax.sharding import MESH_AXES

_WARMUP_SHARE = 0.1
_MAX_GRADIENT_NORM = 1.0
_WEIGHT_DECAY = 0.01


def list_loss(score_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy of the first of each list, and the share of lists that it leads.

    Args:
        score_BC: of C passages for each of B questions, float.

    Returns:
        (loss, accuracy), both scalars; a tie is not led.
    """
    loss = -jnp.mean(jax.nn.log_softmax(score_BC, axis=-1)[:, 0])
    led_B = score_BC[:, 0] > jnp.max(score_BC[:, 1:], axis=-1)
    return loss, jnp.mean(led_B.astype(jnp.float32))


class StepFigures(NamedTuple):
    """Of one step: loss, the share of lists whose good passage led, norm of the gradient."""

    loss: float
    accuracy: float
    gradient_norm: float


class RerankerTrainer:
    """AdamW over the parameters of a cross-encoder; every device has all of them.

    Args:
        model: to begin with.
        mesh: whose devices share each batch.
        steps: that there will be; the rate rises over their first tenth, and falls to 0.
        learning_rate: at its highest.

    Attributes:
        params: of the model, after the steps so far.
        cut: passages so far whose end was cut.
    """

    def __init__(self, model: PairModel, mesh: Mesh, *, steps: int, learning_rate: float):
        self._model, self._tokens, self._devices = model, PairTokens(model), mesh.size
        warmup = min(max(1, round(_WARMUP_SHARE * steps)), max(1, steps - 1))
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup, max(steps, warmup + 1)
        )
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(_MAX_GRADIENT_NORM),
            optax.adamw(schedule, b2=0.98, weight_decay=_WEIGHT_DECAY, mask=_is_matrix),
        )
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        # A copy: the step gives its own buffers back, and the model's must stay.
        self.params = jax.jit(lambda p: jax.tree.map(jnp.copy, p), out_shardings=everywhere)(
            model.params
        )
        self._state = jax.jit(self._optimizer.init, out_shardings=everywhere)(self.params)
        self._step = jax.jit(self._update, static_argnums=0, donate_argnums=(1, 2))
        self.cut = 0

    def step(self, lists: Lists) -> StepFigures:
        """One step on a batch.

        Raises:
            ValueError: a question leaves no room for a passage, or the devices cannot share the
                batch evenly.
            FloatingPointError: the loss or the gradient is not finite.
        """
        if len(lists.questions) % self._devices:
            raise ValueError(
                f"a batch of {len(lists.questions)} questions cannot be shared evenly by "
                f"{self._devices} devices; give --batch a multiple of them."
            )
        fits = self._tokens.fits(lists.questions)
        if not all(fits):
            long = lists.questions[fits.index(False)]
            raise ValueError(
                f"The question {long[:60]!r} leaves no room for a passage in "
                f"--max_tokens={self._tokens.longest}; raise that, or leave the question out."
            )
        pairs = [
            (question, passage_text(passage.title, passage.text))
            for question, passages in zip(lists.questions, lists.passages)
            for passage in passages
        ]
        encoded = self._tokens.encode(pairs)
        self.cut += sum(bool(each.overflowing) for each in encoded)
        longest = max(len(each.ids) for each in encoded)
        length = next(length for length in self._tokens.lengths if length >= longest)
        batch = jax.device_put(self._tokens.padded(encoded, len(pairs), length), self._rows)
        self.params, self._state, figures = self._step(
            len(lists.questions), self.params, self._state, *batch
        )
        found = StepFigures(*map(float, figures))
        if not all(map(jnp.isfinite, found)):
            raise FloatingPointError(f"a step gave numbers that are not finite: {found}.")
        return found

    def _update(self, questions: int, params: Any, state: Any, ids_BT, length_B, type_BT):
        def loss_of(params):
            score_N = self._model.score(params, ids_BT, length_B, type_BT)
            return list_loss(score_N.reshape(questions, -1))

        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = self._optimizer.update(gradient, state, params)
        norm = optax.global_norm(gradient)
        return optax.apply_updates(params, updates), state, (loss, accuracy, norm)


def _is_matrix(params: Any) -> Any:
    """Which parameters decay: embeddings and kernels, not norms and biases."""

    def one(path: Sequence[Any], _: jax.Array) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        return name.endswith(("kernel", "embedding"))

    return jax.tree_util.tree_map_with_path(one, params)
