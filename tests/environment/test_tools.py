"""Tools of a run: ours by name, a user's own by import path; what is no tool is refused."""

import sys

import ml_collections
import pytest

from sr1_jax.environment import Observation, SearchRecord, SearchTool, Tool, make_environment
from sr1_jax.environment.settings import CallOptions
from sr1_jax.environment.tool import make_tools
from sr1_jax.protocol.prompts import load_template
from sr1_jax.retrieval.base import Passage
from sr1_jax.training.settings import default_config

OWN = """
from sr1_jax.environment import Observation

class Calculator:
    tag, observation_tag = "calculate", "result"
    def __init__(self, config):
        self.digits = config.environment.options.get("calculate", {}).get("digits", 3)
    def call(self, requests):
        return [Observation(request, self.digits) for request in requests]

class Thinker(Calculator):
    tag = "think"

class Searcher(Calculator):
    tag = "search"

def nothing(config):
    return None

def fails(config):
    raise ValueError("no key")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own_tools` in a folder that is not the package's."""
    (tmp_path / "own_tools.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_tools", None)


def config_of(*tools, **options):
    config = default_config()
    config.environment.tools = tools
    for tag, given in options.items():
        config.environment.options[tag] = ml_collections.ConfigDict(given)
    return config


def environment_of(config, retriever=None):
    return make_environment(config, retriever, load_template("search"))


def test_a_tool_by_import_path(own):
    config = config_of("search", "own_tools:Calculator", calculate={"digits": 7, "threads": 2})
    environment = environment_of(config)
    search, calculator = environment.tools
    assert isinstance(calculator, Tool) and search is environment.search
    assert environment.tags.stop_tags == ("</search>", "</calculate>", "</answer>")
    assert calculator.call(["1"]) == [Observation("1", 7)]
    assert environment.options["calculate"] == CallOptions(threads=2)
    assert environment.options["search"] == CallOptions()


def test_a_run_without_search(own):
    environment = environment_of(config_of("own_tools:Calculator"))
    assert environment.tags.names == ("think", "calculate", "result", "answer")
    assert [tool.tag for tool in environment.called] == ["calculate"]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (("serch",), r"environment\.tools has 'serch'; a tool is one of search, or module:factory"),
        (("own_tools:Nothing",), "Nothing is not there in .*own_tools.py"),
        (("no_such_module:Tool",), "there is no module no_such_module"),
        (("own_tools:",), "is no import path; write module:function"),
        (("own_tools:nothing",), "made None, which is no tool"),
        (("own_tools:Thinker",), "'think' of a tool is reserved"),
        (("search", "own_tools:Searcher"), "'search' is used twice"),
        (("own_tools:fails",), "no key"),
    ],
)
def test_what_is_no_tool_is_refused(own, tools, message):
    with pytest.raises(ValueError, match=message):
        environment_of(config_of(*tools))


def test_options_of_a_tool_that_is_not_there(own):
    with pytest.raises(ValueError, match=r"environment\.options\.calculator: no tool .* the tags"):
        environment_of(config_of("search", "own_tools:Calculator", calculator={"digits": 2}))


def test_options_out_of_range(own):
    config = config_of("own_tools:Calculator", calculate={"timeout_seconds": -1.0})
    with pytest.raises(ValueError, match=r"environment\.options\.calculate\.timeout_seconds must"):
        environment_of(config)


def test_named_tools_are_made_when_asked_for():
    made = []
    make_tools((), None, {"search": lambda: made.append(1)})
    assert made == []


class Retriever:
    def search(self, queries, k):
        return [[Passage(f"{q}{i}", f"T {q}", "x\ny", 1.0) for i in range(k)] for q in queries]


def test_lines_of_a_request_are_one_query():
    tool = SearchTool(Retriever(), 2)
    (found,) = tool.call(["one\n\n two "])
    assert found.record.queries == ["one two"]
    assert found.text == "Doc 1(Title: T one two) x y\nDoc 2(Title: T one two) x y\n"


def test_each_line_can_be_a_query():
    tool = SearchTool(Retriever(), 1, parallel_queries=True)
    first, second = tool.call(["one\n\n two ", "three"])
    assert first.record.queries == ["one", "two"] and second.record.queries == ["three"]
    assert [[p.id for p in hits] for hits in first.record.passages] == [["one0"], ["two0"]]
    assert first.text.count("Doc ") == 2


def test_what_a_failed_search_leaves():
    tool = SearchTool(None, 3, parallel_queries=True)
    assert tool.failed("a\nb") == Observation("", SearchRecord(["a", "b"], [[], []]))


def test_a_tool_of_ones_own_may_be_called_search(own):
    """It needs no retriever of ours."""
    environment = environment_of(config_of("own_tools:Searcher"))
    assert environment.search not in environment.tools
    assert [tool.tag for tool in environment.called] == ["search"]


def test_passages_of_a_prompt_cannot_close_their_block_in_a_run_without_search(own):
    config = config_of("own_tools:Calculator")
    environment = make_environment(config, None, load_template("rag"))
    assert [tool.tag for tool in environment.called] == ["calculate", "search"]
    assert {"information", "result"} <= set(environment.escaped.names)


def test_a_misspelt_option_of_search_is_refused():
    config = default_config()
    with pytest.raises((AttributeError, KeyError), match="thread"):
        config.environment.options.search.thread = 3


@pytest.mark.parametrize("key", ["threads", "batch", "attempts", "max_calls"])
def test_options_are_whole_numbers(own, key):
    config = config_of("own_tools:Calculator", calculate={key: 2.5})
    with pytest.raises(ValueError, match=rf"options\.calculate\.{key} must be a whole number"):
        environment_of(config)


def test_equal_ids_are_no_reason_to_drop_a_passage():
    class Anonymous:
        def search(self, queries, k):
            return [[Passage("", "", f"text {i}", 1.0) for i in range(k)] for _ in queries]

    (found,) = SearchTool(Anonymous(), 3).call(["q"])
    assert found.text.count("Doc ") == 3


@pytest.mark.parametrize(
    ("source", "tool", "message"),
    [
        ("raise RuntimeError('boom')", "X", r"='own_bad:X': .*own_bad\.py:1: RuntimeError: boom"),
        ("def X(", "X", r"='own_bad:X': .*own_bad\.py:1: SyntaxError: "),
        ("import nosuchdep", "X", r"own_bad\.py:1: ModuleNotFoundError: No module named 'nosuch"),
        ("def X():\n  pass", "X", r"='own_bad:X': TypeError: X\(\) takes 0 positional arguments"),
        ("def X(config):\n  return {}['key']", "X", r"own_bad\.py:2: KeyError: 'key'"),
        ("def X(config):\n  return config.environment.options.calc", "X", r"own_bad\.py:2: Attr"),
    ],
)
def test_errors_of_a_users_own_code_say_where_they_come_from(
    tmp_path, monkeypatch, source, tool, message
):
    (tmp_path / "own_bad.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"environment\.tools" + ".*" + message):
        environment_of(config_of(f"own_bad:{tool}"))
    sys.modules.pop("own_bad", None)
