"""Bytes that data, fsdp, tensor and sequence parallelism send, worked out by hand, against those
that the plan reads from an update as the TPU compiler made it.

The texts are kept beside this file, so no compiler is needed; with libtpu the slow test compiles
the same update anew.
"""

import gzip

import network_text
import pytest
from network_text import HERE, LENGTH, MESHES, ROWS, SHAPE

from sr1_jax.planning.compiler import compile_program
from sr1_jax.planning.costs import costs_of
from sr1_jax.planning.hlo import parse

DEVICES = 4
SHARE = (DEVICES - 1) / DEVICES  # of an array, that a device sends in a ring for all to have it
BFLOAT16, FLOAT32 = 2, 4
D, V, L = SHAPE.width, SHAPE.vocab_size, SHAPE.layers
WEIGHTS = L * (4 * D * D + 3 * D * SHAPE.ff_width)  # of matrices; as many heads as key/value heads
TABLE = D * V  # embedding, and head
ACTIVATIONS = ROWS * LENGTH * D


def by_hand(mesh):
    """Bytes that a device sends for a micro-batch, by kind of collective.

    A device sends SHARE of an array that is collected (all-gather), summed and split
    (reduce-scatter) or traded (all-to-all), and twice that of one that is summed for all. Layers
    are computed forward, once more for the backward pass (remat "full"), and backward.
    """
    if mesh == "data":
        # Gradients, summed: bfloat16, as weights are used; those of the look-up float32.
        gradients = BFLOAT16 * (WEIGHTS + TABLE) + FLOAT32 * TABLE
        return {"all-reduce": 2 * SHARE * gradients}
    if mesh == "fsdp":
        return {
            # Weights of a layer, forward and once more; hidden states, for the head that is split.
            "all-gather": SHARE * BFLOAT16 * (2 * WEIGHTS + ACTIVATIONS),
            "reduce-scatter": SHARE * BFLOAT16 * (WEIGHTS + ACTIVATIONS),
            # Columns of looked-up rows for all columns of own rows, and of the head; and back.
            "all-to-all": 2 * SHARE * BFLOAT16 * (ACTIVATIONS + TABLE) / DEVICES,
        }
    # Sequences are split between products with weights (Korthikanti et al. 2022, section 4.2.2):
    # collected before attention and feed-forward, summed and split behind them. Backward the
    # other way round. The second pass needs no sum behind its feed-forward layer.
    return {
        # And: forward before the head, backward behind the look-up.
        "all-gather": SHARE * BFLOAT16 * ACTIVATIONS * (L * (2 + 2 + 2) + 1 + 1),
        # And: forward behind the look-up.
        "reduce-scatter": SHARE * BFLOAT16 * ACTIVATIONS * (L * (2 + 1 + 2) + 1),
        # The gradient of hidden states, from all parts of the vocabulary.
        "all-reduce": 2 * SHARE * BFLOAT16 * ACTIVATIONS,
    }


def check(text, mesh):
    found, expected = costs_of(parse(text)), by_hand(mesh)
    for kind, sent in expected.items():
        assert found.collectives[kind] == pytest.approx(sent, rel=0.05), kind
    # What is left are indices, counts and norms.
    assert found.collectives.total() == pytest.approx(sum(expected.values()), rel=0.05)
    assert found.unknown_loops == 0
    blocking = found.blocking + sum(o.sent * times for o, times in found.overlaps.items())
    assert blocking == pytest.approx(found.collectives.total())
    return found


@pytest.mark.parametrize("mesh", MESHES)
def test_bytes_sent_are_those_worked_out_by_hand(mesh):
    text = gzip.decompress((HERE / f"update_{mesh}.network.txt.gz").read_bytes()).decode()
    found = check(text, mesh)
    # Gradients wait for nothing; weights and sequences travel while others are used.
    assert (found.blocking < found.collectives.total()) == (mesh != "data")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_bytes_sent_in_a_program_compiled_here(mesh):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    text = compile_program(network_text.update_program(mesh)).text
    check(text, mesh)
    # What is kept of a text says the same of its network as all of it.
    whole, kept = (costs_of(parse(t)) for t in (text, network_text.network_text(text)))
    assert (whole.collectives, whole.blocking) == (kept.collectives, kept.blocking)
