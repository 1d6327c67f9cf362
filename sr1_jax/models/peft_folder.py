"""Adapters in and out: folders of the package peft, adapter_config.json and
adapter_model.safetensors.

A tensor is called `base_model.model.<the kernel's module>.lora_A.weight`; A is [rank, inputs] and B
[outputs, rank], and what they add is scaled by alpha / rank (peft's `LoraLayer.update_layer`), or
with rank-stabilised scaling by alpha / sqrt(rank) (Kalajdzievski 2023).
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from sr1_jax.models.decoder import Decoder
from sr1_jax.models.export import family_name, new_folder, write_json
from sr1_jax.models.families import FAMILIES, Weight
from sr1_jax.models.json_file import JsonObject
from sr1_jax.models.lora import TARGETS, LoraConfig
from sr1_jax.models.safetensors_files import SafetensorsFiles
from sr1_jax.models.weights import fits, listed
from sr1_jax.sharding import place

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# Settings that change what an adapter computes in a way we do not know: the values that do not.
_MUST_BE = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
}


def _kernels(family: str) -> dict[str, Weight]:
    """The kernels that may have an adapter, by the name of their target."""
    found = {}
    for weight in FAMILIES[family].weights:
        *_, target, part = weight.parameter.split(".")
        if part == "kernel" and target in TARGETS:
            found[target] = weight
    return found


def _name(weight: Weight, layer: int, half: str) -> str:
    module = weight.hf.format(layer).removesuffix(".weight")
    return f"{_PREFIX}{module}.lora_{half}.weight"


def read_lora_config(folder: str | Path, family: str) -> LoraConfig:
    """Rank, alpha and targets of the adapters in a folder; their values are not read.

    Args:
        folder: that peft or `save_adapters` wrote.
        family: of the model that they belong to, a key of `families.FAMILIES`.

    Raises:
        ValueError: naming file and key: something is missing, of another type, or changes what an
            adapter computes in a way that is not supported.
    """
    return _read_config(JsonObject.read(Path(folder) / _CONFIG), family)


def _read_config(config: JsonObject, family: str) -> LoraConfig:
    config.string("peft_type")
    for key, values in _MUST_BE.items():
        if config.get(key, values[0]) not in values:
            raise config.error(key, f"be {values[0]!r}; nothing else is supported")
    rank, alpha = config.integer("r"), config.number("lora_alpha")
    if config.boolean("use_rslora", False):
        alpha *= math.sqrt(rank)
    modules = {weight.hf.split(".")[-2]: target for target, weight in _kernels(family).items()}
    if config.get("target_modules") == "all-linear":
        return LoraConfig(rank, alpha, TARGETS)
    # A module may be named with a part of its path: the last word says which.
    named = {module: module.split(".")[-1] for module in config.strings("target_modules")}
    if unknown := [module for module, last in named.items() if last not in modules]:
        raise config.error(
            "target_modules", f"hold only {', '.join(modules)}, which {unknown[0]!r} is not"
        )
    if not named:
        raise config.error("target_modules", "name at least one module")
    targets = {modules[last] for last in named.values()}
    return LoraConfig(rank, alpha, tuple(target for target in TARGETS if target in targets))


def load_adapters(model: Decoder, folder: str | Path) -> None:
    """Fills the adapters of a model with those of a folder, where they lie.

    Args:
        model: with adapters, of the folder's rank, alpha and targets (`read_lora_config`).
        folder: that peft or `save_adapters` wrote.

    Raises:
        ValueError: naming the file: they are other adapters than the model has, a tensor is
            missing, too many, of another shape, or holds numbers that are not finite.
    """
    folder = Path(folder)
    family = family_name(model.config)
    found = read_lora_config(folder, family)
    if found != model.config.lora:
        raise ValueError(f"{folder / _CONFIG}: {found}, but the model has {model.config.lora}.")
    tensors = SafetensorsFiles(folder, _WEIGHTS)
    variables = dict(nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)))
    layers = range(model.config.layers)
    known = set()
    filled = []
    for target, weight in _kernels(family).items():
        if target not in found.targets:
            continue
        for half, part in (("A", "lora_a"), ("B", "lora_b")):
            path = (*weight.parameter.split(".")[:-1], part)
            variable = variables[path]
            each = variable.shape[1:]
            ours = (
                (math.prod(each[:-1]), each[-1]) if half == "A" else (each[0], math.prod(each[1:]))
            )
            names = [_name(weight, layer, half) for layer in layers]
            arrays = [_read(tensors, folder / _WEIGHTS, name, ours[::-1]).T for name in names]
            known |= set(names)
            stacked = np.stack(arrays).reshape(variable.shape)
            value = place(stacked.astype(variable.dtype), variable.get_value().sharding)
            filled.append((path, variable.replace(value)))
    if unknown := tensors.shapes.keys() - known:
        raise ValueError(f"{folder / _WEIGHTS}: tensors that have no place: {listed(unknown)}.")
    nnx.update(model, nnx.from_flat_state(filled))


def _read(tensors: SafetensorsFiles, file: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors.shapes:
        raise ValueError(f"{file}: {name} is missing.")
    if tensors.shapes[name] != shape:
        raise ValueError(
            f"{file}: {name} has shape {list(tensors.shapes[name])}, but the model asks for "
            f"{list(shape)}."
        )
    array = tensors.rows(name, 0, shape[0])
    if not fits(array, np.dtype(np.float32)):
        raise ValueError(f"{file}: {name} holds NaN or infinite numbers.")
    return array.astype(np.float32)


def save_adapters(model: Decoder, folder: str | Path, *, base: str = "") -> None:
    """Writes the adapters of a model so that peft loads them onto its base.

    The folder appears when all of it is written, or not at all.

    Args:
        model: with adapters, which may be split over devices of this process.
        folder: must not exist, or be empty.
        base: where the base model is to be found, for the readers of the folder.

    Raises:
        ValueError: the folder holds something, the model has no adapters or is of no family, or
            there are several processes.
    """
    lora = model.config.lora
    if lora is None:
        raise ValueError("The model has no adapters; export it whole.")
    kernels = _kernels(family_name(model.config))
    variables = dict(nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        # peft declares an integer, and takes any number.
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": [kernels[target].hf.split(".")[-2] for target in lora.targets],
    }
    with new_folder(folder) as draft:
        tensors = {}
        for target in lora.targets:
            for half, part in (("A", "lora_a"), ("B", "lora_b")):
                path = (*kernels[target].parameter.split(".")[:-1], part)
                stacked = np.asarray(jax.device_get(variables[path].get_value()), np.float32)
                for layer, ours in enumerate(stacked):
                    flat = ours.reshape((-1, lora.rank) if half == "A" else (lora.rank, -1))
                    name = _name(kernels[target], layer, half)
                    tensors[name] = np.ascontiguousarray(flat.T)
        write_json(draft / _CONFIG, config)
        safetensors.numpy.save_file(tensors, draft / _WEIGHTS, metadata={"format": "pt"})
