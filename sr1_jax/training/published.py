"""The published runs of Search-R1 (arXiv 2503.09516, appendix B; train_ppo.sh, train_grpo.sh) on
a pretrained model, chosen by one argument: `--config=configs/qwen2_5.py:size=7b,algo=ppo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import ml_collections

from sr1_jax.training.settings import default_config

VARIANTS, ALGORITHMS = ("base", "instruct"), ("ppo", "grpo")


class Size(NamedTuple):
    """A model and how it is laid out; the mesh's axis `fsdp` takes what devices `tensor` leaves.

    Attributes:
        preset: name of `models.shapes.SHAPES`.
        tensor: devices that share each head and each feed-forward layer; the key/value heads
            have to divide over them. Rollouts split weights over this axis alone.
        micro_batch: rows a forward pass of training, over all devices.
        slots: episodes in flight, over all devices.
        remat: what layers keep for the backward pass, see `base.remat`.
    """

    preset: str
    tensor: int
    micro_batch: int
    slots: int
    remat: str = "full"


def published_config(
    argument: str, sizes: Mapping[str, Size], default_size: str
) -> ml_collections.ConfigDict:
    """The settings of a published run.

    Base and instruct models differ in the prompt, which for the latter is a message in the model's
    own chat template. What ends a text differs too; the folder of the weights says it.

    Args:
        argument: `size=…,algo=ppo|grpo,variant=base|instruct`; each key may be left out.
        sizes: by their name in the argument.
        default_size: where the argument has none.

    Raises:
        ValueError: an unknown key or value, or a key given twice, with the choices there are.
    """
    chosen = _parse(
        argument,
        defaults={"size": default_size, "algo": "ppo", "variant": "base"},
        choices={"size": tuple(sizes), "algo": ALGORITHMS, "variant": VARIANTS},
    )
    size = sizes[chosen["size"]]
    config = default_config()
    config.model.preset = size.preset
    config.base.dtype = "bfloat16"
    config.base.param_dtype = "float32"  # steps of 1e-6 are lost in the 8 bits of bfloat16
    config.base.remat = size.remat
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, size.tensor

    config.steps, config.questions = 500, 512
    config.protocol.chat = chosen["variant"] == "instruct"
    config.rollout.weights = "bfloat16"
    config.rollout.slots = size.slots
    config.rollout.extend_buckets = (64, 256, 512)

    config.learner.micro_batch = size.micro_batch
    # In these few lengths, a fifth of what buckets compute is padding; of packed rows 6 %.
    config.learner.packing = True
    config.learner.length_buckets = (1024, 2048, 3072, 4096)
    config.learner.chunk_tokens = 2048
    if chosen["algo"] == "grpo":
        config.samples = 5
        config.learner.algorithm = "grpo"
        config.learner.kl_in, config.learner.kl_kind = "loss", "k3"
    config.learner.minibatch_size = 256
    config.learner.warmup_share = 0.285
    config.learner.critic_warmup_share = 0.015
    return config


def _parse(
    argument: str, *, defaults: Mapping[str, str], choices: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in argument.split(",") if argument else []:
        key, equals, value = part.partition("=")
        if key not in choices:
            raise ValueError(
                f"config argument {part!r}: the keys are {', '.join(choices)}, each as key=value."
            )
        if not equals or value not in choices[key]:
            raise ValueError(
                f"config argument {part!r}: {key} must be one of {', '.join(choices[key])}."
            )
        if key in given:
            raise ValueError(f"config argument {argument!r}: {key} is given twice.")
        given[key] = value
    return {**defaults, **given}
