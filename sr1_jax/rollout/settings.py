"""Settings of the rollout engine and their checks."""

from __future__ import annotations

import json

import ml_collections

from sr1_jax.models.serving import WEIGHTS
from sr1_jax.rewards import outcome_reward


def default_config() -> ml_collections.ConfigDict:
    """Settings with the published values where there are any (arXiv 2503.09516, appendix)."""
    config = ml_collections.ConfigDict()
    config.slots = 64  # episodes in flight
    config.passages = 3  # passages a search brings back
    config.max_searches = 4  # after these, one last segment without search
    config.max_segment_tokens = 500
    config.max_observation_tokens = 500
    config.max_context_tokens = 4096  # prompt and response together
    config.temperature = 1.0  # 0: greedy
    config.top_p = 1.0
    config.top_k = 0  # 0: all tokens
    config.template = "search"  # a shipped prompt template, or the path of one
    config.chat = False  # True: the prompt as a user's message in the model's chat template
    config.decode_steps = 32  # tokens a slot in one call of the decode program
    config.decode_sizes = 0  # 1: all slots decode; 2: or a quarter of them; 0: 2 on CPUs, else 1
    config.extend_buckets = (64, 256, 1024)  # lengths an extend call is padded to
    config.reward_metric = "em"  # em, f1 or substring
    config.format_weight = 0.0  # weight of the format reward (arXiv 2505.15117)
    config.turnover = 0.125  # a decode call returns when this share of the running have stopped
    config.share_prefixes = True  # copy what another slot's cache holds of a prompt
    config.long_prompts = "raise"  # or "skip": leave out, and count, what the budget cannot hold
    config.parallel_queries = False  # True: each line of a search is a query; one observation
    config.weights = "same"  # or bfloat16, int8: of the copy that rollouts use
    config.profile = False  # True: wait for every program, so that its seconds are its own
    config.retriever_threads = 4  # searches under way at a time
    config.retriever_batch = 64  # most queries of one search
    config.retriever_timeout_seconds = 60.0
    config.retriever_attempts = 3  # calls before a failing retriever is given up
    config.retriever_backoff_seconds = 0.5  # before the second call; doubles
    config.retriever_failure = "raise"  # or "empty": go on with no passages, and count it
    return config.lock()


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot work.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    for key in ("slots", "passages", "max_segment_tokens", "max_observation_tokens",
                "max_context_tokens", "decode_steps", "retriever_attempts", "retriever_threads",
                "retriever_batch"):  # fmt: skip
        if config[key] < 1:
            raise ValueError(f"rollout.{key} must be at least 1, not {config[key]}.")
    for key in ("max_searches", "temperature", "top_k", "retriever_backoff_seconds"):
        if config[key] < 0:
            raise ValueError(f"rollout.{key} must not be negative, not {config[key]}.")
    if not 0 < config.top_p <= 1:
        raise ValueError(f"rollout.top_p must lie in (0, 1], not {config.top_p}.")
    buckets = tuple(config.extend_buckets)
    if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
        raise ValueError(f"rollout.extend_buckets must be increasing lengths, not {buckets}.")
    if not 0 < config.turnover <= 1:
        raise ValueError(f"rollout.turnover must lie in (0, 1], not {config.turnover}.")
    if config.retriever_timeout_seconds <= 0:
        raise ValueError(
            "rollout.retriever_timeout_seconds must be positive, not "
            f"{config.retriever_timeout_seconds}."
        )
    choices = {
        "decode_sizes": (0, 1, 2),
        "retriever_failure": ("raise", "empty"),
        "long_prompts": ("raise", "skip"),
        "weights": WEIGHTS,
    }
    for key, allowed in choices.items():
        if config[key] not in allowed:
            quoted = " or ".join(json.dumps(choice) for choice in allowed)
            raise ValueError(f"rollout.{key} must be {quoted}, not {config[key]!r}.")
    # Refuses unknown metrics and weights outside [0, 1].
    outcome_reward(
        None, ["x"], False, metric=config.reward_metric, format_weight=config.format_weight
    )
