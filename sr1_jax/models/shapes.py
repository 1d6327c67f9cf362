"""Shapes of published models, so that one can be built or planned before a file is downloaded.

`SHAPES` holds, for each model, what its config.json says and the number of parameters its authors
publish; base and instruct variants have the same shape. `parameter_count` of a built decoder
equals that number (a test checks every one).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.rotary import RopeScaling


class Shape(NamedTuple):
    """Fields of a `DecoderConfig`, and how many parameters that makes."""

    parameters: int
    fields: dict[str, Any]


def _qwen2_5(parameters: int, width, layers, heads, kv_heads, ff_width, *, vocab_size=152_064,
             head_dim=128, norm_eps=1e-6, tied=False) -> Shape:  # fmt: skip
    return Shape(parameters, dict(
        vocab_size=vocab_size, width=width, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, ff_width=ff_width, rope_theta=1e6, norm_eps=norm_eps, qkv_bias=True,
        tied_embeddings=tied,
    ))  # fmt: skip


def _qwen3(parameters: int, width, layers, heads, ff_width, *, tied) -> Shape:
    return Shape(parameters, dict(
        vocab_size=151_936, width=width, layers=layers, heads=heads, kv_heads=8, head_dim=128,
        ff_width=ff_width, rope_theta=1e6, max_positions=40_960, norm_eps=1e-6, qk_norm=True,
        tied_embeddings=tied,
    ))  # fmt: skip


def _llama3(parameters: int, width, layers, heads, ff_width, *, head_dim, factor, tied) -> Shape:
    return Shape(parameters, dict(
        vocab_size=128_256, width=width, layers=layers, heads=heads, kv_heads=8,
        head_dim=head_dim, ff_width=ff_width, rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", factor, 1.0, 4.0, 8192), max_positions=131_072,
        norm_eps=1e-5, tied_embeddings=tied,
    ))  # fmt: skip


SHAPES = {
    "qwen2.5-0.5b": _qwen2_5(
        494_032_768, 896, 24, 14, 2, 4864, vocab_size=151_936, head_dim=64, tied=True
    ),
    "qwen2.5-1.5b": _qwen2_5(1_543_714_304, 1536, 28, 12, 2, 8960, vocab_size=151_936, tied=True),
    "qwen2.5-3b": _qwen2_5(3_085_938_688, 2048, 36, 16, 2, 11_008, vocab_size=151_936, tied=True),
    "qwen2.5-7b": _qwen2_5(7_615_616_512, 3584, 28, 28, 4, 18_944),
    "qwen2.5-14b": _qwen2_5(14_770_033_664, 5120, 48, 40, 8, 13_824, norm_eps=1e-5),
    "qwen2.5-32b": _qwen2_5(32_763_876_352, 5120, 64, 40, 8, 27_648, norm_eps=1e-5),
    "qwen2.5-72b": _qwen2_5(72_706_203_648, 8192, 80, 64, 8, 29_568, norm_eps=1e-5),
    "qwen3-0.6b": _qwen3(596_049_920, 1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(1_720_574_976, 2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(4_022_468_096, 2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(8_190_735_360, 4096, 36, 32, 12_288, tied=False),
    "llama3.2-1b": _llama3(1_235_814_400, 2048, 16, 32, 8192, head_dim=64, factor=32.0, tied=True),
    "llama3.2-3b": _llama3(3_212_749_824, 3072, 28, 24, 8192, head_dim=128, factor=32.0, tied=True),
    "llama3.1-8b": _llama3(
        8_030_261_248, 4096, 32, 32, 14_336, head_dim=128, factor=8.0, tied=False
    ),
}

# What says how to compute or where weights came from, not what they mean; and the longest context
# that was trained on, in which base and instruct variants differ.
_FREE = ("dtype", "param_dtype", "remat", "unroll", "max_positions", "family")
# What config.json calls our fields, where the names differ.
_KEYS = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "ff_width": "intermediate_size",
    "norm_eps": "rms_norm_eps", "tied_embeddings": "tie_word_embeddings",
    "qkv_bias": "model_type", "qk_norm": "model_type",
}  # fmt: skip


def preset_config(name: str, **numerics: Any) -> DecoderConfig:
    """The decoder of a published model.

    Args:
        name: of `SHAPES`.
        numerics: other fields of `DecoderConfig`: dtype, param_dtype, remat, …

    Raises:
        ValueError: no such model.
    """
    if name not in SHAPES:
        raise ValueError(f"No model is called {name!r}; known are {', '.join(SHAPES)}.")
    return DecoderConfig(**SHAPES[name].fields, **numerics)


def check_is_preset(config: DecoderConfig, name: str, where: str) -> None:
    """Refuses a model that is not the one it is said to be.

    Args:
        config: of the model found.
        name: of `SHAPES`.
        where: the file it was found in.

    Raises:
        ValueError: naming the file, its first key that differs, and both values.
    """
    wanted = preset_config(name)
    for field in dataclasses.fields(DecoderConfig):
        found, meant = getattr(config, field.name), getattr(wanted, field.name)
        if field.name not in _FREE and found != meant:
            key = _KEYS.get(field.name, field.name)
            raise ValueError(
                f"{where}: by {key} the model's {field.name} is {found}, but that of {name} is "
                f"{meant}."
            )
