"""Settings of the rollout engine and their checks."""

from __future__ import annotations

from typing import Any

import ml_collections

from sr1_jax.models.serving import WEIGHTS
from sr1_jax.settings import (
    Section,
    Setting,
    at_least,
    between,
    increasing_lengths,
    one_of,
)

# The published values where there are any (arXiv 2503.09516, appendix).
ROLLOUT = Section(
    {
        "slots": Setting(64, "episodes in flight", at_least(1), free_on_resume=True),
        "passages": Setting(3, "passages that a search brings back", at_least(1)),
        "max_searches": Setting(
            4, "calls of tools in an episode; then one last segment without", at_least(0)
        ),
        "parallel_queries": Setting(False, "whether each line of a search is a query of its own"),
        "max_segment_tokens": Setting(500, "tokens the policy may write in a turn", at_least(1)),
        "max_observation_tokens": Setting(500, "tokens of an observation", at_least(1)),
        "max_context_tokens": Setting(4096, "tokens of prompt and response together", at_least(1)),
        "temperature": Setting(1.0, "of sampling; 0: greedy", at_least(0)),
        "top_p": Setting(1.0, "nucleus sampling; 1: off", between(0, 1, open_below=True)),
        "top_k": Setting(0, "tokens to sample from; 0: all", at_least(0)),
        "decode_steps": Setting(
            32, "tokens a slot in one call of the decode program", at_least(1), free_on_resume=True
        ),
        "decode_sizes": Setting(
            0,
            "1: all slots decode; 2: or a quarter of them; 0: 2 on CPUs, else 1",
            one_of(0, 1, 2),
            free_on_resume=True,
        ),
        "extend_buckets": Setting(
            (64, 256, 1024),
            "lengths that a prefill call is padded to",
            increasing_lengths(),
            free_on_resume=True,
        ),
        "turnover": Setting(
            0.125,
            "a decode call returns when this share of the running slots have stopped",
            between(0, 1, open_below=True),
            free_on_resume=True,
        ),
        "share_prefixes": Setting(
            True,
            "whether what another slot's cache holds of a prompt is copied",
            free_on_resume=True,
        ),
        "long_prompts": Setting(
            "raise", "prompts that leave no room: raise, or skip and count", one_of("raise", "skip")
        ),
        "weights": Setting("same", "dtype of the copy that rollouts use", one_of(*WEIGHTS)),
        "deterministic": Setting(
            False,
            "take what tools return by logical time, not by the clock: runs repeat bit for bit",
        ),
        "profile": Setting(
            False, "wait for every program, so that its seconds are its own", free_on_resume=True
        ),
    }
)


def default_config() -> ml_collections.ConfigDict:
    """The settings of an `Engine`."""
    return ROLLOUT.defaults()


def check_config(config: Any) -> None:
    """Refuses settings that cannot work.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    ROLLOUT.check(config, "rollout.")
