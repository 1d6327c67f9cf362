"""Totals of runs of the engine: of several in one, and as metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sr1_jax.protocol.tags import SEARCH


def sum_stats(
    runs: Sequence[Mapping[str, float]], largest: Collection[str] = ("cache_gib",)
) -> dict[str, float]:
    """Stats of several runs of one engine in one: the largest value of some keys, by default of
    what is the same for all runs, the sum of all others."""
    keys = dict.fromkeys(key for stats in runs for key in stats)
    values = {key: [stats.get(key, 0.0) for stats in runs] for key in keys}
    return {key: (max if key in largest else sum)(found) for key, found in values.items()}


def as_metrics(stats: Mapping[str, float]) -> dict[str, float]:
    """The engine's totals as metrics, with rates.

    Tokens: decoded (sampled), prefilled (fed by `extend`), forked (copied from another slot or
    kept from the last episode), extend_positions (prefilled and padding). slot_steps are decode
    steps times slots, occupancy the share of them that sampled a token; busy_* count only while
    questions were waiting for a slot. Seconds: decode (waiting for what was sampled, and for all
    that was dispatched before), host (work between two calls), tool_wait (between two calls, for a
    tool to answer), <tag> (inside the calls of a tool, over all threads), reshard (making the
    layout of rollouts), extend and fork (dispatch alone, unless rollout.profile).

    Where the policy reads passages in prompts of their own: reader_episodes, reader_tokens (of
    those decoded), reader_no_answer, reader_skipped (no room for a word after the prompt),
    evictions (episodes whose slot their reader needed).
    """
    seconds = max(stats["seconds"], 1e-9)
    metrics = {f"rollout/{key}": float(value) for key, value in stats.items()} | {
        "rollout/trajectories_per_second": stats["episodes"] / seconds,
        "rollout/tokens_per_second": stats.get("decoded_tokens", 0.0) / seconds,
    }
    for prefix in ("", "busy_"):
        if stats.get(f"{prefix}slot_steps"):
            metrics[f"rollout/{prefix}occupancy"] = (
                stats[f"{prefix}decoded_tokens"] / stats[f"{prefix}slot_steps"]
            )
    hits, misses = (stats.get(f"{SEARCH}_cache_{name}", 0.0) for name in ("hits", "misses"))
    if hits + misses:
        metrics["rollout/search_cache_hit_rate"] = hits / (hits + misses)
    if found := stats.get(f"{SEARCH}_noise_passages"):
        metrics["rollout/search_noise_share"] = stats[f"{SEARCH}_noise_replaced"] / found
    return metrics
