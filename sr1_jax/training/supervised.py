"""Maximum likelihood on examples: batches of them, and the trainer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.rl.update import ModelState, place_model
from sr1_jax.sharding import compute_on, named, place

# Muon's updates have a spectral norm of one, Adam's entries of about one: the same step for a
# layer's matrix needs a larger rate.
_MUON_RATE = 7.0


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
        ValueError: an example is longer than the last bucket, or no bucket fills a batch.
    """
    longest = max(len(example.ids) for example in examples)
    if longest > buckets[-1]:
        raise ValueError(
            f"A trace of {longest} tokens is longer than the last of "
            f"warm_start.length_buckets={tuple(buckets)}."
        )
    by_bucket: dict[int, list[Example]] = {size: [] for size in buckets}
    for example in examples:
        by_bucket[next(size for size in buckets if size >= len(example.ids))].append(example)
    if max(map(len, by_bucket.values())) < batch:
        raise ValueError(f"{len(examples)} traces do not fill one batch of {batch}.")
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


class SupervisedTrainer:
    """Maximum likelihood of the policy's tokens in traces, on a mesh.

    Args:
        model: trained from its current parameters; the model itself is left as it is.
        mesh: of `sharding.make_mesh`.
        schedule: learning rate of Adam by optimizer step. Matrices of the layers are trained by
            Muon (Jordan et al. 2024) at seven times that: a policy from scratch learns to copy in
            about two thirds of the steps.
        gradient_clip: global norm.
        context_weight: weight of the loss on tokens the policy did not write. 0 everywhere but
            in language-model pretraining of a policy from scratch.
    """

    def __init__(
        self,
        model: Decoder,
        mesh: Mesh,
        *,
        schedule: optax.Schedule,
        gradient_clip: float = 1.0,
        context_weight: float = 0.0,
    ):
        self._mesh = mesh
        self._context_weight = context_weight
        self._graph, params = nnx.split(model)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(gradient_clip),
            optax.contrib.muon(
                lambda step: _MUON_RATE * schedule(step),
                adam_b2=0.98,
                adam_learning_rate=schedule,
                muon_weight_dimension_numbers=muon_dimensions,
            ),
        )
        self.state = place_model(params, self._optimizer, mesh)
        self._update = jax.jit(
            functools.partial(self._update_fn, context_weight=context_weight),
            donate_argnums=0,
            static_argnames="max_wanted",
            out_shardings=(jax.tree.map(lambda x: x.sharding, self.state), None),
        )

    def _update_fn(
        self, state: ModelState, ids_BT, mask_BT, *, context_weight: float, max_wanted: int
    ):
        def loss_fn(params):
            model = nnx.merge(self._graph, params)
            with compute_on(self._mesh):
                logp_BT, _ = token_logp(model, ids_BT, weight_BT, max_wanted=max_wanted)
            return -(logp_BT * weight_BT).sum() / mask_BT.sum()

        weight_BT = mask_BT
        if context_weight:
            position_1T = jnp.arange(ids_BT.shape[1])[None]
            last_B1 = jnp.max(position_1T * mask_BT, axis=1, keepdims=True)
            inside_BT = position_1T <= last_B1
            weight_BT = jnp.where(mask_BT > 0, 1.0, context_weight * inside_BT)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        return ModelState(optax.apply_updates(state.params, updates), opt_state), loss

    def step(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> float:
        """One optimizer step; returns the loss in nats a token."""
        # At most two programs a length: half of the tokens pass the head, or all.
        length = ids_BT.shape[1]
        few = mask_BT.sum(axis=1).max() <= length // 2 and not self._context_weight
        max_wanted = length // 2 if few else length
        ids_BT, mask_BT = place((ids_BT, mask_BT), named(self._mesh, "batch"))
        self.state, loss = self._update(self.state, ids_BT, mask_BT, max_wanted=max_wanted)
        return loss
