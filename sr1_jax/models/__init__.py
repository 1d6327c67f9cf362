"""Decoders, their tokenizers and weights."""

from __future__ import annotations

import importlib

_MODULE_OF = {
    "Decoder": "decoder",
    "DecoderConfig": "decoder",
    "KVCache": "serving",
    "ValueModel": "decoder",
    "preset_config": "shapes",
    "parameter_count": "decoder",
    "Tokenizer": "tokenizer",
    "load_pretrained": "pretrained",
    "find_smollm2": "pretrained",
    "save_pretrained": "export",
    "value_from_policy": "pretrained",
}
__all__ = sorted(_MODULE_OF)


# Loaded on first use: most importers have no use for the readers of files.
def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
