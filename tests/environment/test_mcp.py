"""Tools of Model Context Protocol servers, over standard input and output and over HTTP."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_collections
import pytest
from mcp_types import CallToolResult
from older_mcp import OlderServer

from sr1_jax.environment import Observation, Tool, make_environment, mcp_session
from sr1_jax.environment import mcp as mcp_tools
from sr1_jax.environment.mcp import McpRecord, text_of
from sr1_jax.environment.pool import ToolPool
from sr1_jax.environment.tool import check_tools
from sr1_jax.protocol.prompts import load_template
from sr1_jax.training.settings import default_config

SERVER = Path(__file__).with_name("mcp_server.py")
COMMAND = (sys.executable, str(SERVER), "stdio")


@pytest.fixture(autouse=True)
def sessions():
    """No session outlives its test."""
    yield
    mcp_session.close_all()


def config_of(tag="lookup", **options):
    config = default_config()
    config.environment.tools = ("search", f"sr1_jax.environment.mcp:{tag}")
    given = dict(connect_attempts=3, connect_backoff_seconds=0.1) | options
    config.environment.options[tag] = ml_collections.ConfigDict(given)
    return config


def make(tag="lookup", **options):
    """The tool of a server, by default that of `COMMAND`."""
    given = {} if "url" in options else {"command": COMMAND}
    return getattr(mcp_tools, tag)(config_of(tag, **given | {"tool": tag} | options))


@contextlib.contextmanager
def served(port=0):
    """The server over HTTP; gives its process and its address."""
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(SERVER), "http", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def shown(text, tool="lookup", **record):
    return Observation(text, McpRecord(tool, False, {"result": text}, **record))


def test_requests_of_a_batch_are_answered_in_order():
    tool = make()
    assert isinstance(tool, Tool)
    assert (tool.tag, tool.observation_tag) == ("lookup", "lookup_result")
    assert tool.call(["a", "b"]) == [shown("3 found for a"), shown("3 found for b")]
    assert pickle.loads(pickle.dumps(tool.call(["a"]))) == [shown("3 found for a")]
    assert tool.counts() == {"errors": 0, "cut": 0, "connections": 1}


def test_over_http():
    with served() as (_, url):
        tool = make(url=url)
        assert tool.call(["a", "b"]) == [shown("3 found for a"), shown("3 found for b")]


def test_threads_share_a_session():
    tool, other = make(), make(observation_tag="seen")
    assert other.observation_tag == "seen" and other._session is tool._session
    found = {}

    def ask(name):
        found[name] = tool.call([name, f"{name}!"])[1].text

    threads = [threading.Thread(target=ask, args=(f"q{i}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {f"q{i}": f"3 found for q{i}!" for i in range(16)}
    assert tool.counts()["connections"] == 1


def test_calls_are_under_way_at_the_same_time_but_not_too_many():
    tool = make("slow", parallel=4)
    began = time.monotonic()
    tool.call(["0.3"] * 8)
    took = time.monotonic() - began
    assert 0.6 <= took < 2.4


def test_other_arguments_are_the_same_for_all():
    assert make(arguments={"limit": 7}).call(["a"])[0].text == "7 found for a"


def test_requests_that_are_no_text_of_utf8():
    tool = make()
    assert tool.call(["a\ud83db", "\x00 日本"])[0].text == "3 found for a?b"
    assert tool.counts()["connections"] == 1


def test_an_error_is_shown_or_fails_the_call():
    tool = make("fragile")
    (found,) = tool.call(["fail"])
    assert found.text.startswith("The tool failed: ") and found.record.error
    assert tool.counts()["errors"] == 1
    with pytest.raises(RuntimeError, match="the tool fragile answered with an error: '"):
        make("fragile", errors="fail").call(["fine", "fail"])


def test_long_texts_are_cut_and_counted():
    tool = make(max_characters=8)
    assert tool.call(["abc"]) == [
        Observation("3 found ", McpRecord("lookup", False, {"result": "3 found for abc"}, 7))
    ]
    assert tool.counts()["cut"] == 1


def test_parts_that_are_no_text_are_told():
    (found,) = make("parts").call(["x"])
    assert found.text == "x\n[image, image/png]\nof a resource"
    structured = CallToolResult(content=[], structured_content={"a": 1})
    assert text_of(structured) == '{"a": 1}'


def test_a_call_that_takes_too_long():
    tool = make("slow", timeout_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.5 seconds"):
        tool.call(["0.01", "30"])
    assert time.monotonic() - began < 5
    assert tool.call(["0.01"])[0].text == "after 0.01"  # the session goes on


def test_a_server_that_ends_is_started_again(tmp_path):
    (tmp_path / "flag").touch()
    tool = make("fragile")
    (first,) = tool.call(["who"])
    found = tool.call(["who", f"die {tmp_path / 'flag'}", "who"])
    assert {each.text for each in found} != {first.text}
    assert tool.counts()["connections"] == 2 and not any(each.record.error for each in found)


def test_a_server_that_ends_again_and_again(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_TESTS", "sesame")
    tool = make("fragile", variables=("TOKEN_OF_TESTS",))
    with pytest.raises(ConnectionError, match="ended during a call, twice; it wrote '") as caught:
        tool.call(["die"])
    assert "the end is near, says …" in str(caught.value) and "sesame" not in str(caught.value)
    assert tool.call(["who"])[0].text


def test_a_server_over_http_that_comes_back():
    with served() as (process, url):
        tool = make("fragile", url=url, connect_attempts=9, connect_backoff_seconds=0.1)
        assert tool.call(["who"])[0].text == str(process.pid)
        process.kill()
        process.wait()
        began = threading.Event()
        found = []

        def ask():
            began.set()
            found.extend(tool.call(["who", "who"]))

        asking = threading.Thread(target=ask)
        asking.start()
        began.wait()
        with served(int(url.split(":")[2].partition("/")[0])) as (again, _):
            asking.join(60)
            assert [each.text for each in found] == [str(again.pid)] * 2


def test_a_server_over_http_that_does_not_come_back():
    with served() as (_, url):
        tool = make("fragile", url=url)
        assert tool.call(["who"])[0].text
    with pytest.raises(ConnectionError, match=r"no connection to the MCP server http://127\.0"):
        tool.call(["who"])


def test_a_server_of_an_older_version():
    with OlderServer() as server:
        tool = make(url=server.url, argument="")
        assert [each.text for each in tool.call(["a", "b"])] == ["on a", "on b"]
        # It is started anew, and knows the session no more.
        server.forget()
        assert [each.text for each in tool.call(["a", "b"])] == ["on a", "on b"]
        assert tool.counts()["connections"] == 2
        (refused,) = tool.call(["nonsense"])
        assert refused == Observation(
            "The tool failed: nonsense is refused", McpRecord("lookup", True)
        )


def test_a_proxy_that_cannot_reach_its_server():
    with OlderServer() as server:
        tool = make(url=server.url)
        server.status = 502
        with pytest.raises(ConnectionError, match=rf"the MCP server {server.url} failed: Server"):
            tool.call(["a"])
        server.status = 0
        assert tool.call(["a"])[0].text == "on a"


def test_a_key_is_borne_and_not_told(monkeypatch):
    monkeypatch.setenv("KEY_OF_TESTS", "sesame")
    with OlderServer() as server:
        tool = make(url=server.url, key_variable="KEY_OF_TESTS")
        tool.call(["a"])
        headers = [{key.lower(): value for key, value in each.items()} for each in server.headers]
        assert {each["authorization"] for each in headers} == {"Bearer sesame"}
        server.status = 401
        with pytest.raises(ConnectionError) as caught:
            tool.call(["a"])
    assert "sesame" not in str(caught.value)


def test_variables_reach_the_command_by_name_alone(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_TESTS", "sesame")
    monkeypatch.setenv("OTHER_OF_TESTS", "closed")
    tool = make("variable", variables="TOKEN_OF_TESTS")
    found = tool.call(["TOKEN_OF_TESTS", "OTHER_OF_TESTS"])
    assert [each.text for each in found] == ["sesame", "(not set)"]


def test_in_the_pool_failures_are_shown():
    tool = make("fragile", attempts=2, backoff_seconds=0.0, failure="empty", batch=2)
    environment = make_environment(
        config_of(
            "fragile", command=COMMAND, tool="fragile", attempts=2, backoff_seconds=0.0,
            failure="empty", batch=2,
        ),
        None, load_template("search"),
    )  # fmt: skip
    pool = ToolPool(
        [tool],
        lambda tag, observation: observation.text,
        {"fragile": environment.options["fragile"]},
    )
    for key, request in enumerate(["who", "die", "who"]):
        pool.submit(key, "fragile", request)
    answers = {}
    until = time.monotonic() + 60
    while len(answers) < 3 and time.monotonic() < until:
        answers |= {answer.key: answer for answer in pool.poll(1)}
    assert answers[1].ids == "The tool did not answer." and answers[1].observation.record.error
    assert answers[0].ids.isdigit() and answers[2].ids.isdigit()
    assert pool.stats["fragile_failures"] == 1


# Bad input is told before a run does anything expensive.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool": "lokup"}, r"\.tool='lokup': the server has add, .*\. Did you mean lookup\?"),
        ({"tool": ""}, r"\.tool='': the server has add"),
        ({"argument": "question"}, r"\.argument='question': lookup has no such argument"),
        ({"argument": "qery"}, r"Did you mean query\?"),
        ({"argument": "limit"}, "called like this: a request is text, but limit is 'in"),
        ({"tool": "join"}, r"\.argument is not set: say which argument of join .* left, right"),
        ({"tool": "add", "argument": "first", "arguments": {"second": 1}},
         "a request is text, but first is 'integer'"),
        ({"tool": "join", "argument": "left"},
         "join cannot be called like this: 'right' is a required property"),
        ({"arguments": {"limit": "many"}}, "'many' is not of type 'integer'"),
        ({"arguments": {"query": "x"}, "argument": "query"}, "is given in .*arguments too"),
        ({"command": "no-such-program --x"}, r"command='no-such-program' is no program that can"),
        ({"command": "./here"}, r"command='\./here' is no program"),
        ({"command": "python 'x"}, r"command=\"python 'x\": No closing quotation"),
        ({"command": (), "url": ""}, "has to have either command or url"),
        ({"url": "http://h/mcp"}, "has to have either command or url"),
        ({"command": "", "url": "localhost:1"}, r"\.url must be an address"),
        ({"key_variable": "HOME"}, r"\.key_variable means nothing beside command"),
        ({"variables": ("NO_SUCH_OF_TESTS",)}, "variable NO_SUCH_OF_TESTS .*is not set"),
        ({"folder": "nowhere"}, "folder='nowhere' is not there"),
        ({"argumnet": "query"}, r"argumnet is no option of a tool\. Did you mean argument\?"),
        ({"parallel": 0}, r"\.parallel must be a whole number of at least 1"),
        ({"errors": "raise"}, r"\.errors must be one of show, fail"),
        ({"command": f"{sys.executable} -c pass"}, "no connection to the MCP server .* attempts"),
        ({"command": f"{sys.executable} -c 'import nosuchmodule'"},
         "the last: it ended; it wrote .*No module named .*nosuchmodule"),
        ({"command": f"{sys.executable} -c 'import time; time.sleep(60)'", "connect_seconds": 0.5,
          "connect_attempts": 1}, "no answer within 0.5 seconds"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_the_check(options, message):
    config = config_of(**{"command": COMMAND, "tool": "lookup", "connect_attempts": 1} | options)
    setting = r"environment\.tools='sr1_jax\.environment\.mcp:lookup': "
    with pytest.raises(ValueError, match=f"{setting}.*{message}"):
        check_tools(config.environment.tools, config)


def test_a_key_that_is_not_there():
    config = config_of(url="http://127.0.0.1:1/mcp", key_variable="NO_SUCH_OF_TESTS")
    with pytest.raises(ValueError, match=r"variable NO_SUCH_OF_TESTS .* is not set"):
        check_tools(config.environment.tools, config)


def test_nobody_listens():
    config = config_of(url="http://127.0.0.1:1/mcp", connect_attempts=2)
    with pytest.raises(ValueError, match=r"no connection to .*:1/mcp in 2 attempts; the last: "):
        check_tools(config.environment.tools, config)


def test_the_one_tag_that_has_a_server_is_meant():
    config = config_of("lookup", command=COMMAND, tool="lookup")
    config.environment.tools = ("sr1_jax.environment.mcp:tool",)
    assert mcp_tools.tool(config).tag == "lookup"
    config.environment.options.other = ml_collections.ConfigDict({"url": "http://h/mcp"})
    with pytest.raises(ValueError, match=r"a command or a url \(lookup, other\); write sr1"):
        mcp_tools.tool(config)


def test_a_server_ends_with_the_program():
    program = f"""
import sys
from sr1_jax.environment.mcp_link import Server
from sr1_jax.environment.mcp_session import session_of
session = session_of(Server(command=({sys.executable!r}, {str(SERVER)!r}, "stdio")))
print(session.call("fragile", [{{"query": "who"}}], 60.0)[0].content[0].text)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    until = time.monotonic() + 10
    while time.monotonic() < until and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
    assert done.stderr == ""
