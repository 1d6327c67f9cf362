"""Maximum likelihood on examples: batches of them, and the trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder
from sr1_jax.models.lora import merged_model
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.rl.update import ModelState, place_model
from sr1_jax.sharding import compute_on, named, place, tree_shardings

# Muon's updates have a spectral norm of one, Adam's entries of about one: the same step for a
# layer's matrix needs a larger rate.
_MUON_RATE = 7.0
_ADAM_B2 = 0.98


class Example(NamedTuple):
    """A text to imitate.

    Attributes:
        ids: of its tokens.
        mask: 1 on those that a policy would have written and is to learn, else 0.
    """

    ids: list[int]
    mask: list[int]


def supervised_batches(
    examples: Sequence[Example], *, batch: int, buckets: Sequence[int], pad_id: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless shuffled batches (ids_BT, mask_BT), each of examples that fit one length bucket.

    Raises:
        ValueError: an example is longer than the last bucket, or all do not fill a batch.
    """
    longest = max(len(example.ids) for example in examples)
    if longest > buckets[-1]:
        raise ValueError(
            f"An example of {longest} tokens is longer than the last of "
            f"warm_start.length_buckets={tuple(buckets)}."
        )
    if len(examples) < batch:
        raise ValueError(
            f"{len(examples)} examples do not fill one batch of warm_start.batch={batch}."
        )
    by_bucket = _in_buckets(examples, buckets, batch)
    rng = np.random.default_rng(seed)
    while True:
        batches = []
        for size, members in by_bucket.items():
            order = rng.permutation(len(members))
            for start in range(0, len(members) - batch + 1, batch):
                batches.append((size, [members[i] for i in order[start : start + batch]]))
        for index in rng.permutation(len(batches)):
            size, rows = batches[index]
            ids_BT = np.full((batch, size), pad_id, np.int32)
            mask_BT = np.zeros((batch, size), np.float32)
            for row, example in enumerate(rows):
                ids_BT[row, : len(example.ids)] = example.ids
                mask_BT[row, : len(example.ids)] = example.mask
            yield ids_BT, mask_BT


def _in_buckets(
    examples: Sequence[Example], buckets: Sequence[int], batch: int
) -> dict[int, list[Example]]:
    """The examples of each length. What does not fill a batch goes with longer ones, or at the end
    takes those of the length before with it: none is left out for good."""
    by_bucket: dict[int, list[Example]] = {size: [] for size in buckets}
    for example in examples:
        by_bucket[next(size for size in buckets if size >= len(example.ids))].append(example)
    filled: dict[int, list[Example]] = {}
    waiting: list[Example] = []
    for size, members in by_bucket.items():
        waiting = waiting + members
        if len(waiting) >= batch:
            filled[size], waiting = waiting, []
    if waiting:
        longest = next(size for size in reversed(buckets) if by_bucket[size])
        _, before = filled.popitem()
        filled[longest] = before + waiting
    return filled


def muon_dimensions(params):
    """How Muon sees each parameter: matrices of the layers, and None for what Adam keeps."""

    def one(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        if "/layers/" not in name or not name.endswith("kernel"):
            return None
        inputs = (1, 2) if name.endswith("/o/kernel") else (1,)
        outputs = tuple(range(1 + len(inputs), array.ndim))
        return optax.contrib.MuonDimensionNumbers(inputs, outputs)

    return jax.tree_util.tree_map_with_path(one, params)


def _muon(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.contrib.muon(
        lambda step: _MUON_RATE * schedule(step),
        adam_b2=_ADAM_B2,
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=muon_dimensions,
    )


def _adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adam(schedule, b2=_ADAM_B2)


OPTIMIZERS = {"muon": _muon, "adam": _adam}


class SupervisedTrainer:
    """Maximum likelihood of the policy's tokens in examples, on a mesh.

    Args:
        model: trained from its current parameters; the model itself is left as it is. With
            adapters only these train.
        mesh: of `sharding.make_mesh`.
        schedule: learning rate of Adam by optimizer step.
        optimizer: "muon" trains the matrices of the layers by Muon (Jordan et al. 2024) at seven
            times the rate, and all else by Adam: a policy from scratch learns to copy in about two
            thirds of the steps. "adam" trains everything by Adam, as pretrained weights are used
            to.
        gradient_clip: global norm.
        context_weight: weight of the loss on tokens the policy did not write. 0 everywhere but
            in language-model pretraining of a policy from scratch.
        micro_batch: rows whose activations are held at a time; 0: all of a batch. The gradient is
            that of the whole batch.
    """

    def __init__(
        self,
        model: Decoder,
        mesh: Mesh,
        *,
        schedule: optax.Schedule,
        optimizer: str = "muon",
        gradient_clip: float = 1.0,
        context_weight: float = 0.0,
        micro_batch: int = 0,
    ):
        self._mesh = mesh
        self._context_weight = context_weight
        self._micro_batch = micro_batch
        self._graph, params, frozen = nnx.split(model, model.trainable, ...)
        self._frozen = jax.device_put(frozen, tree_shardings(frozen, mesh))
        self._lora = model.config.lora
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(gradient_clip), OPTIMIZERS[optimizer](schedule)
        )
        self.state = place_model(params, self._optimizer, mesh)
        where = jax.tree.map(lambda x: x.sharding, self.state)
        self._update = jax.jit(
            self._update_fn,
            donate_argnums=0,
            static_argnames="max_wanted",
            out_shardings=(where, None),
        )
        self._zeros = jax.jit(
            lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=where.params
        )
        self._accumulate = jax.jit(
            self._accumulate_fn,
            donate_argnums=0,
            static_argnames="max_wanted",
            out_shardings=(where.params, None),
        )
        self._apply = jax.jit(self._apply_fn, donate_argnums=0, out_shardings=where)

    @property
    def model(self) -> Decoder:
        """The model as it is now; its parameters are gone with the next step."""
        return nnx.merge(self._graph, self.state.params, self._frozen)

    def policy_params(self) -> nnx.State:
        """All parameters as a plain decoder has them; adapters are added to a copy of the base."""
        return self.state.params if self._lora is None else nnx.state(merged_model(self.model))

    def step(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> jax.Array:
        """One optimizer step.

        Args:
            ids_BT: int32, right-padded.
            mask_BT: float32, 1 on the tokens that are learned.

        Returns:
            The loss in nats a token, before the step.
        """
        # At most two programs a length: half of the tokens pass the head, or all.
        length = ids_BT.shape[1]
        few = mask_BT.sum(axis=1).max() <= length // 2 and not self._context_weight
        max_wanted = length // 2 if few else length
        tokens, size = float(mask_BT.sum()), self._micro_batch or len(ids_BT)
        if size >= len(ids_BT):
            batch = place((ids_BT, mask_BT), named(self._mesh, "batch"))
            self.state, loss = self._update(
                self.state, self._frozen, *batch, tokens, max_wanted=max_wanted
            )
            return loss
        grads, total = self._zeros(self.state.params), 0.0
        for first in range(0, len(ids_BT), size):
            rows = slice(first, first + size)
            part = place((ids_BT[rows], mask_BT[rows]), named(self._mesh, "batch"))
            grads, loss = self._accumulate(
                grads, self.state.params, self._frozen, *part, tokens, max_wanted=max_wanted
            )
            total += loss
        self.state = self._apply(self.state, grads)
        return total

    def _loss(self, params: Any, frozen: Any, ids_BT, mask_BT, tokens, max_wanted: int):
        """Minus the weighted log-probs over `tokens`, the number of learned ones in the batch."""
        weight_BT = mask_BT
        if self._context_weight:
            position_1T = jnp.arange(ids_BT.shape[1])[None]
            last_B1 = jnp.max(position_1T * mask_BT, axis=1, keepdims=True)
            inside_BT = position_1T <= last_B1
            weight_BT = jnp.where(mask_BT > 0, 1.0, self._context_weight * inside_BT)
        model = nnx.merge(self._graph, params, frozen)
        with compute_on(self._mesh):
            logp_BT, _ = token_logp(model, ids_BT, weight_BT, max_wanted=max_wanted)
        return -(logp_BT * weight_BT).sum() / tokens

    def _update_fn(self, state: ModelState, frozen, ids_BT, mask_BT, tokens, *, max_wanted: int):
        loss, grads = jax.value_and_grad(self._loss)(
            state.params, frozen, ids_BT, mask_BT, tokens, max_wanted
        )
        return self._apply_fn(state, grads), loss

    def _accumulate_fn(self, grads, params, frozen, ids_BT, mask_BT, tokens, *, max_wanted: int):
        loss, more = jax.value_and_grad(self._loss)(
            params, frozen, ids_BT, mask_BT, tokens, max_wanted
        )
        return jax.tree.map(jnp.add, grads, more), loss

    def _apply_fn(self, state: ModelState, grads) -> ModelState:
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        return ModelState(optax.apply_updates(state.params, updates), opt_state)
