"""Servers for tests, one that fails on purpose and ours in a thread; and clients that try to
bring ours down."""

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time

import urllib3
import uvicorn
from faulty_http import FaultyHTTPServer, Handler

from sr1_jax.retrieval.server import Limits, make_app

FAULTS = ("hung", "500", "cut", "broken", "length", "drip")


class RetrieveHandler(Handler):
    """Beside the usual faults an answer of the wrong length; tells its health if it has any."""

    def do_GET(self):
        health = self.server_of.health
        self.reply(200 if health is not None else 404, json.dumps(health or {"detail": "no"}))

    def answer(self, fault, text):
        if fault == "length":
            text = json.dumps({"result": [*json.loads(text)["result"], []]})
            fault = None
        super().answer(fault, text)


class FaultyServer(FaultyHTTPServer):
    """Speaks /retrieve over a retriever, except where `fault_of` names a fault.

    Args:
        retriever: answers.
        fault_of: function of (number of the request, body) -> one of FAULTS, or None; or a status.
        hung_seconds: most that a hung request is held.
        health: what /health tells; None: there is no such page.

    Attributes:
        bodies: of the requests, parsed.
        injected: faults, in order.
    """

    def __init__(
        self, retriever, fault_of=lambda number, body: None, *, hung_seconds=5.0, health=None
    ):
        super().__init__(RetrieveHandler, hung_seconds=hung_seconds)
        self.retriever, self.fault_of, self.health = retriever, fault_of, health
        self.injected = []
        self.url = f"{self.address}/retrieve"

    def fault_for(self, number, body):
        fault = self.fault_of(number, body)
        if fault:
            self.injected.append(fault)
        return fault

    def text_for(self, body):
        found = self.retriever.search(body["queries"], body["topk"])
        rows = [
            [
                {
                    "document": {"id": p.id, "contents": f'"{p.title}"\n{p.text}'},
                    "score": p.score,
                }
                for p in passages
            ]
            for passages in found
        ]
        return json.dumps({"result": rows})


def closed_port():
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/retrieve"


def served(retriever, limits=None, **options):
    """Our server in a thread; gives its base address."""
    return running(make_app(retriever, limits or Limits(), **options))


@contextlib.contextmanager
def running(app):
    """An application in a thread; gives its base address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until and thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def malformed(rng):
    """A body that is a request, more or less."""
    values = [
        None, True, -1, 0, 3, 10**25, 1.5, float("nan"), float("inf"), "", "a", "é\u2028", "\ud83d",
        "x" * 5000, [], ["a"], ["a", None], {}, {"a": []}, [[["a"]]],
    ]  # fmt: skip
    keys = ["queries", "topk", "return_scores", "Queries", "", "\ud83d"]
    body = {key: rng.choice(values) for key in rng.sample(keys, rng.randrange(4))}
    if rng.random() < 0.5:
        body["queries"] = [rng.choice(values) for _ in range(rng.randrange(5))]
    data = json.dumps(rng.choice([body, body, [body], rng.choice(values)])).encode()
    how = rng.random()
    if how < 0.2:
        data = data[: rng.randrange(len(data) + 1)]
    elif how < 0.4 and data:
        where = rng.randrange(len(data))
        data = data[:where] + bytes([rng.randrange(256)]) + data[where + 1 :]
    elif how < 0.45:
        data = b"[" * rng.randrange(100_000)
    return data


def bombard(address, *, seconds, clients):
    """Sends what is hardly ever a request, from many clients at once; counts of statuses."""
    pool = urllib3.PoolManager(maxsize=clients, retries=False)

    def one(seed):
        rng, found = random.Random(seed), {}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            method = rng.choice(["POST"] * 9 + ["GET", "PUT", "PATCH"])
            path = rng.choice(["/retrieve"] * 9 + ["/health", "/metrics", "/%00", "/..%2f"])
            headers = {"Content-Type": rng.choice(["application/json", "text/x", "\x7f;;"])}
            response = pool.request(method, address + path, body=malformed(rng), headers=headers)
            if path == "/retrieve":
                assert json.loads(response.data)
            found[response.status] = found.get(response.status, 0) + 1
        return found

    total = {}
    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        for found in threads.map(one, range(clients)):
            for status, count in found.items():
                total[status] = total.get(status, 0) + count
    pool.clear()
    return total
