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

from sr1_jax.agreement import check_same
from sr1_jax.evaluation.methods import check_chat
from sr1_jax.models import Decoder, DecoderConfig, Tokenizer
from sr1_jax.models.export import family_name
from sr1_jax.models.lora import LoraConfig, add_adapters, merged_model
from sr1_jax.models.peft_folder import load_adapters, read_lora_config
from sr1_jax.models.pretrained import read_model_files
from sr1_jax.models.shapes import check_is_preset, preset_config
from sr1_jax.models.weights import ModelFiles, build
from sr1_jax.paths import local_path
from sr1_jax.sharding import tree_shardings
from sr1_jax.training.checkpoints import (
    RunCheckpoints,
    absolute,
    checkpoint_folder,
)
from sr1_jax.training.saved_base import load_base, read_base_config
from sr1_jax.workdirs import other_workdir

# Below the workdir: what supervised fine-tuning made of the policy that the run started from.
SUPERVISED = "supervised"
# Below that, where only adapters were trained.
ADAPTER = "adapter"


def decoder_config(config: ml_collections.ConfigDict) -> DecoderConfig:
    """The shape of the policy, from settings and the heads of files: no weights are read.

    With model.preset no file is needed. A policy from scratch has as many ids as its tokenizer
    will get; model.vocab_size is the most it can.

    Raises:
        ValueError: there is no such model, or as `base_files`.
    """
    if config.base.path:
        return base_files(config).config
    if config.model.preset:
        return preset_config(config.model.preset, **_numerics(config))
    if config.base.workdir:
        saved = read_base_config(other_workdir(config.base.workdir) / "base")
        return dataclasses.replace(saved, **_numerics(config))
    return scratch_config(config, config.model.vocab_size)


def base_files(config: ml_collections.ConfigDict) -> ModelFiles:
    """What base.path holds, its tensors unread.

    Raises:
        ValueError: it is not model.preset, or cannot be loaded.
    """
    found = read_model_files(config.base.path)
    if config.model.preset:
        try:
            check_is_preset(found.config, config.model.preset, found.config_file)
        except ValueError as error:
            raise ValueError(
                f"{error} Name another model.preset, clear it, or give another base.path."
            ) from error
    shape = dataclasses.replace(found.config, **_numerics(config))
    return dataclasses.replace(found, config=shape)


def check_named(config: ml_collections.ConfigDict) -> None:
    """Refuses a published model without a place where its weights are.

    Raises:
        ValueError: model.preset is set, and neither base.path nor base.workdir.
    """
    if config.model.preset and not (config.base.path or config.base.workdir):
        raise ValueError(f"base.path is not set: name the folder that holds {config.model.preset}.")


def check_base(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Refuses a base.path, base.workdir or critic.path that cannot be loaded into the mesh, or a
    model whose chat template does not work where it is wanted. Nothing is loaded or made for it.

    Raises:
        ValueError: as `base_files`, `critic_files`, `lora_config` and
            `prompts.template_for`; base.workdir is not there; or an axis does not divide over the
            mesh.
    """
    check_named(config)
    if config.base.workdir:
        if not other_workdir(config.base.workdir).is_dir():
            raise ValueError(
                f"base.workdir={config.base.workdir}: there is no such folder; name the --workdir "
                "of a run that has been started."
            )
        _check_shardings(decoder_config(config), mesh)
    if not config.base.path:
        return
    found = base_files(config)
    _check_shardings(found.config, mesh)
    if config.critic.path:
        _check_shardings(critic_files(config, found.tokenizer).config, mesh)
    lora_config(config)  # refuses a lora.path that is none
    try:
        check_chat(config, found.tokenizer)
    except ValueError as error:
        raise ValueError(f"{found.path}: chat_template: {error}") from error


def critic_files(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> ModelFiles:
    """What critic.path holds, its tensors unread. It may have any shape, if it reads the policy's
    ids.

    Args:
        config: of the run.
        tokenizer: of the policy.

    Raises:
        ValueError: an id is another token for it than for the policy, or it cannot be loaded.
    """
    found = read_model_files(config.critic.path)
    for token_id in range(tokenizer.vocab_size):
        token, ours = (t.token(token_id) for t in (found.tokenizer, tokenizer))
        if token != ours:
            raise ValueError(
                f"{found.path}: token {token_id} is {token!r}, but {ours!r} for the policy; a "
                "critic has to read the policy's ids. Give another critic.path."
            )
    return dataclasses.replace(found, config=dataclasses.replace(found.config, **_numerics(config)))


def critic_config(config: ml_collections.ConfigDict) -> DecoderConfig:
    """The shape of what critic.path holds, with an embedding of its own size.

    Raises:
        ValueError: it cannot be loaded; or, where base.path says what the policy's ids are, as
            `critic_files`.
    """
    if config.base.path:
        return critic_files(config, base_files(config).tokenizer).config
    return dataclasses.replace(read_model_files(config.critic.path).config, **_numerics(config))


def lora_config(config: ml_collections.ConfigDict) -> LoraConfig | None:
    """The adapters that training changes; None where all parameters are trained.

    Raises:
        ValueError: as `peft_folder.read_lora_config`, or lora.rank is another than in lora.path.
    """
    lora = config.lora
    if not lora.path:
        return LoraConfig(lora.rank, lora.alpha, tuple(lora.targets)) if lora.rank else None
    found = read_lora_config(
        local_path(lora.path, "lora.path"), family_name(decoder_config(config))
    )
    if lora.rank not in (0, found.rank):
        raise ValueError(
            f"lora.rank={lora.rank}, but the adapters in lora.path={lora.path} are of rank "
            f"{found.rank}: leave lora.rank at 0."
        )
    return found


def with_adapters(config: ml_collections.ConfigDict, policy: Decoder, mesh: Mesh) -> Decoder:
    """The policy with the adapters that training starts from: new ones, or those of lora.path.

    Raises:
        ValueError: as `lora_config` and `peft_folder.load_adapters`.
    """
    lora = lora_config(config)
    if lora is None:
        return policy
    policy = add_adapters(policy, lora, seed=config.seed, mesh=mesh)
    if config.lora.path:
        load_adapters(policy, local_path(config.lora.path, "lora.path"))
    return policy


def _check_shardings(shape: DecoderConfig, mesh: Mesh) -> None:
    abstract = nnx.eval_shape(lambda: nnx.state(Decoder(shape, rngs=nnx.Rngs(0))))
    tree_shardings(abstract, mesh)


def _numerics(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {key: config.base[key] for key in ("dtype", "param_dtype", "matmul_dtype", "remat")}


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
        **_numerics(config),
    )


def starting_policy(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh
) -> tuple[Decoder, Tokenizer]:
    """The policy before reinforcement learning.

    Raises:
        ValueError: there is none yet: the warm start has not been run; or as `base_files`.
    """
    if config.base.path:
        checkpoint = base_files(config)
        return build(checkpoint, mesh), checkpoint.tokenizer
    source = other_workdir(config.base.workdir) if config.base.workdir else workdir
    return load_base(source / "base", mesh, **_numerics(config))


def was_fine_tuned(workdir: Path) -> bool:
    """Whether a workdir holds a policy after supervised fine-tuning, or adapters of one."""
    folder = workdir / SUPERVISED
    return (folder / "model.json").is_file() or (folder / ADAPTER).is_dir()


def fine_tuned_policy(
    config: ml_collections.ConfigDict, workdir: Path, mesh: Mesh, *, merge: bool = True
) -> tuple[Decoder, Tokenizer] | None:
    """The policy after supervised fine-tuning of another run's, or of a pretrained one, in this
    run; None if there was none.

    Args:
        config: of the run.
        workdir: of the run.
        mesh: the device mesh.
        merge: whether adapters that were trained are added to the kernels.
    """
    folder = workdir / SUPERVISED
    there = was_fine_tuned(workdir)
    check_same(str(folder), {"holds a policy": there})
    if not there:
        return None
    if (folder / ADAPTER).is_dir():
        policy, tokenizer = starting_policy(config, workdir, mesh)
        lora = read_lora_config(folder / ADAPTER, family_name(policy.config))
        policy = add_adapters(policy, lora, seed=config.seed, mesh=mesh)
        load_adapters(policy, folder / ADAPTER)
        return _merged_if(merge, policy), tokenizer
    tokenizer = base_files(config).tokenizer if config.base.path else None
    return load_base(folder, mesh, tokenizer, **_numerics(config))


def trained_policy(
    config: ml_collections.ConfigDict,
    workdir: Path,
    mesh: Mesh,
    *,
    base: bool = False,
    step: int | None = None,
    merge: bool = True,
) -> tuple[Decoder, Tokenizer, str]:
    """The policy of a checkpoint below `workdir`, or the one training starts from.

    Args:
        config: of the run.
        workdir: of the run.
        mesh: the device mesh.
        base: take the starting policy in any case.
        step: of the checkpoint, which must be there; None: the newest, if there is any.
        merge: add adapters to the kernels; False leaves them beside, where there are any.

    Returns:
        The policy, its tokenizer, and what it is: "base", "supervised" or "step N".
    """
    tuned = None if base else fine_tuned_policy(config, workdir, mesh, merge=merge)
    policy, tokenizer = tuned or starting_policy(config, workdir, mesh)
    folder = checkpoint_folder(config, workdir)
    there = not base and folder.is_dir()
    check_same(f"Folder {folder}", {"is there": there})
    step = None if base else step
    if there and step is None:
        with RunCheckpoints(folder, keep=config.checkpoint.keep, reading=True) as checkpoints:
            step = checkpoints.latest_step
    if step is None:
        if config.lora.path and not tuned:
            policy = with_adapters(config, policy, mesh)
        what = "supervised" if tuned else "base"
        return _merged_if(merge, policy), tokenizer, what
    policy = with_adapters(config, policy, mesh)
    graph, params, frozen = nnx.split(policy, policy.trainable, ...)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        params,
        tree_shardings(params, mesh),
    )
    del policy, params, tuned  # what is restored takes their place in memory too
    # Only the policy: optimizer state and critic stay on disk.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            absolute(folder / str(step) / "state"),
            args=ocp.args.PyTreeRestore(
                item={"policy": {"params": like}},
                restore_args=ocp.checkpoint_utils.construct_restore_args(
                    {"policy": {"params": like}}
                ),
                partial_restore=True,
            ),
        )
    policy = nnx.merge(graph, restored["policy"]["params"], frozen)
    return _merged_if(merge, policy), tokenizer, f"step {step}"


def _merged_if(merge: bool, policy: Decoder) -> Decoder:
    return merged_model(policy) if merge and policy.config.lora is not None else policy
