"""One question after the other, for somebody who reads along: what a policy writes, searches and
reads, at a terminal or as data."""

from sr1_jax.asking.answer import Answered, as_data
from sr1_jax.asking.asker import Asker, asking_config, check_text
from sr1_jax.asking.conversation import answer_all, converse, write_all
from sr1_jax.asking.view import View, make_console

__all__ = [
    "Answered",
    "Asker",
    "View",
    "answer_all",
    "as_data",
    "asking_config",
    "check_text",
    "converse",
    "make_console",
    "write_all",
]
