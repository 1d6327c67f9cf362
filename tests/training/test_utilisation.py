"""Model FLOPs: the formula beside what XLA compiles, and a step counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sr1_jax.chips import CHIPS, peak_flops
from sr1_jax.data.questions import Question
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.flops import forward_flops
from sr1_jax.planning.costs import costs_of
from sr1_jax.planning.hlo import parse
from sr1_jax.sharding import make_mesh
from sr1_jax.training.dynamic_sampling import Sampled
from sr1_jax.training.settings import default_config
from sr1_jax.training.utilisation import Utilisation

SHAPE = DecoderConfig(
    vocab_size=88, width=24, layers=3, heads=4, kv_heads=2, head_dim=10, ff_width=68, unroll=3
)
ROWS, LENGTH = 2, 16


@pytest.fixture(scope="module")
def counted():
    """Function of a loss of logits -> FLOPs of all matrix products of what XLA makes of it."""
    graph, params = nnx.split(Decoder(SHAPE, rngs=nnx.Rngs(0)))
    ids_BT = jnp.zeros((ROWS, LENGTH), jnp.int32)

    def count(transform):
        def loss(params):
            return jnp.square(nnx.merge(graph, params)(ids_BT)).sum()

        compiled = jax.jit(transform(loss)).lower(params).compile()
        costs = costs_of(parse(compiled.as_text()))
        assert costs.unknown_kernels == costs.unknown_loops == 0
        return costs.flops

    return count


def test_a_forward_pass(counted):
    """On CPU attention is not cut to its causal half."""
    every = {"tokens": ROWS * LENGTH, "pairs": ROWS * LENGTH**2, "head_tokens": ROWS * LENGTH}
    assert counted(lambda loss: loss) == pytest.approx(forward_flops(SHAPE, **every), rel=1e-6)


def test_a_backward_pass_is_twice_that(counted):
    every = {"tokens": ROWS * LENGTH, "pairs": ROWS * LENGTH**2, "head_tokens": ROWS * LENGTH}
    assert counted(jax.grad) == pytest.approx(3 * forward_flops(SHAPE, **every), rel=0.01)


def test_a_step_by_hand(make_trajectory):
    """Two trajectories of 5 and 3 tokens, of which 2 and 1 were sampled."""

    def made(number, length, mask):
        return make_trajectory(
            question_id=f"q:{number}", ids=np.zeros(length, np.int32), mask=np.int32(mask),
            logp=np.zeros(length, np.float32), prompt_length=1,
        )  # fmt: skip

    groups = [[made(0, 5, [0, 0, 1, 1, 0])], [made(1, 3, [0, 0, 1])]]
    sampled = Sampled([Question(f"q:{i}", "?", ("x",)) for i in (0, 1)], groups, [0, 1], {})
    config = default_config()
    config.log.peak_tflops, config.learner.epochs = 1e-6, 2
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    stats = {"rollout/decoded_tokens": 3.0, "rollout/prefilled_tokens": 5.0}

    def flops(tokens, pairs, heads):
        kernels = 24 * 40 + 2 * 24 * 20 + 40 * 24 + 3 * 24 * 68
        return 3 * (2 * kernels * tokens + 4 * 40 * pairs) + 2 * 24 * 88 * heads

    pairs = 15 + 6
    rollout = flops(8, pairs, 3)
    policy = flops((1 + 3 * 2) * 8, (1 + 3 * 2) * pairs, (1 + 3 * 2) * 3)  # the reference, 2 epochs
    critic = flops((1 + 3 * 2) * 8, (1 + 3 * 2) * pairs, 0)
    found = Utilisation(config, SHAPE, mesh).metrics(sampled, stats, {"seconds/step": 10.0})
    assert found["utilisation/model_tflops"] * 1e12 == pytest.approx(rollout + policy + critic)
    assert found["utilisation/mfu"] == pytest.approx((rollout + policy + critic) / 1e7)
    # Under adapters no gradient of kernels is needed; without a KL term there is no reference.
    config.lora.rank, config.learner.algorithm, config.learner.kl_in = 4, "rloo", "none"
    found = Utilisation(config, SHAPE, mesh).metrics(sampled, stats, {"seconds/step": 10.0})
    policy = flops(2 * 2 * 8, 3 * 2 * pairs, 2 * 2 * 3)
    assert found["utilisation/model_tflops"] * 1e12 == pytest.approx(rollout + policy)


def test_peaks_by_name():
    assert peak_flops("TPU v5 lite") == CHIPS["v5e"].flops
    assert peak_flops("TPU v5p") == CHIPS["v5p"].flops == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


def test_without_a_peak_there_is_no_share():
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    empty = Sampled([], [], [], {})
    found = Utilisation(default_config(), SHAPE, mesh).metrics(empty, {}, {"seconds/step": 1.0})
    assert found == {"utilisation/model_tflops": 0.0}
