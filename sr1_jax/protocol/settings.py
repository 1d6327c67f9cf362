"""Settings of prompts; those of each method's template are in evaluation/methods.py."""

from __future__ import annotations

from sr1_jax.settings import Section, Setting, one_of

PROTOCOL = Section(
    {
        "template_path": Setting(
            "",
            "a file with {question} in it that replaces search_template",
            free_on_resume=True,  # its text counts, see methods.prompt_fingerprint
        ),
        "chat": Setting(
            False,
            "whether the prompt is a user's message in the model's own chat template; auto: where "
            "its tokenizer has one, as published Search-R1 checkpoints expect",
            one_of(False, True, "auto"),
            object,
        ),
    }
)
