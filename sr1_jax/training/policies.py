"""Where a policy comes from: a pretrained model, a warm start, or a checkpoint of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models import Decoder, DecoderConfig, Tokenizer
from sr1_jax.models.pretrained import read_checkpoint
from sr1_jax.models.shapes import check_is_preset, preset_config
from sr1_jax.models.weights import Checkpoint, build
from sr1_jax.protocol.prompts import in_chat, load_template
from sr1_jax.sharding import tree_shardings
from sr1_jax.training.checkpoints import RunCheckpoints, load_base, read_base_config
from sr1_jax.training.settings import templates


def decoder_config(config: ml_collections.ConfigDict) -> DecoderConfig:
    """The shape of the policy, from settings and the heads of files: no weights are read.

    With model.preset no file is needed. A policy from scratch has as many ids as its tokenizer
    will get; model.vocab_size is the most it can.

    Raises:
        ValueError: there is no such model, or as `base_checkpoint`.
    """
    if config.base.path:
        return base_checkpoint(config).config
    if config.model.preset:
        return preset_config(config.model.preset, **_numerics(config))
    if config.base.workdir:
        return read_base_config(Path(config.base.workdir) / "base")
    return scratch_config(config, config.model.vocab_size)


def base_checkpoint(config: ml_collections.ConfigDict) -> Checkpoint:
    """What base.path holds, its tensors unread.

    Raises:
        ValueError: it is not model.preset, or cannot be loaded.
    """
    found = read_checkpoint(config.base.path)
    if config.model.preset:
        check_is_preset(found.config, config.model.preset, found.config_file)
    shape = dataclasses.replace(found.config, **_numerics(config))
    return dataclasses.replace(found, config=shape)


def check_base(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Refuses a base.path that cannot be loaded into the mesh, or whose chat template does not
    work where it is wanted; does nothing without one.

    Raises:
        ValueError: as `base_checkpoint` and `prompts.in_chat`, or an axis does not divide over the
            mesh.
    """
    if not config.base.path:
        return
    found = base_checkpoint(config)
    abstract = nnx.eval_shape(lambda: nnx.state(Decoder(found.config, rngs=nnx.Rngs(0))))
    tree_shardings(abstract, mesh)
    for template in templates(config).values() if config.rollout.chat else ():
        try:
            in_chat(load_template(template), found.tokenizer)
        except ValueError as error:
            raise ValueError(f"{found.path}: chat_template: {error}") from error


def _numerics(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {key: config.base[key] for key in ("dtype", "param_dtype", "remat")}


def scratch_config(config: ml_collections.ConfigDict, vocab_size: int) -> DecoderConfig:
    """The shape of a policy that is trained from scratch on a tokenizer of its own."""
    shape = config.model
    return DecoderConfig(
        vocab_size=vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.width // shape.heads,
        ff_width=shape.ff_width,
        qk_norm=shape.qk_norm,
        unroll=shape.layers,
    )


def starting_policy(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh
) -> tuple[Decoder, Tokenizer]:
    """The policy before reinforcement learning.

    Raises:
        ValueError: there is none yet: the warm start has not been run; or as `base_checkpoint`.
    """
    if config.base.path:
        checkpoint = base_checkpoint(config)
        return build(checkpoint, mesh), checkpoint.tokenizer
    source = Path(config.base.workdir) if config.base.workdir else workdir
    return load_base(source / "base", mesh)


def trained_policy(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh, *, base: bool = False
) -> tuple[Decoder, Tokenizer, str]:
    """The policy of the newest checkpoint below `workdir`, or the one training starts from.

    Args:
        config: of the run.
        workdir: of the run.
        mesh: of `make_mesh`.
        base: take the starting policy in any case.

    Returns:
        The policy, its tokenizer, and what it is: "base" or "step N".
    """
    policy, tokenizer = starting_policy(config, workdir, mesh)
    folder = workdir / "checkpoints"
    if base or not folder.is_dir():
        return policy, tokenizer, "base"
    checkpoints = RunCheckpoints(folder, keep=config.checkpoint.keep)
    step = checkpoints.latest_step
    checkpoints.close()
    if step is None:
        return policy, tokenizer, "base"
    graph, params = nnx.split(policy)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        params,
        tree_shardings(params, mesh),
    )
    # Only the policy: optimizer state and critic stay on disk.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            (folder / str(step) / "state").resolve(),
            args=ocp.args.PyTreeRestore(
                item={"policy": {"params": like}},
                restore_args=ocp.checkpoint_utils.construct_restore_args(
                    {"policy": {"params": like}}
                ),
                partial_restore=True,
            ),
        )
    return nnx.merge(graph, restored["policy"]["params"]), tokenizer, f"step {step}"
