"""The two tables: the logical axes of every parameter, and the mesh axes that split each of them.

Every parameter has logical axes by its name; every logical axis maps to mesh axes.
"""

from __future__ import annotations

import math

from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes.
RULES: dict[str | None, tuple[str, ...] | str | None] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ff": "tensor",
    "sequence": "tensor",
    "layer": None,
    # The output head takes the tokens of all `fsdp` devices and splits the vocabulary over them,
    # too: a chunk of hidden states is a tenth of the head's weights.
    "head_batch": "data",
    "head_vocab": ("tensor", "fsdp"),
    None: None,
}

# Kernel of a layer -> the logical axes of its inputs and of its outputs.
_KERNELS: dict[str, tuple[tuple[str | None, ...], tuple[str | None, ...]]] = {
    "attention/q": (("embed",), ("heads", None)),
    "attention/k": (("embed",), ("kv_heads", None)),
    "attention/v": (("embed",), ("kv_heads", None)),
    "attention/o": (("heads", None), ("embed",)),
    "ff/gate": (("embed",), ("ff",)),
    "ff/up": (("embed",), ("ff",)),
    "ff/down": (("ff",), ("embed",)),
}


def _of_kernels() -> dict[str, tuple[str | None, ...]]:
    """Axes of the kernels of a layer, their biases and their adapters (`models.lora`)."""
    axes: dict[str, tuple[str | None, ...]] = {}
    for name, (inputs, outputs) in _KERNELS.items():
        axes[f"{name}/kernel"] = ("layer", *inputs, *outputs)
        axes[f"{name}/bias"] = ("layer", *outputs)
        axes[f"{name}/lora_a"] = ("layer", *inputs, None)
        axes[f"{name}/lora_b"] = ("layer", None, *outputs)
    return axes


# End of a parameter's path -> its logical axes. Layers are stacked in front.
PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    "trunk/embed/embedding": ("vocab", "embed"),
    "trunk/norm/scale": (None,),
    "attention_norm/scale": ("layer", None),
    "ff_norm/scale": ("layer", None),
    "attention/q_norm/scale": ("layer", None),
    "attention/k_norm/scale": ("layer", None),
    **_of_kernels(),
    "head/kernel": ("embed", "vocab"),
    "head/bias": (None,),
}

# Field of `models.serving.ServingParams` -> its logical axes: `tensor` is all that splits them.
SERVING_AXES: dict[str, tuple[str | None, ...]] = {
    "embed_VD": ("vocab", None),
    "norm_D": (None,),
    "head_VD": ("vocab", None),
    "attention_norm_D": (None,),
    "qkv_KJED": ("kv_heads", None, None, None),
    "qkv_bias_KJE": ("kv_heads", None, None),
    "q_norm_E": (None,),
    "k_norm_E": (None,),
    "o_DKGE": (None, "kv_heads", None, None),
    "ff_norm_D": (None,),
    "gate_up_2FD": (None, "ff", None),
    "down_DF": (None, "ff"),
}

CACHE_AXES = ("batch", "kv_heads")  # of keys and of values; what follows is whole


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """The mesh axes that a logical axis is split over."""
    names = RULES[axis]
    return (names,) if isinstance(names, str) else names or ()


def parts_of(axis: str | None, mesh: Mesh | None) -> int:
    """Into how many parts a logical axis is split over a mesh; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in mesh_axes(axis))


def batch_parts(mesh: Mesh | None) -> int:
    """Into how many parts a batch is split over the mesh."""
    return parts_of("batch", mesh)


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Partition spec of logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Sharding of an array with the given logical axes."""
    return NamedSharding(mesh, spec(axes))
