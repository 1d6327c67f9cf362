"""All settings of a run: the sections of every room put together, and what holds between them.

`default_config()` is what every file in configs/ starts from; `python -m sr1_jax.train --help`
lists every key with its meaning and default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections
from jax.sharding import Mesh

from sr1_jax.environment import settings as environment_settings
from sr1_jax.evaluation.methods import METHODS, TEMPLATES, templates
from sr1_jax.import_path import is_import_path, load
from sr1_jax.models.lora import TARGETS, LoraConfig
from sr1_jax.models.remat import REMAT_POLICIES
from sr1_jax.models.shapes import SHAPES
from sr1_jax.paths import local_path, local_paths
from sr1_jax.protocol.prompts import load_template
from sr1_jax.protocol.settings import PROTOCOL
from sr1_jax.protocol.tags import SEARCH
from sr1_jax.retrieval.open import check_retrieval, needs_corpus
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.rewards.reward import check_terms
from sr1_jax.rewards.settings import REWARD
from sr1_jax.rl import settings as learner_settings
from sr1_jax.rollout import settings as rollout_settings
from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    between,
    increasing_lengths,
    one_of,
    some_of,
)
from sr1_jax.sharding import batch_parts
from sr1_jax.training.phases import phases_of

DTYPES = ("float32", "bfloat16")

_MESH_AXIS = "devices of the mesh axis; -1: all that the others leave"


def _is_published(value: str) -> str | None:
    """`Setting.check` of a published model's name; empty stands for none."""
    return None if value == "" or value in SHAPES else "be one of " + ", ".join(SHAPES)


def _axis_size(devices: Any) -> str | None:
    return None if devices == -1 or devices >= 1 else "be at least 1, or -1"


def _world_size(people: Any) -> str | None:
    good = isinstance(people, int) and (people == 0 or (64 <= people <= 960 and people % 16 == 0))
    return None if good else "be 0 or a multiple of 16 from 64 to 960"


RUN = Section(
    {
        "seed": Setting(0, "of everything that is drawn", between(0, 2**32 - 1)),
        "steps": Setting(500, "of reinforcement learning", at_least(0), free_on_resume=True),
        "questions": Setting(512, "a step", at_least(1)),
        "samples": Setting(
            1, "episodes a question; the group size of GRPO and its kin", at_least(1)
        ),
        "dynamic_sampling_rounds": Setting(
            0, "more rollouts that replace questions whose samples all earn the same", at_least(0)
        ),
        "method": Setting("search", "the prompt, and whether tools are called", one_of(*METHODS)),
        "base": Section(
            {
                # Paths may change: a resumed run is held to what they hold, see resume.py.
                "path": Setting(
                    "", "a Hugging Face folder, a .gguf file, or smollm2", free_on_resume=True
                ),
                "workdir": Setting(
                    "", "another run, whose base policy and data are used", free_on_resume=True
                ),
                "dtype": Setting("float32", "of activations", one_of(*DTYPES)),
                "param_dtype": Setting("float32", "of parameters", one_of(*DTYPES)),
                "remat": Setting(
                    "none",
                    "what layers keep for the backward pass: none (nothing is computed twice), "
                    "dots, narrow, attention, full (almost everything is)",
                    one_of(*REMAT_POLICIES, True, False),
                    object,
                ),
            }
        ),
        "model": Section(
            {
                "preset": Setting(
                    "", "the published model that base.path has to hold", _is_published
                ),
                "vocab_size": Setting(1400, "at most, of a policy from scratch", at_least(1)),
                "width": Setting(128, "of a policy from scratch", at_least(1)),
                "layers": Setting(3, "of a policy from scratch", at_least(1)),
                "heads": Setting(4, "query heads of a policy from scratch", at_least(1)),
                "kv_heads": Setting(2, "key/value heads of a policy from scratch", at_least(1)),
                "ff_width": Setting(384, "of a policy from scratch", at_least(1)),
                "qk_norm": Setting(False, "whether a policy from scratch norms queries and keys"),
            }
        ),
        "lora": Section(
            {
                "path": Setting(
                    "",
                    "adapters to start from, a folder of peft (adapter_config.json, which says "
                    "rank, alpha and targets)",
                    free_on_resume=True,
                ),
                "rank": Setting(0, "of adapters; 0: all parameters are trained", at_least(0)),
                "alpha": Setting(32.0, "what adapters add is times alpha / rank", above(0)),
                "targets": Setting(TARGETS, "kernels that have one", some_of(*TARGETS)),
            }
        ),
        "critic": Section(
            {
                "path": Setting(
                    "",
                    "where the value model starts, as base.path; none: the policy",
                    free_on_resume=True,
                )
            }
        ),
        "mesh": Section(
            {
                "data": Setting(-1, _MESH_AXIS, _axis_size),
                "fsdp": Setting(1, _MESH_AXIS, _axis_size),
                "tensor": Setting(1, _MESH_AXIS, _axis_size),
            },
            free_on_resume=True,
        ),
        "data": Section(
            {
                "questions": Setting(
                    "",
                    "training questions: JSON lines, several files with commas",
                    free_on_resume=True,
                ),
                "dev": Setting(
                    "",
                    "development questions: JSON lines, several files with commas",
                    free_on_resume=True,
                ),
                "corpus": Setting("", "passages: JSON lines, may be gzipped", free_on_resume=True),
                "index": Setting(
                    "", "an index built before; none: below the workdir", free_on_resume=True
                ),
                "world_people": Setting(
                    0, "above 0: the fictional world instead of files", _world_size
                ),
            }
        ),
        "environment": environment_settings.ENVIRONMENT,
        "retrieval": RETRIEVAL,
        "reward": REWARD,
        "protocol": Section({**TEMPLATES, **PROTOCOL.parts}),
        "warm_start": Section(
            {
                "phases": Setting((), "of a supervised start: dicts, see training/phases.py"),
                "worlds": Setting(
                    1, "fictional worlds that traces come from; 1: the run's own", at_least(1)
                ),
                "batch": Setting(48, "traces an optimizer step", at_least(1)),
                "length_buckets": Setting(
                    (96, 144, 192), "lengths that batches are padded to", increasing_lengths()
                ),
            }
        ),
        "evaluation": Section(
            {
                "every": Setting(50, "steps; 0: only at the end", at_least(0)),
                "questions": Setting(200, "at most, while training", at_least(0)),
                "final_questions": Setting(400, "at most, before and after", at_least(0)),
                "sampled": Setting(True, "also at the sampling temperature, not only greedy"),
            },
            free_on_resume=True,
        ),
        "checkpoint": Section(
            {
                "every": Setting(50, "steps; 0: only at the end", at_least(0)),
                "keep": Setting(2, "of the newest", at_least(1)),
                "folder": Setting("", "none: below the workdir; several processes share it"),
            },
            free_on_resume=True,
        ),
        "log": Section(
            {"groups": Setting(4, "questions of a step whose episodes are kept", at_least(0))},
            free_on_resume=True,
        ),
        "rollout": rollout_settings.ROLLOUT,
        "learner": learner_settings.LEARNER,
    }
)

# Keys that earlier versions had, and what to write instead.
MOVED = {
    "templates.search": "protocol.search_template",
    "templates.direct": "protocol.direct_template",
    "templates.rag": "protocol.rag_template",
    "rollout.template": "protocol.search_template",
    "rollout.chat": "protocol.chat",
    "rollout.reward_metric": "reward.terms, e.g. (('f1', 1.0),)",
    "rollout.format_weight": "reward.format_weight, with reward.terms=(('em_format', 1.0),)",
    "rollout.retriever_threads": "environment.options.search.threads",
    "rollout.retriever_batch": "environment.options.search.batch",
    "rollout.retriever_timeout_seconds": "environment.options.search.timeout_seconds",
    "rollout.retriever_attempts": "environment.options.search.attempts",
    "rollout.retriever_backoff_seconds": "environment.options.search.backoff_seconds",
    "rollout.retriever_failure": "environment.options.search.failure",
    "learner.truncated": "reward.truncated (mask, or train for what was penalise)",
    "learner.truncation_penalty": "reward.terms, e.g. (('em', 1.0), ('truncated', -0.5))",
    "learner.overlong_buffer": "reward.overlong_buffer",
    "learner.overlong_penalty": "reward.terms, e.g. (('em', 1.0), ('overlong', -1.0))",
    "learner.minibatches": "learner.minibatch_size, in trajectories",
    "learner.warmup_steps": "learner.warmup_share, of the run",
    "learner.critic_warmup_steps": "learner.critic_warmup_share, of the run",
    "learner.decay_steps": "learner.decay_share, of the run",
}

_PATHS = (
    "base.path", "base.workdir", "critic.path", "lora.path", "data.corpus", "data.index",
    "checkpoint.folder",
)  # fmt: skip
_LISTS_OF_PATHS = ("data.questions", "data.dev")


def default_config() -> ml_collections.ConfigDict:
    """Settings of a run; locked, so that an unknown key is an error."""
    return RUN.defaults()


def unknown_setting(key: str) -> str:
    """What to say of a key that there is not: its new name, or the nearest one known."""
    leaf = key.rsplit(".", 1)[-1]
    moved = MOVED.get(key) or next(
        (new for old, new in MOVED.items() if old.rsplit(".", 1)[-1] == leaf), None
    )
    if moved:
        return f"There is no setting {key} any more: use {moved}."
    near = RUN.nearest(key)
    hint = f" Did you mean {near}?" if near else ""
    return f"There is no setting {key}.{hint} --help lists all."


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
    _check_templates(config)
    trajectories = config.questions * config.samples
    learner_settings.check_config(config.learner, trajectories)
    phases_of(config.warm_start.phases)
    _check_groups(config)
    _check_training(config)
    _check_models(config)
    _check_deterministic(config)
    if inputs:
        _check_inputs(config)


def _check_templates(config: ml_collections.ConfigDict) -> None:
    """Refuses a prompt that is not there or asks nothing."""
    for method, template in templates(config).items():
        own = method == "search" and config.protocol.template_path
        key = "protocol.template_path" if own else f"protocol.{method}_template"
        try:
            load_template(template)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


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


def has_adapters(config: ml_collections.ConfigDict) -> bool:
    """Whether training changes adapters alone."""
    return bool(config.lora.rank or config.lora.path)


def _check_models(config: ml_collections.ConfigDict) -> None:
    if config.base.path and config.base.workdir:
        raise ValueError("base.path and base.workdir exclude each other; clear one.")
    if config.base.path and config.warm_start.phases:
        raise ValueError(
            "base.path and warm_start.phases exclude each other: a pretrained policy gets no warm "
            "start. Clear one (--config.warm_start.phases='()')."
        )
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
    check_retrieval(config.retrieval)
    _check_tools(config.environment.tools)
    if config.warm_start.phases and not world:
        raise ValueError(
            "warm_start.phases learn from examples, which only the fictional world "
            "(data.world_people) has: clear them (--config.warm_start.phases='()')."
        )
    if world and any((data.questions, data.dev, data.corpus, data.index)):
        raise ValueError("data.world_people and data files exclude each other; clear one.")
    if config.model.preset and not config.base.path:
        raise ValueError(f"base.path is not set: name the folder that holds {config.model.preset}.")
    if world or config.base.workdir:
        return
    if not data.questions:
        raise ValueError("data.questions is not set: give a file (--config.data.questions=…).")
    if needs_corpus(config.retrieval) and not (data.corpus or data.index):
        raise ValueError(
            "data.corpus is not set: give a file (--config.data.corpus=…), or an index of one "
            "(--config.data.index=…)."
        )
    if not config.base.path:
        raise ValueError("base.path is not set: name the model to start from.")


def _check_tools(names: Sequence[str]) -> None:
    """Refuses tools that are not there; none is made yet."""
    for name in names:
        if is_import_path(name):
            load(name, "environment.tools")
        elif name != SEARCH:
            raise ValueError(
                f"environment.tools has {name!r}; a tool is {SEARCH}, or module:factory."
            )


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


def check_paths(config: ml_collections.ConfigDict) -> None:
    """Refuses the address of a bucket, such as gs://bucket/folder, where a path is asked for.

    Raises:
        ValueError: naming the key and its value.
    """
    for key in _PATHS:
        section, name = key.split(".")
        local_path(config[section][name], key)
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
        sizes["warm_start.batch"] = config.warm_start.batch
    for key, size in sizes.items():
        if size % devices:
            raise ValueError(
                f"{key}={size} does not divide over the {devices} devices of mesh axes data and "
                "fsdp."
            )


def fixed_settings(config: Any) -> dict[str, Any]:
    """The settings that a resumed run has to have as before, as plain values."""
    return RUN.without_free(config)
