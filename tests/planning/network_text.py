"""What a compiled program says of its collectives, without all the rest: small enough to keep.

The texts beside this file, `update_*.network.txt.gz`, are of the programs of `update_program`; to
write them anew with the TPU compiler of this machine:

    python tests/planning/network_text.py
"""

import gzip
import os
import re
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from flax import nnx

from sr1_jax.abstract import Program
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.planning.collectives import collectives_of
from sr1_jax.planning.compiler import compile_program, topology_devices
from sr1_jax.planning.hlo import Computation, Instruction, Module, parse
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.program_keys import Accumulate
from sr1_jax.rl.settings import default_config
from sr1_jax.sharding import make_mesh

HERE = Path(__file__).parent
MESHES = {
    "data": {"data": 4},
    "fsdp": {"fsdp": 4},
    "tensor": {"tensor": 4},
}
# Of the programs: rows of a micro-batch, tokens of a row.
ROWS, LENGTH = 8, 512
SHAPE = DecoderConfig(
    vocab_size=1024, width=1024, layers=2, heads=8, kv_heads=8, head_dim=128, ff_width=4096,
    dtype="bfloat16", remat="full",
)  # fmt: skip


def update_program(mesh: str) -> Program:
    """Gradients of a micro-batch on v5e:2x2, without a reference and a critic."""
    config = default_config()
    config.algorithm, config.kl_in = "grpo", "none"
    config.micro_batch, config.minibatch_size = ROWS, 16
    config.length_buckets, config.chunk_tokens = (LENGTH,), ROWS * LENGTH
    axes = {"data": 1, "fsdp": 1, "tensor": 1} | MESHES[mesh]
    learner = Learner(
        nnx.eval_shape(lambda: Decoder(SHAPE, rngs=nnx.Rngs(0))),
        None,
        config,
        make_mesh(**axes, devices=topology_devices("v5e:2x2")),
        trajectories=16,
        steps=1,
    )
    key = Accumulate("policy", LENGTH, LENGTH)
    return next(program for program in learner.programs() if program.key == key)


def network_text(text: str) -> str:
    """Collectives, what is estimated to run between them, and the loops around both."""
    module = parse(text)
    lines = ["HloModule network"]
    for computation in _wanted(module):
        kept = _kept(module, computation)
        root = computation.root if computation.root in kept else max(kept, key=list(kept).index)
        entry = "ENTRY " if computation.name == module.entry else ""
        lines.append(f"\n{entry}%{computation.name} () -> () {{")
        for instruction in computation:
            if instruction.name in kept:
                mark = "ROOT " if instruction.name == root else ""
                lines.append(f"  {mark}{_line(module, instruction)}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _wanted(module: Module) -> list[Computation]:
    """The computations that are more than arithmetic, callees first."""
    found: dict[str, Computation] = {}

    def visit(name: str) -> None:
        computation = module.computations[name]
        for instruction in computation:
            for _, callee in instruction.called:
                if callee not in found and _what(module, instruction) in (_FUSED, _CONTROL):
                    visit(callee)
        found[name] = computation

    visit(module.entry)
    return list(found.values())


# What an instruction is kept as: of a fusion with a collective that, of arithmetic its cycles.
_FUSED, _CONTROL, _COLLECTIVE, _ARITHMETIC = "fused", "control", "collective", "arithmetic"
_VALUES = (
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "compare",
    "add",
    "copy",
)


def _what(module: Module, instruction: Instruction) -> str:
    opcode = instruction.opcode
    if opcode in ("while", "call", "conditional"):
        return _CONTROL
    if opcode.startswith(("all-", "reduce-scatter", "collective-")):
        return _COLLECTIVE
    if "AsyncCollective" in instruction.attributes:
        return _COLLECTIVE
    if opcode == "fusion":
        called = module.computations[dict(instruction.called)["calls"]]
        if any(list(collectives_of(module, called, x)) for x in called):
            return _FUSED
    return _ARITHMETIC


def _kept(module: Module, computation: Computation) -> dict[str, None]:
    """Instructions that say something, and those whose results they take, by name in order."""
    kept: dict[str, None] = {}

    def keep(instruction: Instruction) -> None:
        if instruction.name in kept:
            return
        if _what(module, instruction) != _FUSED and _line_has_operands(module, instruction):
            for name in instruction.operands:
                keep(computation.instructions[name])
        kept[instruction.name] = None

    condition = computation.instructions[computation.root].opcode == "compare"
    for instruction in computation:
        counted = instruction.number("estimated_cycles") is not None
        state = instruction.name == computation.root and instruction.opcode == "tuple"
        if counted or condition or state or _what(module, instruction) != _ARITHMETIC:
            keep(instruction)
    return kept


def _line_has_operands(module: Module, instruction: Instruction) -> bool:
    what = _what(module, instruction)
    return what in (_CONTROL, _COLLECTIVE) or (
        what == _ARITHMETIC and instruction.opcode in _VALUES
    )


_ATTRIBUTES = (
    r"\b(?:calls|body|condition|index|channel_id|direction)=[%\w.\-]+",
    r"\breplica_groups=(?:\{\{.*?\}\}|\[[\d,]+\]|mesh\[[^\]]*\]\s*\{[^}]*\})",
    r'\bcustom_call_target="AsyncCollective\w+"',
)
_SETTINGS = (
    r'"async_collective_fusion_config":\{[^}]*\}',
    r'"known_trip_count":\{[^}]*\}',
    r'"estimated_cycles":"\d+"',
)


def _line(module: Module, instruction: Instruction) -> str:
    shapes = [
        f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
        + (f"{{:S({shape.space})}}" if shape.space else "")
        for shape in instruction.shapes
    ]
    shape = shapes[0] if len(shapes) == 1 else f"({', '.join(shapes)})"
    text, opcode = instruction.attributes, instruction.opcode
    given = ", ".join(f"%{name}" for name in instruction.operands)
    attributes = [found for part in _ATTRIBUTES for found in re.findall(part, text)]
    if opcode in ("parameter", "constant"):
        given = instruction.literal
    elif not _line_has_operands(module, instruction):
        given = ""
        if _what(module, instruction) == _ARITHMETIC:
            opcode, attributes = "custom-call", []
    settings = [found for part in _SETTINGS for found in re.findall(part, text)]
    if settings:
        attributes.append(f"backend_config={{{','.join(settings)}}}")
    return f"%{instruction.name} = {shape} {', '.join([f'{opcode}({given})', *attributes])}"


if __name__ == "__main__":
    for mesh in MESHES:
        text = network_text(compile_program(update_program(mesh)).text)
        packed = gzip.compress(text.encode(), mtime=0)
        (HERE / f"update_{mesh}.network.txt.gz").write_bytes(packed)
