"""Where arrays live: the mesh, one table of logical axes, one of mesh axes, and what models say of
their activations.

    axes         the tables, and the partition specs that follow from them
    mesh         devices as a mesh
    placement    shardings of whole trees
    collectives  activations while a model is traced: `compute_on`, `constrain`, …
"""

from sr1_jax.sharding.axes import (
    CACHE_AXES,
    MESH_AXES,
    PARAMETER_AXES,
    RULES,
    SERVING_AXES,
    batch_parts,
    named,
    spec,
)
from sr1_jax.sharding.collectives import (
    axis_size,
    compute_on,
    constrain,
    current_mesh,
    current_platform,
    for_own_heads,
    gather_layer,
    look_up,
    reshard,
)
from sr1_jax.sharding.mesh import device_grid, make_mesh
from sr1_jax.sharding.placement import place, serving_shardings, tree_shardings

__all__ = [
    "CACHE_AXES",
    "MESH_AXES",
    "PARAMETER_AXES",
    "RULES",
    "SERVING_AXES",
    "axis_size",
    "batch_parts",
    "compute_on",
    "constrain",
    "current_mesh",
    "current_platform",
    "device_grid",
    "for_own_heads",
    "gather_layer",
    "look_up",
    "make_mesh",
    "named",
    "place",
    "reshard",
    "serving_shardings",
    "spec",
    "tree_shardings",
]
