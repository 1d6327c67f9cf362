"""What holds between the settings of a run, checked before anything expensive is done."""

from __future__ import annotations

import ml_collections
from jax.sharding import Mesh

from sr1_jax.data.selection import parse_filter
from sr1_jax.environment import settings as environment_settings
from sr1_jax.environment.settings import CallOptions
from sr1_jax.environment.tool import check_tools
from sr1_jax.evaluation.methods import (
    check_templates,
    check_trains,
    needs_retriever,
    rollout_config,
)
from sr1_jax.evaluation.wandb_board import check_wandb
from sr1_jax.models.lora import LoraConfig
from sr1_jax.paths import check_address, local_paths, path_or_none
from sr1_jax.protocol.tags import SEARCH
from sr1_jax.retrieval.open import check_retrieval, needs_corpus, searched_kinds
from sr1_jax.rewards.reward import check_key, check_terms, reads_searches
from sr1_jax.rl import settings as learner_settings
from sr1_jax.sharding import batch_parts
from sr1_jax.storage import is_bucket
from sr1_jax.storage.objects import check_place
from sr1_jax.training.examples import check_examples
from sr1_jax.training.phases import phases_of
from sr1_jax.training.policies import check_named
from sr1_jax.training.settings import RUN, has_adapters
from sr1_jax.training.training_questions import limits_of, mixture_of

# What is read as files: of a bucket it is brought here.
_PATHS = ("lora.path", "data.corpus", "data.index", "data.folder")
# What is read, or written, where it is.
_PLACES = ("base.path", "base.workdir", "critic.path", "checkpoint.folder")
_LISTS_OF_PATHS = ("data.questions", "data.dev")


def check_config(config: ml_collections.ConfigDict, *, inputs: bool = True) -> None:
    """Checks everything that can be checked before anything expensive is done.

    Args:
        config: of a run.
        inputs: also that data and weights are named; a plan needs neither.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    RUN.check(config)
    check_paths(config)
    environment_settings.check_config(config.environment)
    check_terms(config.reward)
    check_templates(config)
    check_wandb(config.log.wandb)
    _check_data(config)
    trajectories = config.questions * config.samples
    learner_settings.check_config(config.learner, trajectories)
    phases_of(config.warm_start.phases)
    _check_groups(config)
    _check_training(config)
    _check_models(config)
    _check_deterministic(config)
    if inputs:
        _check_inputs(config)


def _check_data(config: ml_collections.ConfigDict) -> None:
    """Refuses filters, limits and weights that say nothing of sets of questions."""
    data = config.data
    for text in data.filter:
        if not isinstance(text, str):
            raise ValueError(f"data.filter must hold strings, not {text!r}.")
        parse_filter(text)
    mixture_of(config)
    limits_of(config)
    named = [key for key in ("filter", "limit", "weights") if data[key]]
    if named and data.world_people:
        raise ValueError(
            f"data.{named[0]} chooses among the questions of files, and data.world_people excludes "
            "those; clear one."
        )


def _check_groups(config: ml_collections.ConfigDict) -> None:
    in_groups = config.learner.algorithm in learner_settings.GROUP_ALGORITHMS
    if in_groups and config.samples < 2:
        raise ValueError(
            f"learner.algorithm={config.learner.algorithm!r} compares the samples of a question: "
            f"samples must be at least 2, not {config.samples}."
        )
    if config.dynamic_sampling_rounds and not in_groups:
        raise ValueError(
            "dynamic_sampling_rounds replaces groups without an advantage, which only "
            f"{', '.join(learner_settings.GROUP_ALGORITHMS)} have, not learner.algorithm="
            f"{config.learner.algorithm!r}: set it to 0."
        )


def _check_training(config: ml_collections.ConfigDict) -> None:
    """Refuses what cannot be trained on; a run of 0 steps trains on nothing."""
    rollout, learner = config.rollout, config.learner
    if config.reward.overlong_buffer >= rollout.max_context_tokens:
        raise ValueError(
            f"reward.overlong_buffer={config.reward.overlong_buffer} must be shorter than "
            f"rollout.max_context_tokens={rollout.max_context_tokens}, of which it is the end."
        )
    if not config.steps:
        return
    check_trains(config.method)
    calls = rollout_config(config, config.method).max_searches
    if not calls and (key := reads_searches(config.reward)):
        raise ValueError(
            f"{key} looks at searches, of which there are none: method={config.method!r} with "
            f"rollout.max_searches={rollout.max_searches} makes no call. Leave it out."
        )
    if rollout.temperature == 0 or rollout.top_p < 1 or rollout.top_k > 0:
        raise ValueError(
            "What is sampled is what is trained: training needs rollout.temperature above 0, "
            f"rollout.top_p=1 and rollout.top_k=0, not {rollout.temperature}, {rollout.top_p} and "
            f"{rollout.top_k}."
        )
    if learner.length_buckets[-1] < rollout.max_context_tokens:
        raise ValueError(
            f"rollout.max_context_tokens={rollout.max_context_tokens} exceeds the last of "
            f"learner.length_buckets={tuple(learner.length_buckets)}; the longest "
            "trajectories would not fit."
        )
    if config.base.param_dtype == "bfloat16" and not has_adapters(config):
        raise ValueError(
            "base.param_dtype='bfloat16' loses the small steps of training in its 8 bits: set "
            "base.param_dtype='float32' (base.dtype='bfloat16' still computes in bfloat16), or "
            "train adapters, lora.rank above 0."
        )


def _check_models(config: ml_collections.ConfigDict) -> None:
    if config.base.path and config.base.workdir:
        raise ValueError("base.path and base.workdir exclude each other; clear one.")
    if config.critic.path and not learner_settings.needs_critic(config.learner):
        raise ValueError(
            f"critic.path is set, but learner.algorithm={config.learner.algorithm!r} has no "
            "critic; clear it."
        )
    if has_adapters(config):
        if "reference" in config.learner.offload:
            raise ValueError(
                "learner.offload has 'reference', but with adapters the reference is the "
                "base under the adapters, which every program needs: leave it out."
            )
        if config.lora.rank:
            LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
    shape = config.model
    if shape.heads % shape.kv_heads or shape.width % shape.heads:
        raise ValueError(
            f"model.heads={shape.heads} must be a multiple of model.kv_heads={shape.kv_heads} and "
            f"divide model.width={shape.width}."
        )


def _check_inputs(config: ml_collections.ConfigDict) -> None:
    """Refuses a run without data or without a policy to start from."""
    data, world = config.data, config.data.world_people > 0
    check_retrieval(config.retrieval, config.rollout.passages)
    check_tools(config.environment.tools, config)
    if config.steps:
        check_key(config.reward)
    phases = phases_of(config.warm_start.phases)
    if (own := [phase for phase in phases if not phase.examples]) and not world:
        raise ValueError(
            f"warm_start.phases, {own[0].name!r}: traces to imitate are those of the fictional "
            "world (data.world_people): name a file of examples, or clear the phases "
            "(--config.warm_start.phases='()')."
        )
    if (
        phases
        and has_adapters(config)
        and config.steps
        and (config.base.path or config.base.workdir)
    ):
        raise ValueError(
            "warm_start.phases train adapters here, and so would reinforcement learning, which "
            "starts from the base: run it twice, with steps=0 first, and then with "
            "warm_start.phases=() and lora.path=WORKDIR/supervised/adapter."
        )
    check_examples(config)
    if world and any((data.questions, data.dev, data.corpus, data.index)):
        raise ValueError("data.world_people and data files exclude each other; clear one.")
    check_named(config)
    if world or config.base.workdir:
        return
    if not data.questions:
        raise ValueError("data.questions is not set: give a file (--config.data.questions=…).")
    searches = needs_retriever(config, config.method)
    if searches and needs_corpus(config.retrieval) and not (data.corpus or data.index):
        raise ValueError(
            "data.corpus is not set: give a file (--config.data.corpus=…), or an index of one "
            "(--config.data.index=…)."
        )
    if not config.base.path:
        raise ValueError("base.path is not set: name the model to start from.")


def _check_deterministic(config: ml_collections.ConfigDict) -> None:
    """Refuses what makes two runs differ where they are to be equal."""
    if not config.rollout.deterministic:
        return
    for tag, options in config.environment.options.items():
        if options.get("failure", "raise") == "empty":
            raise ValueError(
                f"rollout.deterministic=True excludes environment.options.{tag}.failure='empty': "
                "which calls fail depends on the clock. Set it to 'raise'."
            )
    web = config.retrieval.web
    if config.retrieval.kind == "web" and web.max_requests and web.when_used_up == "empty":
        raise ValueError(
            "rollout.deterministic=True excludes retrieval.web.when_used_up='empty': which "
            "searches are the last depends on the clock. Set it to 'stop'."
        )
    batch = CallOptions.of(config.environment.options, SEARCH).batch
    if "dense" in searched_kinds(config.retrieval) and batch != 1:
        raise ValueError(
            f"rollout.deterministic=True excludes retrieval.kind={config.retrieval.kind!r} with "
            f"environment.options.search.batch={batch}: which queries share a batch depends on the "
            "clock, and vectors of other batches round differently. Set it to 1."
        )


def check_paths(config: ml_collections.ConfigDict) -> None:
    """Finds out at the start whether what is named can be used; brings files of buckets here.

    Raises:
        ValueError: naming the key and its value.
    """
    for key in _PLACES:
        section, name = key.split(".")
        check_address(config[section][name], key)
        if is_bucket(config[section][name]):
            check_place(config[section][name], key, writes=key == "checkpoint.folder")
    for key in _PATHS:
        section, name = key.split(".")
        path_or_none(config[section][name], key)
    for key in _LISTS_OF_PATHS:
        section, name = key.split(".")
        local_paths(config[section][name], key)


def check_mesh(config: ml_collections.ConfigDict, mesh: Mesh, *, training: bool = True) -> None:
    """Checks that what is split over the mesh's batch axes can be.

    Raises:
        ValueError: naming the key, its value and the number of devices.
    """
    devices = batch_parts(mesh)
    sizes = {"rollout.slots": config.rollout.slots}
    if training and config.steps:
        sizes["learner.micro_batch"] = config.learner.micro_batch
    if training and config.warm_start.phases:
        key = "micro_batch" if config.warm_start.micro_batch else "batch"
        sizes[f"warm_start.{key}"] = config.warm_start[key]
    for key, size in sizes.items():
        if size % devices:
            raise ValueError(
                f"{key}={size} does not divide over the {devices} devices of mesh axes data and "
                "fsdp."
            )
