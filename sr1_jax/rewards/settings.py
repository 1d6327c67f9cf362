"""Settings of rewards."""

from __future__ import annotations

from sr1_jax.settings import Section, Setting, at_least, between, one_of

REWARD = Section(
    {
        "terms": Setting(
            (("em", 1.0),), "(name or module:function, weight) pairs that add up to the reward"
        ),
        "format_weight": Setting(
            0.0,
            "share of the format in the terms em_format, f1_format, substring_format "
            "(arXiv 2505.15117)",
            between(0, 1),
        ),
        "truncated": Setting(
            "train",
            "episodes that ran out of budget: train on the reward they have, as the original "
            "does, or mask: leave them out",
            one_of("train", "mask"),
        ),
        "overlong_buffer": Setting(
            0,
            "tokens before rollout.max_context_tokens in which the term overlong rises from 0 to 1",
            at_least(0),
        ),
    }
)
