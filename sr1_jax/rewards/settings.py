"""Settings of rewards."""

from __future__ import annotations

from typing import Any

from sr1_jax.http_exchange import address_problem
from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    between,
    one_of,
    whole_at_least,
)


def _address_or_none(value: Any) -> None:
    # Raised here, not returned: messages of sections repeat the value, which may hold a key.
    if value and (problem := address_problem(value)):
        raise ValueError(f"reward.judge.url must {problem}.")


# Where and how a judge is asked may change between the runs of one training, who it is may not.
JUDGE = Section(
    {
        "url": Setting(
            "",
            "of an OpenAI-compatible API, such as https://api.openai.com/v1, which the term judge "
            "asks",
            _address_or_none,
            free_on_resume=True,
        ),
        "model": Setting("", "that judges, by its name there"),
        "key_variable": Setting(
            "",
            "name of the environment variable with the API's key; empty: no key is sent",
            free_on_resume=True,
        ),
        "timeout_seconds": Setting(
            30.0, "until an attempt is given up", above(0), free_on_resume=True
        ),
        "attempts": Setting(
            4, "before a verdict is given up", whole_at_least(1), free_on_resume=True
        ),
        "backoff_seconds": Setting(
            0.5,
            "before the second attempt; doubles, with jitter",
            at_least(0),
            free_on_resume=True,
        ),
        "requests": Setting(8, "under way at a time", whole_at_least(1), free_on_resume=True),
        "max_tokens": Setting(
            8, "of a reply; a judge that thinks in its reply needs more", whole_at_least(1)
        ),
        "failure": Setting(
            "raise",
            "a verdict that was given up ends the run (raise), or counts as wrong (zero)",
            one_of("raise", "zero"),
            free_on_resume=True,
        ),
    }
)

REWARD = Section(
    {
        "terms": Setting(
            (("em", 1.0),), "(name or module:function, weight) pairs that add up to the reward"
        ),
        "format_weight": Setting(
            0.0,
            "share of the format in the terms em_format, f1_format and their like "
            "(arXiv 2505.15117: 0.2)",
            between(0, 1),
        ),
        "final_format_weight": Setting(
            0.0,
            "in these terms, what an ill-formed response earns that ends in a wrong answer "
            "(there: 0.1)",
            between(0, 1),
        ),
        "retrieval_weight": Setting(
            0.0,
            "in these terms, what a well-formed response with a wrong answer earns beside for "
            "having found gold (there: 0.1)",
            between(0, 1),
        ),
        "refine_weight": Setting(
            0.0,
            "what the term f1_refine gives where F1 is 0 but a refine block holds a golden answer "
            "(arXiv 2505.11277: 0.1)",
            between(0, 1),
        ),
        "free_searches": Setting(
            0, "searches of an episode for which search_cost counts nothing", whole_at_least(0)
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
        "judge": JUDGE,
    }
)
