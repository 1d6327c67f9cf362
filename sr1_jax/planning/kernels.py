"""FLOPs and bytes of Pallas kernels, which the compiler's text does not show."""

from __future__ import annotations

import re
from typing import NamedTuple

from sr1_jax.models.decode_kernel import pages_at_a_time
from sr1_jax.planning.hlo import Computation, Instruction, Shape

# Kernel of splash attention -> products of [T, E] and [E, T] size it computes for each head.
# fwd: scores, outputs. dkv: scores, their gradient, those of values and keys. dq: scores, their
# gradient, that of queries.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
_PAGED = "paged_attention"


class KernelCosts(NamedTuple):
    """Of one call on a device.

    Attributes:
        flops: None if nothing is known.
        bytes: to and from main memory; None: all operands and results, once.
    """

    flops: int | None
    bytes: float | None = None


def kernel_costs(
    computation: Computation, call: Instruction, filled: float | None = None
) -> KernelCosts:
    """Costs of a custom call: of an attention kernel by its operands, else FLOPs as it says itself.

    Splash attention skips blocks above the diagonal, so half of a square counts. Paged attention
    reads what is filled, in whole blocks: half of one more than the positions on average.

    Args:
        computation: of the call.
        call: any instruction.
        filled: positions of a slot that hold a token, on average; None: all.
    """
    if call.opcode != "custom-call" or "tpu_custom_call" not in call.attributes:
        return KernelCosts(0)
    name = f"{call.name} {call.attributes}"
    operands = [shape for x in call.operands for shape in computation.instructions[x].shapes]
    # Queries are the first operand of rank three or more and of a float type.
    floats = [s for s in operands if s.dtype in ("bf16", "f32", "f16") and len(s.dims) >= 3]
    if _PAGED in name:
        return _paged_attention(call, operands, floats, filled)
    said = re.search(r'"cost_estimate":\{[^{}]*"flops":"?(\d+)', call.attributes)
    if said:
        return KernelCosts(int(said[1]))
    kernel = next((kernel for kernel in _PRODUCTS if kernel in name), None)
    if kernel is None:
        return KernelCosts(None)
    *_, length, _ = floats[0].dims  # [.., H, T, E]
    return KernelCosts(_PRODUCTS[kernel] * 2 * floats[0].size * length // 2)


def _paged_attention(
    call: Instruction, operands: list[Shape], floats: list[Shape], filled: float | None
) -> KernelCosts:
    queries, *pages = floats  # [sequences, G, .., E], and twice [1, pages, positions, E]
    sequences = queries.dims[0]
    _, everything, page, _ = pages[0].dims
    held = everything // sequences * page
    block = page * pages_at_a_time(everything // sequences, page)
    read = held if filled is None else min(held, filled + block / 2)
    rest = sum(shape.bytes for shape in (*operands, *call.shapes) if shape.space == 0)
    kept = sum(shape.bytes for shape in pages)
    return KernelCosts(int(2 * 2 * queries.size * read), rest - kept * (1 - read / held))
