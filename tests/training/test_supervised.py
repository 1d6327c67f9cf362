"""Batches of examples, and one step of maximum likelihood."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.sharding import make_mesh
from sr1_jax.training.supervised import (
    Example,
    SupervisedTrainer,
    supervised_batches,
)

# Batches


@pytest.fixture
def examples():
    """Twenty short ones (5 to 8 tokens), ten long ones (9 to 12); the first id names each."""
    return [
        Example(
            [100 + n, *range(4 + n % 4 + 4 * (n >= 20))],
            [0] * 2 + [1] * (3 + n % 4 + 4 * (n >= 20)),
        )
        for n in range(30)
    ]


def run_of(examples, count, *, batch=5, buckets=(8, 12), seed=0):
    batches = supervised_batches(examples, batch=batch, buckets=buckets, pad_id=99, seed=seed)
    return list(itertools.islice(batches, count))


def test_batches_hold_whole_examples_of_one_bucket(examples):
    for ids_BT, mask_BT in run_of(examples, 12):
        assert ids_BT.shape == mask_BT.shape
        assert ids_BT.dtype == np.int32 and mask_BT.dtype == np.float32
        for ids_T, mask_T in zip(ids_BT, mask_BT):
            example = examples[ids_T[0] - 100]
            size = len(example.ids)
            assert len(ids_T) == (8 if size <= 8 else 12)
            assert ids_T[:size].tolist() == example.ids and np.all(ids_T[size:] == 99)
            assert mask_T[:size].tolist() == example.mask and np.all(mask_T[size:] == 0)


def test_an_epoch_has_every_example_once(examples):
    batches = run_of(examples, 12)  # two epochs of 30 / 5 batches
    for epoch in (batches[:6], batches[6:]):
        names = Counter(int(ids_T[0]) for ids_BT, _ in epoch for ids_T in ids_BT)
        assert names == Counter(range(100, 130))
    orders = [[ids_BT[:, 0].tolist() for ids_BT, _ in part] for part in (batches[:6], batches[6:])]
    assert orders[0] != orders[1]


def test_the_seed_decides_the_order(examples):
    def order(seed):
        return [ids_BT[:, 0].tolist() for ids_BT, _ in run_of(examples, 6, seed=seed)]

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_batch_errors(examples):
    with pytest.raises(ValueError, match=r"An example of 12 tokens is longer than .*\(8, 11\)"):
        run_of(examples, 1, buckets=(8, 11))
    with pytest.raises(
        ValueError, match=r"30 examples do not fill one batch of warm_start\.batch=31"
    ):
        run_of(examples, 1, batch=31)


# Training


@pytest.fixture(scope="module")
def model():
    config = DecoderConfig(
        vocab_size=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff_width=16,
        tied_embeddings=False,
    )  # fmt: skip
    model = Decoder(config, rngs=nnx.Rngs(2))
    # Some branches start at zero, which shuts off the gradients of others.
    rng = np.random.default_rng(3)
    noisy = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(size=x.shape, scale=0.15), x.dtype), nnx.state(model)
    )
    nnx.update(model, noisy)
    return model


@pytest.fixture(scope="module")
def batch():
    """Eight rows of uneven lengths and masks; one has more than half of its tokens masked in."""
    rng = np.random.default_rng(0)
    ids_BT = rng.integers(0, 24, (8, 12)).astype(np.int32)
    mask_BT = np.zeros((8, 12), np.float32)
    for row, (start, end) in enumerate([(2, 5), (1, 12), (4, 6), (3, 9), (5, 8), (2, 4), (6, 7)]):
        mask_BT[row, start:end] = 1
    return ids_BT, mask_BT


def loss_by_loop(model, ids_BT, mask_BT, context_weight=0.0):
    """Minus the summed log-probs over the number of policy tokens, row by row, token by token.

    With a weight, every token before the last one of the policy counts for as much.
    """
    logp_BTV = jax.nn.log_softmax(model(jnp.asarray(ids_BT)), axis=-1)
    total = 0.0
    for row in range(len(ids_BT)):
        own = np.flatnonzero(mask_BT[row])
        for t in range(1, own[-1] + 1 if len(own) else 0):
            weight = 1.0 if t in own else context_weight
            if weight:
                total -= weight * logp_BTV[row, t - 1, ids_BT[row, t]]
    return total / mask_BT.sum()


@pytest.mark.parametrize("context_weight", [0.0, 0.25])
def test_one_step_equals_the_loop(model, batch, context_weight):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    trainer = SupervisedTrainer(
        model, mesh, schedule=optax.constant_schedule(1e-2), context_weight=context_weight
    )
    start = jax.tree.map(lambda x: jnp.array(np.asarray(x)), trainer.state)
    loss = trainer.step(*batch)
    graph = nnx.graphdef(model)
    want, grads = jax.jit(
        jax.value_and_grad(
            lambda p: loss_by_loop(nnx.merge(graph, p), *batch, context_weight=context_weight)
        )
    )(start.params)
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    updates, _ = jax.jit(trainer._optimizer.update)(grads, start.opt_state, start.params)
    params = optax.apply_updates(start.params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), trainer.state.params, params
    )
    # The model that was handed in is as it was.
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), start.params)


def test_meshes_agree_where_half_of_the_tokens_pass_the_head(model, batch):
    """The loss falls the same way on eight devices; in the other tests all tokens pass."""
    ids_BT, mask_BT = batch
    few_BT = mask_BT * (np.arange(12)[None] < 6)  # at most five a row
    runs = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        trainer = SupervisedTrainer(model, mesh, schedule=optax.constant_schedule(1e-2))
        runs.append([float(trainer.step(ids_BT, m_BT)) for m_BT in (few_BT, few_BT)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    assert runs[0][0] == pytest.approx(float(loss_by_loop(model, ids_BT, few_BT)), rel=1e-5)
    assert runs[0][1] < runs[0][0]


def test_gradients_are_clipped_and_the_schedule_counts(model, batch):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    seen = []

    def schedule(step):
        seen.append(step)
        return jnp.where(step == 0, 0.0, 1e-2)

    trainer = SupervisedTrainer(model, mesh, schedule=schedule)
    before = jax.tree.map(np.asarray, trainer.state.params)
    trainer.step(*batch)  # at rate 0
    jax.tree.map(np.testing.assert_array_equal, trainer.state.params, before)
    trainer.step(*batch)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(trainer.state.params), jax.tree.leaves(before))
    )
    assert seen
