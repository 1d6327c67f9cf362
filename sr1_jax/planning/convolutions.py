"""FLOPs of convolutions: what the TPU compiler makes of every matrix product."""

from __future__ import annotations

import math
import re

from sr1_jax.planning.hlo import Computation, Instruction


def convolution_flops(computation: Computation, convolution: Instruction) -> int:
    """Two for each product of numbers that are there.

    A batched matrix product becomes a convolution over a window in which most places are padding
    or holes of a dilation; these multiply nothing and do not count.
    (https://openxla.org/xla/operation_semantics#conv_convolution)
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    left_labels, right_labels, out_labels = labels.groups()
    left, right = (computation.instructions[name].shapes[0].dims for name in convolution.operands)
    out = convolution.shapes[0].dims
    spatial = sorted(label for label in left_labels if label.isdigit())
    window = {
        key: _window(convolution.attributes, key, default, len(spatial))
        for key, default in (("stride", 1), ("pad", (0, 0)), ("lhs_dilate", 1), ("rhs_dilate", 1))
    }
    places = math.prod(
        _valid_places(
            left[left_labels.index(label)],
            right[right_labels.index(label)],
            out[out_labels.index(label)],
            *(window[key][axis] for key in window),
        )
        for axis, label in enumerate(spatial)
    )
    batch = out[out_labels.index("b")]
    batch //= _count(convolution.attributes, "batch_group_count")
    features = right[right_labels.index("i")] * out[out_labels.index("f")]
    return 2 * batch * features * places


def _window(attributes: str, key: str, default, axes: int) -> list:
    found = re.search(rf"window=\{{[^}}]*\b{key}=([\d_x\-]+)", attributes)
    if not found:
        return [default] * axes
    parts = found[1].split("x")
    if isinstance(default, tuple):
        return [tuple(int(x) for x in part.split("_")) for part in parts]
    return [int(part) for part in parts]


def _valid_places(
    size: int, window: int, out: int, stride: int, pad: tuple[int, int], dilate: int, spread: int
) -> int:
    """Pairs of a place in the output and one in the window that meet a number of the input."""
    last = (size - 1) * dilate
    if stride == 1 and dilate == 1 and pad == (0, 0):
        return out * window
    count = 0
    for place in range(window):
        start = place * spread - pad[0]
        # start + stride · t lies in [0, last] and is a multiple of `dilate`.
        if dilate == 1:
            low = -(start // stride) if start < 0 else 0
            high = min(out - 1, (last - start) // stride) if last >= start else -1
            count += max(0, high - low + 1)
        else:
            count += sum(
                0 <= start + stride * t <= last and (start + stride * t) % dilate == 0
                for t in range(out)
            )
    return count


def _count(attributes: str, key: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", attributes)
    return int(found[1]) if found else 1
