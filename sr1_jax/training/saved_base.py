"""Policies by Orbax that a run starts from: parameters, shape and tokenizer in one folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sr1_jax.agreement import from_first, lead_on_file_system, wait_for_all
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.rotary import RopeScaling
from sr1_jax.models.small_tokenizer import load_small_tokenizer
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.sharding import tree_shardings

_SHAPE_FILE = "model.json"


def save_base(folder: Path, config: DecoderConfig, params: nnx.State, tokenizer: Tokenizer) -> None:
    """Writes a policy trained from scratch: parameters, shape and tokenizer.

    The shape, `model.json`, is written last: its presence says that the rest is complete. Process
    0 writes it whole; on file systems of their own others write copies of its files.
    """
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    lead = lead_on_file_system(folder)
    files: list[tuple[str, bytes]] = []
    if jax.process_index() == 0:
        _write_base(folder, config, params, tokenizer)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = [(str(path.relative_to(folder)), path.read_bytes()) for path in paths]
    files = from_first(files) if jax.process_count() > 1 else []
    if lead == jax.process_index() != 0:
        for name, content in sorted(files, key=lambda file: file[0] == _SHAPE_FILE):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    wait_for_all()


def _write_base(
    folder: Path, config: DecoderConfig, params: nnx.State, tokenizer: Tokenizer
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="base"
    )
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder.resolve() / "params", params, force=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / _SHAPE_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def read_base_config(folder: Path) -> DecoderConfig:
    """The shape of what `save_base` wrote.

    Raises:
        ValueError: there is no complete base policy in the folder.
    """
    if not (folder / "model.json").is_file():
        raise ValueError(
            f"{folder} holds no base policy; run the warm start first "
            "(python -m sr1_jax.train --config=configs/demo.py --workdir=…)."
        )
    shape = json.loads((folder / "model.json").read_text())
    if shape.get("rope_scaling"):
        shape["rope_scaling"] = RopeScaling(**shape["rope_scaling"])
    return DecoderConfig(**shape)


def load_base(
    folder: Path, mesh: Mesh, tokenizer: Tokenizer | None = None, **numerics: Any
) -> tuple[Decoder, Tokenizer]:
    """Loads what `save_base` wrote, straight into the mesh.

    Args:
        folder: that was written.
        mesh: of `sharding.make_mesh`.
        tokenizer: of a pretrained model, which knows more than the file that was written; None: a
            small one, of that file.
        numerics: `dtype`, `param_dtype` and `remat` of the decoder, where they are not to be those
            it was saved with.

    Raises:
        ValueError: there is no complete base policy in the folder.
    """
    config = dataclasses.replace(read_base_config(folder), **numerics)
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(abstract)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder.resolve() / "params", like)
    model = nnx.merge(graph, params)
    return model, tokenizer or load_small_tokenizer(str(folder / "tokenizer.json"))
