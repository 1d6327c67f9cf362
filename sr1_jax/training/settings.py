"""All settings of a run: the sections of every room put together, and what holds between them.

`default_config()` is what every file in configs/ starts from; `python -m sr1_jax.train --help`
lists every key with its meaning and default.
"""

from __future__ import annotations

from typing import Any

import ml_collections

from sr1_jax.environment import settings as environment_settings
from sr1_jax.evaluation.methods import METHODS, TEMPLATES
from sr1_jax.models.lora import TARGETS
from sr1_jax.models.matmul import MATMUL_DTYPES
from sr1_jax.models.remat import REMAT_POLICIES
from sr1_jax.models.shapes import SHAPES
from sr1_jax.programs import COMPILATION_CACHE
from sr1_jax.protocol.settings import PROTOCOL
from sr1_jax.retrieval.settings import RETRIEVAL
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
from sr1_jax.training.guards import GUARDS

# Of supervised training, see training/supervised.py.
OPTIMIZERS = ("muon", "adam")
DTYPES = ("float32", "bfloat16")

# Development scores that tell the best policy; "": no policy is kept for its score.
BEST = ("greedy/em", "greedy/f1", "greedy/substring", "sampled/em", "sampled/f1", "")

_MESH_AXIS = "devices of the mesh axis; -1: all that the others leave"


def _is_published(value: str) -> str | None:
    """`Setting.check` of a published model's name; empty stands for none."""
    return None if value == "" or value in SHAPES else "be one of " + ", ".join(SHAPES)


def _axis_size(devices: Any) -> str | None:
    return None if devices == -1 or devices >= 1 else "be at least 1, or -1"


def _world_size(people: Any) -> str | None:
    good = isinstance(people, int) and (people == 0 or (64 <= people <= 960 and people % 16 == 0))
    return None if good else "be 0 or a multiple of 16 from 64 to 960"


# Formula and meaning: data/curriculum.py.
CURRICULUM = Section(
    {
        "enabled": Setting(False, "whether what was solved decides what is asked"),
        "target": Setting(0.5, "solve rate that is asked most", between(0, 1)),
        "width": Setting(0.25, "of the bell around it", above(0)),
        "floor": Setting(
            0.05, "least weight of a question, of 1 at the target", between(0, 1, open_below=True)
        ),
        "momentum": Setting(
            0.5, "weight of the newest share in a rate", between(0, 1, open_below=True)
        ),
        # With 0 the questions of the first step would be asked for ever.
        "new": Setting(
            0.5, "share of what is drawn that was not asked yet", between(0, 1, open_below=True)
        ),
    }
)

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
        "compilation_cache": COMPILATION_CACHE,
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
                "matmul_dtype": Setting(
                    "same",
                    "that matrix products multiply in: same, as dtype; bfloat16, for dtype "
                    "float32, with sums in float32, which many CPUs do in half the time",
                    one_of(*MATMUL_DTYPES),
                ),
                "remat": Setting(
                    "none",
                    "what layers keep for the backward pass: none (nothing is computed twice), "
                    "dots, narrow, attention, full (almost everything is)",
                    one_of(*REMAT_POLICIES, True, False),
                    object,
                    free_on_resume=True,
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
                    "where the value model starts, as base.path; empty: the policy",
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
                    "training questions: sets by name (nq, hotpotqa:train, …), JSON lines or "
                    "parquet, several with commas",
                    free_on_resume=True,
                ),
                "dev": Setting("", "development questions, as data.questions", free_on_resume=True),
                "folder": Setting(
                    "", "that sets are looked up in by name, see docs/data.md", free_on_resume=True
                ),
                "filter": Setting(
                    (),
                    "training questions that are used: all of source=NAME, metadata.KEY=VALUE, "
                    "module:function",
                ),
                "limit": Setting(
                    (), "(set, most of its training questions) pairs; set '*': every other set"
                ),
                "weights": Setting((), "(set, share of what is drawn) pairs; (): as they occur"),
                "curriculum": CURRICULUM,
                "corpus": Setting("", "passages: JSON lines, may be gzipped", free_on_resume=True),
                "index": Setting(
                    "", "an index built before; empty: below the workdir", free_on_resume=True
                ),
                "world": Setting(
                    "demo",
                    "kind of the fictional world: demo, or harder (three hops, comparisons, "
                    "rumours, questions without an answer)",
                    one_of("demo", "harder"),
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
                "batch": Setting(48, "examples an optimizer step", at_least(1)),
                "micro_batch": Setting(
                    0, "examples that pass the model at a time; 0: all of a batch", at_least(0)
                ),
                "optimizer": Setting(
                    "muon",
                    "muon, for a policy from scratch, or adam, for pretrained weights",
                    one_of(*OPTIMIZERS),
                ),
                "checkpoint_every": Setting(
                    0,
                    "steps between checkpoints of supervised training; 0: none",
                    at_least(0),
                    free_on_resume=True,
                ),
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
                "minutes": Setting(
                    0.0,
                    "also this long after the last, as soon as a step is over; 0: never",
                    at_least(0),
                ),
                "keep": Setting(2, "of the newest; a good one and the best besides", at_least(1)),
                "best": Setting(
                    "greedy/em",
                    "the development score whose best policy is saved and never deleted",
                    one_of(*BEST),
                ),
                "folder": Setting("", "empty: below the workdir; several processes share it"),
            },
            free_on_resume=True,
        ),
        "guards": GUARDS,
        "log": Section(
            {
                "groups": Setting(4, "questions of a step whose episodes are kept", at_least(0)),
                "peak_tflops": Setting(
                    0.0,
                    "1e12 matrix FLOPs a second that a device can do, for utilisation/mfu; 0: by "
                    "its name, where that is known",
                    at_least(0),
                ),
                "wandb": Setting("", "project of Weights & Biases; empty: it is not used"),
            },
            free_on_resume=True,
        ),
        "watchdog": Section(
            {
                "seconds": Setting(
                    10800.0,
                    "without a finished rollout, update, evaluation or checkpoint, after which the "
                    "process writes its stacks and ends; 0: never",
                    at_least(0),
                )
            },
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
    "learner.truncated": "reward.truncated, mask as before, or train where it was penalise",
    "learner.truncation_penalty": "reward.terms, e.g. (('em', 1.0), ('truncated', -0.5))",
    "learner.overlong_buffer": "reward.overlong_buffer",
    "learner.overlong_penalty": "reward.terms, e.g. (('em', 1.0), ('overlong', -1.0))",
    "learner.minibatches": "learner.minibatch_size, in trajectories",
    "learner.warmup_steps": "learner.warmup_share, of the run",
    "learner.critic_warmup_steps": "learner.critic_warmup_share, of the run",
    "learner.decay_steps": "learner.decay_share, of the run",
}


def default_config() -> ml_collections.ConfigDict:
    """Settings of a run; locked, so that an unknown key is an error."""
    return RUN.defaults()


def unknown_setting(key: str) -> str:
    """What to say of a key that there is not: its new name, or the nearest one known."""
    leaf = key.rsplit(".", 1)[-1]
    if key in MOVED:
        return f"There is no setting {key} any more: use {MOVED[key]}."
    near = RUN.nearest(key) or next(
        (new for old, new in MOVED.items() if old.rsplit(".", 1)[-1] == leaf), None
    )
    hint = f" Did you mean {near}?" if near else ""
    return f"There is no setting {key}.{hint} --help lists all."


def has_adapters(config: ml_collections.ConfigDict) -> bool:
    """Whether training changes adapters alone."""
    return bool(config.lora.rank or config.lora.path)


def fixed_settings(config: Any) -> dict[str, Any]:
    """The settings that a resumed run has to have as before, as plain values."""
    return RUN.without_free(config)
