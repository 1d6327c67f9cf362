"""Collectives, asynchronous ones among them: bytes, calls and waits against figures by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.abstract import Program
from sr1_jax.chips import CHIPS
from sr1_jax.planning.collectives import CONTINUED, END, START, WHOLE, collectives_of, group_size
from sr1_jax.planning.compiler import compile_program, topology_devices
from sr1_jax.planning.costs import Overlap, costs_of
from sr1_jax.planning.hlo import parse
from sr1_jax.planning.timing import time_of

HERE = Path(__file__).parent

# Of the program in async_v5e_4x4.hlo.txt: two matrices a layer, [2048, 2048] on each device of
# `tensor`, split over four devices; [1024, 2048] activations are summed over four.
LAYERS, GATHERED, SUMMED = 6, 3 * 2048 * 512 * 2, 2 * 3 / 4 * 1024 * 2048 * 2


@pytest.fixture(scope="module")
def program():
    return parse((HERE / "async_v5e_4x4.hlo.txt").read_text())


def test_a_collective_that_runs_along_with_another_counts_once(program):
    """It stands in the fusion that starts it, in the product beside it, and in the one that ends
    it."""
    body = next(c for c in program.computations.values() if c.name.startswith("wide.region_0"))
    phases = [found.phase for x in body for found in collectives_of(program, body, x) if found.kind]
    assert phases == [WHOLE, START, CONTINUED, END, WHOLE]
    costs = costs_of(program)
    assert costs.collective_calls == {"all-gather": 2 * LAYERS, "all-reduce": LAYERS}
    assert costs.collectives == {
        "all-gather": 2 * LAYERS * GATHERED, "all-reduce": LAYERS * SUMMED,
    }  # fmt: skip
    # The second matrix travels while the first is used.
    assert costs.blocking == LAYERS * (GATHERED + SUMMED)


def test_the_end_waits_for_what_the_product_does_not_cover(program):
    """6.3 MB at 100 GB/s take 63 µs; the product beside them 71,516 cycles at 1.5 GHz, 48 µs."""
    costs, chip = costs_of(program), CHIPS["v5e"]
    assert costs.overlaps == {Overlap(GATHERED, 71516.0, 0.0, 0.0): LAYERS}
    time = time_of(costs, chip)
    assert time.waiting == pytest.approx(LAYERS * (GATHERED / 100e9 - 71516 / 1.5e9))
    assert time.waiting == pytest.approx(LAYERS * 15.24e-6, rel=1e-3)
    core = max(time.compute, time.memory, time.cycles)
    assert time.seconds == pytest.approx(core + time.blocking + time.waiting)


def test_bytes_of_what_runs_along_are_its_own(program):
    """Weights are read from main memory, a slice of [512, 2048] or its like a layer and matrix;
    the activations come in and go out once; everything else lies in vector memory."""
    slices, activations = 2 * LAYERS * 2048 * 512 * 2, 2 * 1024 * 2048 * 2
    assert costs_of(program).bytes == pytest.approx(slices + activations, rel=0.001)


# A start in the body of a loop, carried on by an inner loop of three turns; two other collectives
# that share its channel; and an asynchronous call.
CARRIED_ON = """HloModule carried_on

%start (x: bf16[256,128]) -> (bf16[256,128], bf16[1024,128]) {
  %x = bf16[256,128] parameter(0)
  %all-gather.1 = bf16[1024,128] all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_end":"-1","flag_start":"-1"}}
  ROOT %custom-call.1 = (bf16[256,128], bf16[1024,128]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%along (x: bf16[256,128]) -> bf16[1024,128] {
  %x.1 = bf16[256,128] parameter(0)
  ROOT %all-gather.2 = bf16[1024,128] all-gather(%x.1), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_end":"8","flag_start":"2"}}
}

%end (x: bf16[256,128]) -> bf16[1024,128] {
  %x.2 = bf16[256,128] parameter(0)
  %all-gather.3 = bf16[1024,128] all-gather(%x.2), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_end":"8","flag_start":"8"}}
  ROOT %custom-call.2 = bf16[1024,128] custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%wrapped (x: bf16[256,128]) -> bf16[256,128] {
  %x.3 = bf16[256,128] parameter(0)
  ROOT %all-reduce.9 = bf16[256,128] all-reduce(%x.3), channel_id=7, replica_groups=[2,4]<=[8]
}

%condition (state: s32[]) -> pred[] {
  ROOT %state = pred[] parameter(0)
}

%body (state: bf16[256,128]) -> bf16[256,128] {
  %state.1 = bf16[256,128] parameter(0)
  ROOT %fusion.1 = bf16[1024,128] fusion(%state.1), kind=kOutput, calls=%along, backend_config={"estimated_cycles":"1000"}
}

ENTRY %main (x: bf16[256,128]) -> bf16[1024,128] {
  %x.4 = bf16[256,128] parameter(0)
  %all-reduce.1 = bf16[256,128] all-reduce(%x.4), channel_id=7, replica_groups=[2,4]<=[8]
  %all-to-all.1 = bf16[256,128] all-to-all(%all-reduce.1), channel_id=7, replica_groups=[2,4]<=[8]
  %started = (bf16[256,128], bf16[1024,128]) fusion(%all-to-all.1), kind=kCustom, calls=%start
  %while.1 = bf16[256,128] while(%all-to-all.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %call-start = ((bf16[256,128]), bf16[256,128]) async-start(%x.4), calls=%wrapped
  %fusion.2 = bf16[256,128] fusion(%x.4), kind=kLoop, calls=%elementwise, backend_config={"estimated_cycles":"50"}
  %call-done = bf16[256,128] async-done(%call-start)
  %copy-start.1 = (bf16[256,128], bf16[256,128], u32[]) copy-start(%x.4)
  %copy-done.1 = bf16[256,128] copy-done(%copy-start.1)
  %gather-start = (bf16[256,128], bf16[1024,128]) all-gather-start(%x.4), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
  %gather-done = bf16[1024,128] all-gather-done(%gather-start)
  ROOT %ended = bf16[1024,128] fusion(%started), kind=kCustom, calls=%end
}

%elementwise (x: bf16[256,128]) -> bf16[256,128] {
  %x.5 = bf16[256,128] parameter(0)
  ROOT %negate.1 = bf16[256,128] negate(%x.5)
}
"""  # noqa: E501


def test_a_loop_that_carries_a_collective_on_sends_it_once():
    """And collectives that share a channel are still their own."""
    size = 256 * 128 * 2
    costs = costs_of(parse(CARRIED_ON))
    assert costs.collectives == {
        "all-gather": 2 * 3 * size, "all-reduce": 2 * 2 * 3 / 4 * size, "all-to-all": 3 / 4 * size,
    }  # fmt: skip
    assert costs.collective_calls == {"all-gather": 2, "all-reduce": 2, "all-to-all": 1}
    assert costs.blocking == (2 + 1) * 3 / 4 * size
    cycles = {(overlap.sent, overlap.cycles) for overlap in costs.overlaps}
    assert cycles == {(3 * size, 3 * 1000 + 50), (2 * 3 / 4 * size, 50), (3 * size, 0)}


def test_bytes_of_a_collective_are_moved_where_it_starts():
    """Its operand is read and its result written once; the fusions after the first hand both on.
    None of it takes time of its own, since the network is slower."""
    size = 256 * 128 * 2
    gather, same = 1 + 4, 1 + 1  # operand and result
    costs = costs_of(parse(CARRIED_ON))
    alone = {"copy": same, "negate": same}
    assert costs.bytes == (2 * gather + 3 * same + sum(alone.values())) * size
    assert costs.uncounted_bytes == alone["copy"] * size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("[16,4]<=[64]", 4),
        ("[4,16]<=[16,4]T(1,0)", 16),
        ("{{0,2,4},{1,3,5}}", 3),
        ("mesh['a'=16,'b'=4] {'b'}", 4),
        ("mesh['a'=16,'b'=4] {'a':(2)4,'b'}", 16),
    ],
)
def test_devices_of_a_collective(text, size):
    line = f"  ROOT %x = f32[4] all-reduce(%a), channel_id=1, replica_groups={text}, to_apply=%add"
    module = parse(
        f"HloModule m\n\nENTRY %main () -> f32[4] {{\n  %a = f32[4] constant(0)\n{line}\n}}\n"
    )
    assert group_size(module.computations["main"].instructions["x"]) == size


@pytest.mark.slow
def test_no_estimate_of_the_tpu_compiler_holds_a_transfer():
    """The same program with asynchronous collectives and without: neither start nor end has
    cycles, and the product beside them has as many as alone."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    devices = np.array(topology_devices("v5e:4x4")).reshape(4, 4)
    mesh = Mesh(devices, ("fsdp", "tensor"))

    def shape(dims, *spec):
        where = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=where)

    def split(x, *spec):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def layer(x, pair):
        up, down = split(pair[0], None, "tensor"), split(pair[1], "tensor", None)
        return split(x + jax.nn.relu(x @ up) @ down, "fsdp", None), None

    def layers(pairs, x):
        return jax.lax.scan(layer, x, pairs)[0]

    pairs = (
        shape((6, 2048, 8192), None, "fsdp", "tensor"),
        shape((6, 8192, 2048), None, "tensor", "fsdp"),
    )
    lowered = Program("layers", jax.jit(layers), (pairs, shape((4096, 2048), "fsdp", None)))

    def cycles(asynchronous):
        class Lowered:
            """The program with one more option."""

            def compile(self, compiler_options):
                option = {"xla_tpu_enable_async_collective_fusion": asynchronous}
                return lowered.lower().compile(compiler_options | option)

        class Switched:
            def lower(self):
                return Lowered()

        module = parse(compile_program(Switched()).text)
        found = {phase: [] for phase in (WHOLE, START, CONTINUED, END, "")}
        for computation in module.computations.values():
            if computation.name.startswith("wide.region_0"):
                for instruction in computation:
                    here = list(collectives_of(module, computation, instruction))
                    phase = here[0].phase if here else ""
                    product = "dot_general" in instruction.attributes
                    if here or (product and instruction.opcode == "fusion"):
                        found[phase].append(instruction.number("estimated_cycles"))
        return found

    along, alone = cycles(True), cycles(False)
    assert along[START] == along[END] == [None] and set(along[WHOLE]) == set(alone[WHOLE]) == {None}
    assert not alone[START] and len(along[CONTINUED]) == 1
    assert sorted(along[CONTINUED] + along[""]) == sorted(alone[""])
