"""What makes a vector of a text, beside the weights: pooling, length, prefixes.

A folder of sentence-transformers says it in modules.json, 1_Pooling/config.json,
sentence_bert_config.json and config_sentence_transformers.json. What a folder leaves open follows
from the model's name, as its authors describe it:

    E5                  "query: " and "passage: ", mean (arXiv 2212.03533, section 3.3 and the cards
                        of intfloat/e5-*)
    E5, instruct        an instruction before queries alone, mean; Mistral's: last token
    BGE, v1 and v1.5    an instruction before queries alone, first token (arXiv 2309.07597)
    Qwen3-Embedding     an instruction before queries alone, last token (arXiv 2506.05176)
    MiniLM, others      nothing before either, mean
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from sr1_jax.models.encoder import POOLINGS
from sr1_jax.models.json_file import JsonObject

_TASK = "Given a web search query, retrieve relevant passages that answer the query"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a text becomes a vector.

    Attributes:
        pooling: of `encoder.POOLINGS`.
        normalized: whether vectors have length 1.
        max_tokens: that a text keeps at most, special tokens included.
        query_prefix, passage_prefix: put before texts of each kind.
    """

    pooling: str
    normalized: bool
    max_tokens: int
    query_prefix: str
    passage_prefix: str


# Pattern of a name, in lower case -> (pooling, query prefix, passage prefix); the first that fits.
_BY_NAME: tuple[tuple[str, tuple[str, str, str]], ...] = (
    (r"\be5-mistral", ("last", f"Instruct: {_TASK}\nQuery: ", "")),
    (r"\be5\b.*instruct", ("mean", f"Instruct: {_TASK}\nQuery: ", "")),
    (r"\be5\b", ("mean", "query: ", "passage: ")),
    (r"\bbge-m3", ("cls", "", "")),
    (r"\bbge\b.*zh", ("cls", "为这个句子生成表示以用于检索相关文章：", "")),
    (r"\bbge\b", ("cls", "Represent this sentence for searching relevant passages: ", "")),
    (r"qwen3-embedding", ("last", f"Instruct: {_TASK}\nQuery:", "")),
    (r"minilm", ("mean", "", "")),
)


def read_recipe(
    folder: Path,
    config: JsonObject,
    most_tokens: int,
    *,
    pooling: str | None = None,
    normalized: bool | None = None,
    max_tokens: int | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
) -> Recipe:
    """The recipe of a folder.

    Args:
        folder: of the model.
        config: its config.json.
        most_tokens: positions that the encoder has.
        pooling, normalized, max_tokens, query_prefix, passage_prefix: instead of what the folder or
            the name says; None asks them.

    Raises:
        ValueError: naming the file and key, or the setting: nothing says how to pool, something is
            asked for that is not supported, or `max_tokens` exceeds the positions.
    """
    named = _by_name(folder, config)
    modules = _modules(folder)
    if pooling is None:
        pooling = _pooling(folder, modules) or (named[0] if named else None)
    if pooling is None:
        raise ValueError(
            f"{folder}: neither modules.json nor the model's name says how its vectors are made; "
            f"set retrieval.dense.pooling to one of {', '.join(POOLINGS)}."
        )
    if normalized is None:
        normalized = modules is None or "Normalize" in modules
    own = JsonObject.read(folder / "sentence_bert_config.json", optional=True)
    longest = min(own.integer("max_seq_length", most_tokens), most_tokens)
    if max_tokens is not None and max_tokens > most_tokens:
        raise ValueError(
            f"retrieval.dense.max_tokens={max_tokens} exceeds the {most_tokens} positions of "
            f"{folder}; lower it."
        )
    queries, passages = _prompts(folder) or (named[1:] if named else ("", ""))
    return Recipe(
        pooling=pooling,
        normalized=normalized,
        max_tokens=max_tokens or longest,
        query_prefix=queries if query_prefix is None else query_prefix,
        passage_prefix=passages if passage_prefix is None else passage_prefix,
    )


def _by_name(folder: Path, config: JsonObject) -> tuple[str, str, str] | None:
    """By the folder's name, as given, as it is behind links, or of the hub's cache it lies in;
    else by that which config.json says it was made from."""
    resolved = folder.resolve()
    cached = [part.rpartition("--")[2] for part in resolved.parts if part.startswith("models--")]
    for name in (folder.name, resolved.name, *cached, config.string("_name_or_path", "")):
        for pattern, found in _BY_NAME:
            if re.search(pattern, name.lower().replace("_", "-")):
                return found
    return None


def _modules(folder: Path) -> dict[str, str] | None:
    """Class of each module of modules.json -> its folder; None where there is no such file."""
    file = folder / "modules.json"
    if not file.is_file():
        return None
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        modules = {each["type"].rpartition(".")[2]: each["path"] for each in listed}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: not a list of modules with type and path ({error}).") from error
    if unknown := sorted(set(modules) - {"Transformer", "Pooling", "Normalize"}):
        raise ValueError(
            f"{file}: the module {unknown[0]} is not supported; Transformer, Pooling and Normalize "
            "are."
        )
    return modules


def _pooling(folder: Path, modules: dict[str, str] | None) -> str | None:
    if modules is None or "Pooling" not in modules:
        return None
    file = JsonObject.read(folder / modules["Pooling"] / "config.json")
    keys = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    asked = [key for key in file.values if key.startswith("pooling_mode_") and file.boolean(key)]
    if len(asked) != 1 or asked[0] not in keys:
        raise ValueError(
            f"{file.name}: asks for {', '.join(asked) or 'no pooling'}; exactly one of "
            f"{', '.join(keys)} is supported."
        )
    return keys[asked[0]]


def _prompts(folder: Path) -> tuple[str, str] | None:
    """Prefixes by config_sentence_transformers.json; None where it has none."""
    file = JsonObject.read(folder / "config_sentence_transformers.json", optional=True)
    prompts = file.object("prompts", {})
    if not any(prompts.values.values()):
        return None
    queries = prompts.string("query", "")
    passage_key = next((key for key in ("document", "passage") if key in prompts), "document")
    return queries, prompts.string(passage_key, "")
