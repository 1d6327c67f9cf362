"""Methods: their prompts, their tools, what they need, and what may be trained with."""

import pytest

from sr1_jax.evaluation.methods import (
    METHODS,
    TEMPLATES,
    check_templates,
    check_trains,
    make_engine,
    method_environment,
    needs_retriever,
    prompt_fingerprint,
    prompt_settings,
    rollout_config,
    templates,
)
from sr1_jax.evaluation.results import answering_settings
from sr1_jax.protocol.prompts import load_template
from sr1_jax.rollout import Engine
from sr1_jax.training.settings import default_config

OWN_PROMPTS = ("search", "direct", "cot", "rag", "ircot", "search_o1")


def test_the_baselines_of_the_paper():
    assert set(METHODS) == {*OWN_PROMPTS, "rejection"}
    assert set(TEMPLATES) == {f"{name}_template" for name in OWN_PROMPTS} | {"reader_template"}
    config = default_config()
    assert {key for key in config.protocol if key.endswith("_template")} == set(TEMPLATES)
    for name in OWN_PROMPTS:
        assert load_template(config.protocol[f"{name}_template"]).name == name
    assert templates(config)["rejection"] == "search"


def test_a_file_replaces_the_prompt_of_search_wherever_it_is_used(tmp_path):
    config = default_config()
    (tmp_path / "mine").write_text("Find {question}")
    config.protocol.template_path = str(tmp_path / "mine")
    found = templates(config)
    assert found["search"] == found["rejection"] == str(tmp_path / "mine")
    assert found["search_o1"] == "search_o1"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_may_train(method):
    if method in ("search_o1", "rejection"):
        with pytest.raises(ValueError, match=rf"method='{method}' cannot be trained with: .*ircot"):
            check_trains(method)
    else:
        check_trains(method)


@pytest.mark.parametrize(
    ("method", "searches", "stops"),
    [
        ("search", 4, ("</search>", "</answer>")),
        ("rejection", 4, ("</search>", "</answer>")),
        ("search_o1", 4, ("</search>", "</answer>")),
        ("ircot", 4, ("</think>", "</answer>")),
        ("rag", 0, ("</search>", "</answer>")),
        ("cot", 0, ("</search>", "</answer>")),
        ("direct", 0, ("</search>", "</answer>")),
    ],
)
def test_searches_and_stops(method, searches, stops, small_tokenizer):
    config = default_config()
    assert rollout_config(config, method).max_searches == searches
    environment = method_environment(config, None, method, small_tokenizer)
    assert environment.tags.stop_tags == stops
    assert method_environment(config, None, method, None).tags.stop_tags == stops
    assert (environment.reader is not None) == (method == "search_o1")
    assert environment.template.wants_information == (method in ("rag", "ircot"))
    assert needs_retriever(config, method) == (bool(searches) or method == "rag")


def test_other_tools_of_the_run(small_tokenizer):
    """Thoughts are searches whatever the tools; a method that calls them has them."""
    config = default_config()
    config.environment.tools = ()
    assert not needs_retriever(config, "search") and not needs_retriever(config, "rejection")
    assert needs_retriever(config, "ircot") and needs_retriever(config, "rag")
    config.environment.tools = ("no_such_module:Tool",)
    config.environment.options.calculate = {"threads": 1}
    environment = method_environment(config, None, "ircot", small_tokenizer)
    assert [tool.tag for tool in environment.tools] == ["search"]
    with pytest.raises(ValueError, match="no_such_module"):
        method_environment(config, None, "search_o1", small_tokenizer)


def test_options_of_search_hold_for_thoughts(small_tokenizer):
    config = default_config()
    config.environment.options.search.timeout_seconds = 7.0
    environment = method_environment(config, None, "ircot", small_tokenizer)
    assert environment.options["search"].timeout_seconds == 7.0


def test_fingerprints(tmp_path):
    config = default_config()
    prints = {method: prompt_fingerprint(config, method) for method in METHODS}
    assert prints["rejection"] == prints["search"] and len(set(prints.values())) == 6
    mine = tmp_path / "mine"
    mine.write_text("{query}{information}")
    config.protocol.reader_template = str(mine)
    changed = {m for m in METHODS if prompt_fingerprint(config, m) != prints[m]}
    assert changed == {"search_o1"}
    before = prompt_fingerprint(config, "search_o1")
    mine.write_text("Read. {query}{information}")
    assert prompt_fingerprint(config, "search_o1") != before


def test_settings_that_answers_depend_on():
    plain = default_config().to_dict()
    for method in METHODS:
        told = answering_settings(plain, method, greedy=True)
        prompts = {key for key in told if key.startswith("protocol.")}
        assert prompts == {f"protocol.{key}" for key in prompt_settings(method)}
    assert prompt_settings("rejection") == ("search_template", "template_path", "chat")
    assert prompt_settings("search_o1") == ("search_o1_template", "reader_template", "chat")
    assert prompt_settings("cot") == ("cot_template", "chat")


@pytest.mark.parametrize(
    ("key", "value", "of", "message"),
    [
        ("ircot_template", "nope", "ircot", r"protocol\.ircot_template: No prompt template 'nope'"),
        ("search_template", "nope", "rejection", r"protocol\.search_template: No prompt template"),
        ("reader_template", "rag", "search_o1", r"protocol\.reader_template: .* no \{query\}"),
    ],
)
def test_templates_that_do_not_work(key, value, of, message):
    config = default_config()
    check_templates(config)
    config.protocol[key] = value
    for method in (of, None):
        with pytest.raises(ValueError, match=message):
            check_templates(config, method)
    check_templates(config, "direct")


@pytest.mark.parametrize("method", METHODS)
def test_engines_of_all_methods(method, tiny_decoder, small_tokenizer, fake_retriever):
    """Each runs: prompts as rendered, trajectories with one mask, no passages where none belong."""
    config = default_config()
    rollout = {"slots": 3, "passages": 1, "max_searches": 1, "max_segment_tokens": 24,
               "max_observation_tokens": 40, "max_context_tokens": 1100, "decode_steps": 8,
               "extend_buckets": (512,)}  # fmt: skip
    config.rollout.update(rollout)
    retriever = fake_retriever()
    engine = make_engine(tiny_decoder, small_tokenizer, retriever, config, method)
    assert isinstance(engine, Engine)
    asked = [{"id": f"q{i}", "question": f"Who {i}", "golden_answers": ["Bob"]} for i in range(4)]
    run = engine.run(asked, seed=3)
    environment = engine._environment
    for t, question in zip(run, asked):
        prompt, mask = t.ids[: t.prompt_length].tolist(), t.mask.tolist()
        information = None
        if environment.template.wants_information:
            passage = retriever._default(question["question"], 1)
            text = f"Doc 1(Title: {passage.title}) {passage.text}"
            information = small_tokenizer.encode(f"\n<information>\n{text}\n</information>\n")
        template = load_template(templates(config)[method])
        assert prompt == template.render(small_tokenizer, question["question"], information)
        assert not any(mask[: t.prompt_length]) and any(mask)
        assert (t.logp[t.mask == 1] < 0).all() and not t.logp[t.mask == 0].any()
        if not METHODS[method].calls_tools:
            assert t.segments == 1 and t.searches == []
    assert bool(retriever.calls) == needs_retriever(config, method) or method in (
        "search", "search_o1", "rejection",
    )  # fmt: skip
