"""Names, signatures and keys that others build on: a change here breaks them."""

import importlib
import inspect

import pytest

from sr1_jax.environment import Observation, Tool, Trajectory
from sr1_jax.retrieval import BM25Retriever, Passage
from sr1_jax.rollout import Engine, default_config
from sr1_jax.training import settings

FUNCTIONS = {
    "rewards:normalize_answer": "text",
    "rewards:exact_match": "prediction golden_answers",
    "rewards:substring_match": "prediction golden_answers",
    "rewards:f1_score": "prediction golden_answers",
    "protocol:extract_answer": "response",
    "protocol:is_well_formed": "response",
    "protocol:render_observation": "passages tokenizer max_tokens",
    "rl.advantages:gae": "rewards_BT values_BT mask_BT *gamma *lam",
    "rl.advantages:whiten": "x_BT mask_BT",
    "rl.advantages:group_relative": "scores_B group_B *eps",
    "rl.losses:policy_loss": "logp_BT old_logp_BT advantages_BT mask_BT *clip",
    "rl.losses:value_loss": "values_BT old_values_BT returns_BT mask_BT *clip",
    "rl.losses:kl_estimate": "logp_BT ref_logp_BT kind",
    "models:load_pretrained": "path",
    "retrieval:open_retriever": "config corpus index",
    "rollout:default_config": "",
    "rollout:Engine": "model tokenizer retriever config",
}
KEYS = """
steps seed questions samples base.path base.workdir warm_start.phases evaluation.every
evaluation.questions evaluation.final_questions checkpoint.every data.questions data.dev data.corpus
data.index rollout.deterministic environment.tools environment.options retrieval.kind reward.terms
lora.path protocol.template_path
""".split()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    module, function = name.split(":")
    found = getattr(importlib.import_module(f"sr1_jax.{module}"), function)
    parameters = inspect.signature(found).parameters
    for wanted in FUNCTIONS[name].split():
        parameter = parameters[wanted.lstrip("*")]
        assert (parameter.kind is parameter.KEYWORD_ONLY) == wanted.startswith("*")
    positional = [w for w in FUNCTIONS[name].split() if not w.startswith("*")]
    assert list(parameters)[: len(positional)] == positional
    # Whatever else there is has a default.
    rest = set(parameters) - {w.lstrip("*") for w in FUNCTIONS[name].split()}
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    assert all(
        parameters[r].default is not inspect.Parameter.empty or parameters[r].kind in variable
        for r in rest
    )


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_a_run(key):
    assert key in dict(settings.RUN.walk()) or key == "environment.options"


def test_keys_of_rollouts():
    wanted = (
        "slots passages max_searches max_segment_tokens max_observation_tokens max_context_tokens "
        "temperature top_p top_k"
    )
    assert set(wanted.split()) <= set(default_config())


def test_classes():
    assert {"build", "load", "search"} <= set(dir(BM25Retriever))
    assert [*inspect.signature(BM25Retriever.build).parameters][:2] == ["corpus_path", "index_dir"]
    assert [*inspect.signature(Passage).parameters] == ["id", "title", "text", "score"]
    assert [*inspect.signature(Engine.run).parameters][:4] == [
        "self", "questions", "seed", "samples",
    ]  # fmt: skip
    fields = set(Trajectory.__dataclass_fields__)
    wanted = "question_id sample ids mask logp response_text answer searches status reward calls"
    assert set(wanted.split()) <= fields
    assert [*inspect.signature(Observation).parameters] == ["text", "record"]
    assert {"tag", "observation_tag"} <= set(Tool.__annotations__) and callable(Tool.call)


@pytest.mark.parametrize("old", settings.MOVED)
def test_old_keys_name_their_successors(old):
    known = dict(settings.RUN.walk())
    assert old not in known
    message = settings.unknown_setting(old)
    named = [key for key in known if key in message]
    assert old in message and named, message
