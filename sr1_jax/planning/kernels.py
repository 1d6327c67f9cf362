"""FLOPs of Pallas kernels, which the compiler's text does not show."""

from __future__ import annotations

import re

from sr1_jax.planning.hlo import Computation, Instruction

# Kernel of splash attention -> products of [T, E] and [E, T] size it computes for each head.
# fwd: scores, outputs. dkv: scores, their gradient, those of values and keys. dq: scores, their
# gradient, that of queries.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}


def kernel_flops(computation: Computation, call: Instruction) -> int | None:
    """FLOPs of a custom call: of an attention kernel by its operands, else as it says itself.

    Blocks above the diagonal are skipped, so half of a square counts. None: nothing is known.
    """
    if call.opcode != "custom-call" or "tpu_custom_call" not in call.attributes:
        return 0
    said = re.search(r'"cost_estimate":\{[^{}]*"flops":"?(\d+)', call.attributes)
    if said:
        return int(said[1])
    kernel = next((name for name in _PRODUCTS if name in f"{call.name} {call.attributes}"), None)
    if kernel is None:
        return None
    operands = [computation.instructions[name] for name in call.operands]
    # Queries are the first operand of rank three or more and of a float type: [.., H, T, E].
    queries = next(
        shape
        for operand in operands
        for shape in operand.shapes
        if shape.dtype in ("bf16", "f32", "f16") and len(shape.dims) >= 3
    )
    *_, length, _ = queries.dims
    return _PRODUCTS[kernel] * 2 * queries.size * length // 2
