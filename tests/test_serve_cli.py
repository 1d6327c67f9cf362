"""python -m sr1_jax.serve: what it serves, what it refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import urllib3

from sr1_jax import serve
from sr1_jax.retrieval import BM25Retriever, fingerprint_of, open_retriever
from sr1_jax.retrieval.settings import RETRIEVAL

ROOT = Path(__file__).parents[1]
SLOW = """
import pathlib, time
from sr1_jax.retrieval import Passage

class Slow:
    def search(self, queries, k):
        pathlib.Path("searching").touch()
        time.sleep(1.5)
        return [[Passage(query, "", query, 1.0)] for query in queries]

def make(config, corpus, index):
    return Slow()
"""


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": "0", "contents": '"Cats"\nthe cat runs'},
        {"id": "1", "contents": '"Dogs"\na dog barks'},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start(tmp_path):
    """Function of flags -> (process, address), once it listens."""
    started = []

    def run(*arguments):
        command = [sys.executable, "-m", "sr1_jax.serve", "--port=0", *map(str, arguments)]
        paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        line = process.stdout.readline()
        found = re.search(r"Serving at (http://127\.0\.0\.1:\d+)/retrieve", line)
        assert found, line + process.stderr.read()
        return process, found[1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ask(address, path="/retrieve", **body):
    data = json.dumps(body).encode() if body else None
    response = urllib3.request("POST" if body else "GET", address + path, body=data, retries=False)
    return response.status, response.json()


def test_an_index_is_served_and_searched_by_a_run(start, corpus, tmp_path):
    index = BM25Retriever.build(corpus, tmp_path / "index", k1=1.5)  # not the default
    process, address = start(f"--index={tmp_path / 'index'}")
    status, answer = ask(address, queries=["cats", "nothing"], topk=1, return_scores=True)
    (passage,) = index.search(["cats"], 1)[0]
    document = {"id": "0", "contents": '"Cats"\nthe cat runs'}
    assert status == 200
    assert answer == {"result": [[{"document": document, "score": passage.score}], []]}
    assert ask(address, "/health")[1]["fingerprint"] == index.fingerprint
    config = RETRIEVAL.defaults()
    config.kind, config.http.urls = "http", address
    retriever = open_retriever(config)
    assert retriever.search(["dog", "cat"], 3) == index.search(["dog", "cat"], 3)
    assert fingerprint_of(retriever) == index.fingerprint
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_what_is_under_way_is_answered_at_the_end(start, tmp_path):
    """SIGTERM while a search runs: its answer comes, then nobody listens, and that is success."""
    (tmp_path / "slow_search.py").write_text(SLOW)
    process, address = start("--config.retrieval.kind=slow_search:make")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(address, queries=["a"])))
    thread.start()
    until = time.monotonic() + 20
    while not (tmp_path / "searching").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.terminate()
    thread.join(20)
    assert answers == [(200, {"result": [[{"id": "a", "contents": "a"}]]})]
    assert process.wait(20) == 0
    assert process.stderr.read() == ""
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        ask(address, "/health")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"There is nothing to search: give --index=DIR"),
        (("--host=0.0.0.0", "--index=x"), r"--host=0\.0\.0\.0 can be reached from other machines"),
        (("--index=nowhere",), "nowhere: no such index"),
        (("--index=s3://a/b",), r"--index=s3://a/b: only paths"),
        (("--topk=0", "--index=x"), "topk=0: must be at least 1"),
        (("--port=http", "--index=x"), "port"),
        (("--token_file=nowhere", "--index=x"), "nowhere"),
        (("extra",), "unexpected argument 'extra'"),
        (("--config.retrieval.kind=bm52", "--corpus=x"), r"Did you mean bm25\?"),
        (("--config.retreival.kind=bm25",), "There is no setting retreival"),
        (("--config.retrieval.cache.kind=big", "--corpus=x"), r"cache\.kind must be one of"),
        (("--config.retrieval.noise.start=2", "--corpus=x"), r"retrieval\.noise\.start must lie"),
    ],
)
def test_what_is_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(serve, "serve", lambda *_: pytest.fail("it was served"))
    with pytest.raises((ValueError, OSError), match=message):
        serve.main(["serve", *arguments])


def test_other_machines_are_served_when_that_is_meant(monkeypatch, corpus, tmp_path):
    served = []
    monkeypatch.setattr(serve, "serve", lambda *given: served.append(given))
    (tmp_path / "token").write_text("sesame\n")
    for host, *flags in (
        ("0.0.0.0", "--without_token"),
        ("::", f"--token_file={tmp_path / 'token'}"),
        ("localhost",),
        ("::1",),
        ("127.0.0.2",),
    ):
        serve.main(["serve", f"--corpus={corpus}", f"--host={host}", *flags])
    assert [token for *_, token in served] == ["", "sesame", "", "", ""]
    assert all(given[0].search(["cat"], 1)[0][0].id == "0" for given in served)
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "of-the-environment")
    serve.main(["serve", f"--corpus={corpus}", "--host=0.0.0.0"])
    assert served[-1][2] == "of-the-environment"


def test_a_port_that_is_taken(corpus):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"--port={port}: cannot listen there"):
            serve.main(["serve", f"--corpus={corpus}", f"--port={port}"])


def test_without_the_extra_it_says_what_to_install(monkeypatch, corpus):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r"needs the package uvicorn: pip install 'sr1_jax\[serve"):
        serve.main(["serve", f"--corpus={corpus}"])


def test_settings_of_a_file(monkeypatch, corpus, tmp_path):
    served = []
    monkeypatch.setattr(serve, "serve", lambda *given: served.append(given[0]))
    (tmp_path / "mine.py").write_text(
        "from sr1_jax.training.settings import default_config\n\ndef get_config():\n"
        f"    c = default_config()\n    c.data.corpus = {str(corpus)!r}\n"
        "    c.retrieval.cache.kind = 'memory'\n    return c\n"
    )
    serve.main(["serve", f"--config={tmp_path / 'mine.py'}", "--config.retrieval.k1=2.0"])
    (retriever,) = served
    assert retriever.manifest["k1"] == 2.0
    retriever.search(["cat"], 1)
    assert retriever.counts()["cache_misses"] == 1
