"""FLOPs, bytes, trips and collectives against figures known by hand."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.abstract import Program
from sr1_jax.planning.buffers import largest_with_vocabulary, read_buffers
from sr1_jax.planning.compiler import compile_program
from sr1_jax.planning.costs import costs_of
from sr1_jax.planning.hlo import parse

HERE = Path(__file__).parent


def f32(*shape, sharding=None):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def costs(function, *arguments, **jit):
    return costs_of(parse(compile_program(Program("f", jax.jit(function, **jit), arguments)).text))


def scan(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_product_costs_two_flops_a_multiply_add():
    found = costs(lambda a, b: a @ b, f32(3, 5), f32(5, 7))
    assert found.flops == 2 * 3 * 5 * 7


def test_loops_count_as_often_as_they_run():
    def nested(weights, x):
        return jax.lax.scan(lambda x, _: (scan(weights, x), None), x, None, length=5)[0]

    assert costs(scan, f32(7, 32, 32), f32(16, 32)).flops == 7 * 2 * 16 * 32 * 32
    assert costs(nested, f32(7, 32, 32), f32(16, 32)).flops == 35 * 2 * 16 * 32 * 32
    compiled = jax.jit(scan).lower(f32(7, 32, 32), f32(16, 32)).compile()
    # What the reader is for: here the body counts once.
    assert compiled.cost_analysis()["flops"] < 2 * 2 * 16 * 32 * 32


def test_a_gradient_with_remat_costs_four_passes():
    def loss(weights, x):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(layer, x, weights)[0].sum()

    one = 2 * 16 * 32 * 32
    assert costs(jax.grad(loss), f32(6, 32, 32), f32(16, 32)).flops == 6 * 4 * one


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    def until(weight, x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ weight, x)

    found = costs(until, f32(32, 32), f32(16, 32))
    assert found.unknown_loops == 1 and found.flops == 2 * 16 * 32 * 32


def test_the_dearer_branch_counts():
    def either(flag, x, weight):
        return jax.lax.cond(flag, lambda: x @ weight @ weight, lambda: x)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert costs(either, flag, f32(16, 32), f32(32, 32)).flops == 2 * 2 * 16 * 32 * 32


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_counter_may_start_anywhere_and_take_larger_steps(step):
    def counted(weight, x):
        def body(carry):
            return carry[0] + step, carry[1] @ weight

        return jax.lax.while_loop(lambda carry: carry[0] < 11, body, (2, x))[1]

    trips = len(range(2, 11, step))
    assert costs(counted, f32(32, 32), f32(16, 32)).flops == trips * 2 * 16 * 32 * 32


def test_convolutions_count_what_is_multiplied():
    """Against XLA's own count, on padding, strides and both dilations."""

    def convolve(x, w, **options):
        return jax.lax.conv_general_dilated(x, w, **options)

    for options in (
        dict(window_strides=(1, 1), padding="VALID"),
        dict(window_strides=(2, 1), padding=((1, 2), (0, 1))),
        dict(window_strides=(1, 2), padding=((2, 2), (3, 3)), lhs_dilation=(2, 3)),
        dict(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 1)),
        dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
    ):
        groups = options.get("feature_group_count", 1)
        lowered = jax.jit(functools.partial(convolve, **options)).lower(
            f32(3, 4, 9, 8), f32(6, 4 // groups, 3, 2)
        )
        text = lowered.compiler_ir("hlo").as_hlo_module().to_string()
        assert costs_of(parse(text)).flops == lowered.cost_analysis()["flops"]


def test_bytes_of_a_copy_are_read_and_written_once():
    found = costs(lambda x: x + 1, f32(1000, 1000))
    assert found.bytes == pytest.approx(8e6, rel=0.01)


def test_a_scan_reads_each_slice_once():
    """7 layers of 128 x 128 read and used, not 7 times all layers."""
    found = costs(scan, f32(7, 128, 128), f32(4, 128))
    layer = 128 * 128 * 4
    assert 7 * layer <= found.bytes < 7 * 4 * layer < 7 * 7 * layer


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))


@pytest.mark.parametrize(
    ("axes", "kind", "sent"),
    [
        # 1/4 of 32 x 32 numbers to three others; twice 3/4 of 32 x 32 (Rabenseifner 2004).
        ((None, "b"), "all-gather", 3 * 8 * 32 * 4),
        (("b", None), "all-reduce", 2 * 3 / 4 * 32 * 32 * 4),
    ],
)
def test_collectives(mesh, axes, kind, sent):
    def place(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    x = f32(32, 32, sharding=place(*(axes if kind == "all-gather" else (None, "b"))))
    weight = f32(32, 32, sharding=place(*axes) if kind == "all-reduce" else place())
    function = (lambda x, w: x * w) if kind == "all-gather" else (lambda x, w: x @ w)
    found = costs(function, x, weight, out_shardings=place())
    assert dict(found.collectives) == {kind: sent} and found.collective_calls[kind] == 1
    assert found.blocking == sent


def test_collectives_in_loops_count_as_often_as_they_run(mesh):
    weights = f32(6, 32, 32, sharding=NamedSharding(mesh, PartitionSpec(None, "b")))
    x = f32(16, 32, sharding=NamedSharding(mesh, PartitionSpec()))
    found = costs(scan, weights, x)
    assert sum(found.collective_calls.values()) >= 6


def test_program_of_the_tpu_compiler():
    """Six layers, bfloat16: [1024, 1024] rows a device times weights split over four devices,
    which are collected when a layer runs."""
    found = costs_of(parse((HERE / "scan_v5e_2x2.hlo.txt").read_text()))
    assert found.flops == 6 * 2 * 1024**3 and found.unknown_loops == 0
    assert found.collective_calls == {"all-gather": 6}
    assert found.collectives["all-gather"] == 6 * 3 * 256 * 1024 * 2
    # Activations stay in vector memory; what is left is the weights' way in and out.
    assert 4 * 2**20 < found.bytes < 32 * 2**20
    # 6 products of 1024³ take 65 µs at the peak of a v5e; the compiler thinks of more.
    assert 65e-6 < found.cycles / 1.5e9 < 300e-6


PAGED = """HloModule decode

ENTRY %main (lengths: s32[6], pages: s32[48], q: f32[6,7,1,128], k: bf16[1,48,128,128], v: bf16[1,48,128,128]) -> f32[6,7,1,128] {
  %lengths = s32[6]{0} parameter(0)
  %pages = s32[48]{0} parameter(1)
  %q = f32[6,7,1,128]{3,2,1,0} parameter(2)
  %k = bf16[1,48,128,128]{3,2,1,0} parameter(3)
  %v = bf16[1,48,128,128]{3,2,1,0} parameter(4)
  ROOT %paged_attention.1 = f32[6,7,1,128]{3,2,1,0} custom-call(%lengths, %pages, %q, %k, %v), custom_call_target="tpu_custom_call", metadata={op_name="jit(paged_attention)/pallas_call"}
}
"""  # noqa: E501


def test_paged_attention_reads_what_is_filled_in_whole_blocks():
    """Six slots of 1,024 positions, 300 of them filled: half a block of 512 more is read."""
    small = 6 * 4 + 48 * 4 + 2 * 6 * 7 * 128 * 4  # lengths, page table, queries, outputs
    for filled, read in ((300, 556), (None, 1024), (900, 1024)):
        found = costs_of(parse(PAGED), filled)
        assert found.bytes == pytest.approx(small + 2 * 6 * read * 128 * 2)
        assert found.flops == found.uncounted_flops == 2 * 2 * 6 * 7 * 128 * read
        assert found.unknown_kernels == 0


SLICE = """HloModule part

ENTRY %main (x: bf16[64,128]) -> bf16[16,128] {
  %x = bf16[64,128]{1,0} parameter(0)
  ROOT %part = bf16[16,128]{1,0:S(1)} slice(%x), slice={[0:16], [0:128]}
}
"""


def test_a_slice_into_vector_memory_is_read_once_and_not_written():
    assert costs_of(parse(SLICE)).bytes == 16 * 128 * 2
    assert costs_of(parse(SLICE.replace(":S(1)", ""))).bytes == 2 * 16 * 128 * 2


def test_buffers_of_the_tpu_compiler():
    buffers = read_buffers((HERE / "scan_v5e_2x2.buffers.txt").read_text())
    assert {b.shape.dims for b in buffers if b.argument} >= {(6, 256, 1024), (1024, 1024)}
    assert buffers[0].bytes == 6 * 256 * 1024 * 2


def test_the_largest_buffer_with_a_vocabulary_is_found():
    """Logits of all tokens in the one program, of a chunk of 16 in the other."""
    vocab, width = 1000, 24

    def whole(hidden, head):
        return jax.nn.logsumexp(hidden @ head, axis=-1)

    def chunked(hidden, head):
        return jax.lax.map(lambda h: whole(h, head), hidden.reshape(4, 16, width))

    def largest(function):
        program = Program("f", jax.jit(function), (f32(64, width), f32(width, vocab)))
        buffers = read_buffers(compile_program(program).buffers)
        return largest_with_vocabulary(buffers, vocab, width, 1)

    assert largest(whole).bytes == 64 * vocab * 4
    assert largest(chunked).bytes == 16 * vocab * 4
    no_vocabulary = read_buffers(
        compile_program(Program("f", jax.jit(lambda x: x @ x), (f32(8, 8),))).buffers
    )
    assert largest_with_vocabulary(no_vocabulary, vocab, width, 1) is None
