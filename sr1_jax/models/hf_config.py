"""The shape and numerics of a model from config.json of a Hugging Face folder."""

from __future__ import annotations

import json

from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.families import Family
from sr1_jax.models.json_file import JsonObject
from sr1_jax.models.rotary import RopeScaling

# Settings that change the computation in a way the decoder does not know, and what leaves it
# as it is. A key that is not in the file is at its default.
_MUST_BE = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}


def decoder_config(
    config: JsonObject, name: str, family: Family, *, dtype: str, param_dtype: str
) -> DecoderConfig:
    """The decoder that config.json describes.

    Args:
        config: the file's object.
        name: of the family.
        family: that it names.
        dtype: what activations are computed in.
        param_dtype: what parameters are kept in.

    Raises:
        ValueError: naming file and key: something is missing, of another type or out of range, or
            changes the computation in a way that the decoder does not know.
    """
    for key, value in _MUST_BE.items():
        if config.get(key, value) != value:
            raise config.error(key, f"be {json.dumps(value)}; nothing else is supported")
    if name == "mistral" and config.get("sliding_window") is not None:
        raise config.error(
            "sliding_window", "be null: only attention to the whole context is known"
        )
    # Newer files keep the base in `rope_parameters` with the scaling, older ones at the top level.
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.object(key, {})
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    shape = {
        "vocab_size": config.integer("vocab_size"),
        "width": width,
        "layers": config.integer("num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.integer("num_key_value_heads", heads),
        "head_dim": config.integer("head_dim", width // heads),
        "ff_width": config.integer("intermediate_size"),
        "rope_theta": (rope if "rope_theta" in rope else config).number("rope_theta", 10_000.0),
        "rope_scaling": _rope_scaling(rope),
        "max_positions": config.integer("max_position_embeddings", 32_768),
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "tied_embeddings": config.boolean("tie_word_embeddings", False),
    }
    try:
        return DecoderConfig(
            **shape,
            family=name,
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            dtype=dtype,
            param_dtype=param_dtype,
        )
    except ValueError as error:
        raise ValueError(f"{config.file}: {error}") from error


def _rope_scaling(rope: JsonObject) -> RopeScaling | None:
    """What the file says of longer contexts; None where positions are as they were trained."""
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise rope.error("partial_rotary_factor", "be 1.0; nothing else is supported")
    kind = rope.string("rope_type" if "rope_type" in rope else "type", "default")
    if kind == "default":
        return None
    needed = {"factor": "factor"}
    if kind == "llama3":
        needed |= {
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings",
        }
    found = {ours: rope.number(theirs) for ours, theirs in needed.items() if theirs in rope}
    try:
        scaling = RopeScaling(kind, **({"factor": 1.0} | found))
    except ValueError as error:
        raise ValueError(f"{rope.name}: {error}") from error
    for theirs in needed.values():
        rope.number(theirs)  # refuses that it is missing
    return scaling
