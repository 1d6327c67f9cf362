"""Where a policy comes from: a pretrained model, a warm start, or a checkpoint of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import ml_collections
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.agreement import check_same
from sr1_jax.models import Decoder, Tokenizer, load_pretrained
from sr1_jax.sharding import tree_shardings
from sr1_jax.training.checkpoints import RunCheckpoints, checkpoint_folder, load_base


def starting_policy(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh
) -> tuple[Decoder, Tokenizer]:
    """The policy before reinforcement learning.

    Raises:
        ValueError: there is none yet: the warm start has not been run.
    """
    if config.base.path:
        policy, tokenizer = load_pretrained(
            config.base.path,
            dtype=config.base.dtype,
            param_dtype=config.base.param_dtype,
            mesh=mesh,
        )
        shape = dataclasses.replace(policy.config, remat=config.base.remat)
        graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0))))
        return nnx.merge(graph, nnx.state(policy)), tokenizer
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
    folder = checkpoint_folder(config, workdir)
    step = None
    there = not base and folder.is_dir()
    check_same(f"Folder {folder}", {"is there": there})
    if there:
        with RunCheckpoints(folder, keep=config.checkpoint.keep) as checkpoints:
            step = checkpoints.latest_step
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
