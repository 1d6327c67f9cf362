"""All settings of a run, with defaults; every file in configs/ starts from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from jax.sharding import Mesh

from sr1_jax.models.lora import TARGETS, LoraConfig
from sr1_jax.models.remat import REMAT_POLICIES
from sr1_jax.models.shapes import preset_config
from sr1_jax.paths import local_path
from sr1_jax.protocol.prompts import load_template
from sr1_jax.rl import settings as learner_settings
from sr1_jax.rollout import settings as rollout_settings

METHODS = ("search", "direct", "rag")
_PATHS = (
    "base.path", "base.workdir", "critic.path", "data.questions", "data.dev", "data.corpus",
    "checkpoint.folder",
)  # fmt: skip


def default_config() -> ml_collections.ConfigDict:
    """Settings of a run; locked, so that an unknown key is an error."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.steps = 500  # of reinforcement learning
    config.questions = 512  # a step
    config.samples = 1  # episodes a question; the group size of GRPO and its kin
    # Dynamic sampling: at most so many more rollouts a step replace the questions whose samples all
    # earn the same.
    config.dynamic_sampling_rounds = 0
    config.method = "search"  # search, direct or rag: the prompt, and whether searches are made

    config.base = ml_collections.ConfigDict()
    # Where the policy starts: a Hugging Face folder, a .gguf file or "smollm2"; the workdir of
    # another run, whose base policy and data are used; or "" for one from scratch.
    config.base.path = ""
    config.base.workdir = ""
    config.base.dtype = "float32"
    config.base.param_dtype = "float32"
    # What layers keep for the backward pass: none (nothing is computed twice), dots, narrow,
    # attention or full (almost everything is); False and True stand for the first and the last.
    config.base.remat = ml_collections.FieldReference("none", field_type=object)

    config.model = ml_collections.ConfigDict()
    # The published model that base.path has to hold (sr1_jax/models/shapes.py); "": whatever is
    # there. Its shape is known without the files. What follows is that of a policy from scratch.
    config.model.preset = ""
    config.model.vocab_size = 1400
    config.model.width = 128
    config.model.layers = 3
    config.model.heads = 4
    config.model.kv_heads = 2
    config.model.ff_width = 384
    config.model.qk_norm = False

    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 0  # above 0: adapters of this rank are trained, the base is not; 0: none
    config.lora.alpha = 32.0  # what an adapter adds is times alpha / rank
    config.lora.targets = TARGETS  # kernels that have one: q, k, v, o, gate, up, down

    config.critic = ml_collections.ConfigDict()
    # Where PPO's value model starts: a folder or file as base.path, of any size, if its tokenizer
    # is the policy's; "": the policy itself.
    config.critic.path = ""

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # -1: all devices that the others leave
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.data = ml_collections.ConfigDict()
    config.data.questions = ""  # training questions, JSON lines
    config.data.dev = ""  # development questions, JSON lines
    config.data.corpus = ""  # passages, JSON lines; may be gzipped
    config.data.world_people = 0  # above 0: the fictional world instead of files

    config.retrieval = ml_collections.ConfigDict()
    config.retrieval.k1 = 0.9
    config.retrieval.b = 0.4
    config.retrieval.stemmer = "english"
    config.retrieval.stopwords = "en"

    config.templates = ml_collections.ConfigDict()
    config.templates.search = "search"
    config.templates.direct = "direct"
    config.templates.rag = "rag"

    config.protocol = ml_collections.ConfigDict()
    # A file that replaces templates.search: a prompt with {question} in it; "": none.
    config.protocol.template_path = ""

    config.warm_start = ml_collections.ConfigDict()
    config.warm_start.phases = ()  # dicts: name, steps, learning_rate, traces, mix, …
    # Traces come from this many worlds with other training entities and other facts, so that
    # neither names nor facts can be learned by heart; 1: from the run's own world.
    config.warm_start.worlds = 1
    config.warm_start.batch = 48
    config.warm_start.length_buckets = (96, 144, 192)

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.every = 50  # steps; 0: only at the end
    config.evaluation.questions = 200  # at most, in evaluations while training
    config.evaluation.final_questions = 400
    config.evaluation.sampled = True  # also at the sampling temperature, not only greedy

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = 50
    config.checkpoint.keep = 2
    config.checkpoint.folder = ""  # "": below the workdir; several processes have to share it

    config.rollout = rollout_settings.default_config()
    config.learner = learner_settings.default_config()
    return config.lock()


def check_config(config: ml_collections.ConfigDict, *, inputs: bool = True) -> None:
    """Checks everything that can be checked before anything expensive is done.

    Args:
        config: of a run.
        inputs: also that data and weights are named; a plan needs neither.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    if config.method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {config.method!r}.")
    for key in ("questions", "samples"):
        if config[key] < 1:
            raise ValueError(f"{key} must be at least 1, not {config[key]}.")
    if config.checkpoint.keep < 1:
        raise ValueError(
            f"checkpoint.keep must be at least 1, not {config.checkpoint.keep}: with none kept "
            "there is no trained policy."
        )
    counts = {
        "steps": config.steps,
        "checkpoint.every": config.checkpoint.every,
        "evaluation.every": config.evaluation.every,
        "evaluation.questions": config.evaluation.questions,
        "evaluation.final_questions": config.evaluation.final_questions,
    }
    for key, value in counts.items():
        if value < 0:
            raise ValueError(f"{key} must not be negative: {value}.")
    check_paths(config)
    if config.base.path and config.base.workdir:
        raise ValueError("base.path and base.workdir exclude each other; clear one.")
    if config.base.remat not in (*REMAT_POLICIES, True, False):
        raise ValueError(
            f"base.remat must be one of {', '.join(REMAT_POLICIES)}, not {config.base.remat!r}."
        )
    if config.rollout.template != rollout_settings.default_config().template:
        raise ValueError(
            f"rollout.template={config.rollout.template!r} is for an Engine used by itself; the "
            "prompts of a run are templates.search, .direct and .rag, or protocol.template_path."
        )
    for template in templates(config).values():
        load_template(template)  # refuses what is not there or asks nothing
    rollout_settings.check_config(config.rollout)
    learner_settings.check_config(config.learner, config.questions * config.samples)
    in_groups = config.learner.algorithm in learner_settings.GROUP_ALGORITHMS
    if in_groups and config.samples < 2:
        raise ValueError(
            f"learner.algorithm={config.learner.algorithm!r} compares the samples of a question: "
            f"samples must be at least 2, not {config.samples}."
        )
    if config.dynamic_sampling_rounds < 0:
        raise ValueError(
            f"dynamic_sampling_rounds must not be negative, not {config.dynamic_sampling_rounds}."
        )
    if config.dynamic_sampling_rounds and not in_groups:
        raise ValueError(
            "dynamic_sampling_rounds replaces groups without an advantage, which only "
            f"{', '.join(learner_settings.GROUP_ALGORITHMS)} have, not learner.algorithm="
            f"{config.learner.algorithm!r}: set it to 0."
        )
    rollout = config.rollout
    if config.steps and (rollout.temperature == 0 or rollout.top_p < 1 or rollout.top_k > 0):
        raise ValueError(
            "What is sampled is what is trained: training needs rollout.temperature above 0, "
            f"rollout.top_p=1 and rollout.top_k=0, not {rollout.temperature}, {rollout.top_p} and "
            f"{rollout.top_k}."
        )
    longest = config.learner.length_buckets[-1]
    if config.steps and longest < rollout.max_context_tokens:
        raise ValueError(
            f"rollout.max_context_tokens={rollout.max_context_tokens} exceeds the last of "
            f"learner.length_buckets={tuple(config.learner.length_buckets)}; the longest "
            "trajectories would not fit."
        )
    if config.learner.overlong_buffer >= rollout.max_context_tokens:
        raise ValueError(
            f"learner.overlong_buffer={config.learner.overlong_buffer} must be shorter than "
            f"rollout.max_context_tokens={rollout.max_context_tokens}, of which it is the end."
        )
    world = config.data.world_people > 0
    if config.base.path and config.warm_start.phases:
        raise ValueError(
            "base.path and warm_start.phases exclude each other: a pretrained policy gets no warm "
            "start. Clear one (--config.warm_start.phases='()')."
        )
    _check_phases(config.warm_start.phases)
    if world and any((config.data.questions, config.data.dev, config.data.corpus)):
        raise ValueError("data.world_people and data files exclude each other; clear one.")
    if config.critic.path and not learner_settings.needs_critic(config.learner):
        raise ValueError(
            f"critic.path is set, but learner.algorithm={config.learner.algorithm!r} has no "
            "critic; clear it."
        )
    if config.lora.rank and "reference" in config.learner.offload:
        raise ValueError(
            "learner.offload has 'reference', but with lora.rank above 0 the reference is the base "
            "under the adapters, which every program needs: leave it out."
        )
    if config.lora.rank:
        LoraConfig(config.lora.rank, config.lora.alpha, tuple(config.lora.targets))
    if config.model.preset:
        preset_config(config.model.preset)  # refuses unknown ones
    if not inputs:
        return
    if config.model.preset and not config.base.path:
        raise ValueError(f"base.path is not set: name the folder that holds {config.model.preset}.")
    if not world and not config.base.workdir:
        for key in ("questions", "corpus"):
            if not config.data[key]:
                raise ValueError(f"data.{key} is not set: give a file (--config.data.{key}=…).")
        if not config.base.path:
            raise ValueError("base.path is not set: name the model to start from.")


_PHASE_KEYS = {
    "name", "steps", "traces", "learning_rate", "mix", "only_correct", "arbitrary", "evaluate_at",
    "final_rate", "context_weight", "length_buckets",
}  # fmt: skip


def _check_phases(phases: Sequence[Mapping[str, Any]]) -> None:
    """Refuses a phase of the warm start that lacks a key, or has one that nothing reads."""
    for number, phase in enumerate(phases):
        for key in ("name", "steps", "traces", "learning_rate", "mix"):
            if key not in phase:
                raise ValueError(f"warm_start.phases[{number}] has no {key!r}.")
        if unknown := sorted(set(phase) - _PHASE_KEYS):
            raise ValueError(
                f"warm_start.phases[{number}]: unknown key {unknown[0]!r}; the keys are "
                f"{', '.join(sorted(_PHASE_KEYS))}."
            )


def check_paths(config: ml_collections.ConfigDict) -> None:
    """Refuses the address of a bucket, such as gs://bucket/folder, where a path is asked for.

    Raises:
        ValueError: naming the key and its value.
    """
    for key in _PATHS:
        section, name = key.split(".")
        local_path(config[section][name], key)


def check_mesh(config: ml_collections.ConfigDict, mesh: Mesh, *, training: bool = True) -> None:
    """Checks that what is split over the mesh's batch axes can be.

    Raises:
        ValueError: naming the key, its value and the number of devices.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
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


def templates(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The prompt template of each method: the name of a shipped one, or a file.

    Raises:
        ValueError: protocol.template_path is not a file.
    """
    path = config.protocol.template_path
    if path and not Path(path).is_file():
        raise ValueError(f"protocol.template_path: {path} is not a file.")
    # Absolute, so that a file is never mistaken for a shipped template of its name.
    return config.templates.to_dict() | ({"search": str(Path(path).resolve())} if path else {})


def rollout_config(
    config: ml_collections.ConfigDict, method: str, *, greedy: bool = False
) -> ml_collections.ConfigDict:
    """The rollout settings of a method: its prompt, and no searches but for `search`.

    Raises:
        ValueError: an unknown method, or protocol.template_path is not a file.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    rollout = config.rollout.copy_and_resolve_references().unlock()
    rollout.template = templates(config)[method]
    if method != "search":
        rollout.max_searches = 0
    if greedy:
        rollout.temperature = 0.0
    return rollout.lock()
