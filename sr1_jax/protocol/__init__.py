"""The protocol between policy and environment: tags, prompts, observations, answers."""

from sr1_jax.protocol.answers import extract_answer, extract_queries, is_well_formed
from sr1_jax.protocol.automaton import TagAutomaton, build_automaton
from sr1_jax.protocol.observations import render_observation
from sr1_jax.protocol.prompts import PromptTemplate, load_template
from sr1_jax.protocol.tags import SEARCH_TAGS, Tags, ToolTags

__all__ = [
    "SEARCH_TAGS",
    "PromptTemplate",
    "TagAutomaton",
    "Tags",
    "ToolTags",
    "build_automaton",
    "extract_answer",
    "extract_queries",
    "is_well_formed",
    "load_template",
    "render_observation",
]
