"""Settings of prompts."""

from __future__ import annotations

from sr1_jax.settings import Section, Setting, one_of

PROTOCOL = Section(
    {
        "search_template": Setting("search", "prompt of method search: a shipped template's name"),
        "direct_template": Setting("direct", "prompt of method direct"),
        "rag_template": Setting("rag", "prompt of method rag"),
        "template_path": Setting("", "a file with {question} in it that replaces search_template"),
        "chat": Setting(
            False,
            "whether the prompt is a user's message in the model's own chat template; auto: where "
            "its tokenizer has one, as published Search-R1 checkpoints expect",
            one_of(False, True, "auto"),
            object,
        ),
    }
)
