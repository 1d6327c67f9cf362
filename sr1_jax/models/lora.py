"""Low-rank adapters (Hu et al. 2021): a frozen kernel W acts as W + alpha / rank · A B.

A is [inputs…, rank] and random, B is [rank, outputs…] and zero, so a new adapter changes nothing.
Adapters are `nnx.LoRAParam`s, which is how they are told from the base everywhere else. The layer
is our own: `nnx.LoRA` knows neither several input or output axes nor alpha, and Qwix makes
adapters while a module is called, which in a scan over stacked layers comes too late.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.sharding import tree_shardings

Model = TypeVar("Model", bound=nnx.Module)

# The linear maps of a layer that may have an adapter.
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels have an adapter, of what rank; what an adapter adds is times alpha / rank.

    Raises:
        ValueError: naming the key, its value and what would do.
    """

    rank: int
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"LoraConfig.rank must be at least 1, not {self.rank}.")
        if not self.alpha > 0:
            raise ValueError(f"LoraConfig.alpha must be above 0, not {self.alpha}.")
        if not self.targets or not set(self.targets) <= set(TARGETS):
            raise ValueError(
                f"LoraConfig.targets must be some of {', '.join(TARGETS)}, not {self.targets}."
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nnx.LinearGeneral):
    """A linear map over the last axes of its input, and its adapter, which is kept in float32.

    Args:
        inputs, outputs: sizes of the axes.
        lora: of the adapter.
        rngs, more: as `nnx.LinearGeneral`.
    """

    def __init__(self, inputs, outputs, *, lora: LoraConfig, rngs: nnx.Rngs, **more):
        super().__init__(inputs, outputs, rngs=rngs, **more)
        self.inputs = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        out = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        self.scale = lora.scale
        # As of the kernel itself: uniform up to 1 / sqrt(inputs).
        bound = math.prod(self.inputs) ** -0.5
        a = jax.random.uniform(rngs.params(), (*self.inputs, lora.rank), jnp.float32, -bound, bound)
        self.lora_a = nnx.LoRAParam(a)
        self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, *out), jnp.float32))

    def __call__(self, x):
        axes = len(self.inputs)
        low, a, b = self.promote_dtype((x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
        low = jnp.tensordot(low, a, axes=axes)
        return super().__call__(x) + self.scale * jnp.tensordot(low, b, axes=1)


def add_adapters(model: Model, lora: LoraConfig, *, seed: int, mesh: Mesh | None = None) -> Model:
    """The model with new adapters on its layers; it shares the base's arrays.

    Args:
        model: a decoder or value model without adapters.
        lora: which, and of what rank.
        seed: of the random halves.
        mesh: to initialise them straight into; None for the default device.
    """
    config = dataclasses.replace(model.config, lora=lora)

    def adapters():
        return nnx.state(type(model)(config, rngs=nnx.Rngs(seed)), nnx.LoRAParam)

    where = None if mesh is None else tree_shardings(nnx.eval_shape(adapters), mesh)
    # Under jit the base is never computed: only the adapters are asked for.
    new = jax.jit(adapters, out_shardings=where)()
    graph = nnx.graphdef(nnx.eval_shape(lambda: type(model)(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, new, _same_arrays(nnx.state(model)))


def without_adapters(model: Model) -> Model:
    """The base of a model, sharing its arrays: the policy as it was before training."""
    base = _same_arrays(nnx.split(model, nnx.LoRAParam, ...)[2])
    config = dataclasses.replace(model.config, lora=None)
    return nnx.merge(
        nnx.graphdef(nnx.eval_shape(lambda: type(model)(config, rngs=nnx.Rngs(0)))), base
    )


def _same_arrays(state: nnx.State) -> nnx.State:
    """Variables of its own with the same arrays: setting the one does not set the other."""
    return jax.tree.map(lambda x: x, state)


def merged_model(model: Model) -> Model:
    """The plain model that computes the same as one with adapters: a new base, in its dtype and
    where it was."""
    plain = without_adapters(model)
    graph, base = nnx.split(plain)
    merge = jax.jit(
        lambda params: merge_adapters(params, model.config.lora),
        out_shardings=jax.tree.map(lambda x: x.sharding, base),
    )
    return nnx.merge(graph, merge(nnx.state(model)))


def merge_adapters(params: nnx.State, lora: LoraConfig) -> nnx.State:
    """Parameters of the plain model that computes the same: every kernel with what its adapter
    adds; traceable.

    Args:
        params: base and adapters of a model, kernels stacked along a leading axis of layers.
        lora: of the model.

    Returns:
        A state without adapters, in the dtypes of the base; the sums are in float32.
    """
    flat = dict(nnx.to_flat_state(params))
    merged = []
    for path, variable in flat.items():
        if path[-1] in ("lora_a", "lora_b"):
            continue
        if (*path[:-1], "lora_a") in flat and path[-1] == "kernel":
            a_LIr, b_LrO = (flat[(*path[:-1], name)][...] for name in ("lora_a", "lora_b"))
            added = jax.lax.dot_general(
                a_LIr, b_LrO, (((a_LIr.ndim - 1,), (1,)), ((0,), (0,))),
                preferred_element_type=jnp.float32,
            )  # fmt: skip
            kernel = variable[...]
            summed = kernel.astype(jnp.float32) + lora.scale * added
            variable = variable.replace(summed.astype(kernel.dtype))
        merged.append((path, variable))
    return nnx.from_flat_state(merged)
