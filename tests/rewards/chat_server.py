"""A stand-in for an OpenAI-compatible endpoint, which fails on purpose where it is told to."""

import contextlib
import json
import time

from faulty_http import FaultyHTTPServer, Handler


class ChatHandler(Handler):
    """Beside the usual faults a body ("body …"), or a status with seconds to wait ("429 0.2")."""

    def answer(self, fault, text):
        time.sleep(self.server_of.seconds)
        if fault in (None, "hung", "drip", "cut", "broken"):
            super().answer(fault, text)
        elif fault.startswith("body "):
            self.reply(200, fault.removeprefix("body "))
        else:
            status, _, wait = fault.partition(" ")
            told = json.dumps({"error": self.headers.get("Authorization", "as asked")})
            headers = {"Location": "/elsewhere"} if status == "301" else {}
            headers |= {"Retry_After": wait} if wait else {}
            self.reply(int(status), told, **headers)


class ChatServer(FaultyHTTPServer):
    """Judges as `verdict_of` says, except where `fault_of` names a fault.

    Args:
        verdict_of: function of (question, golden answers, prediction) -> text of the reply.
        fault_of: function of the number of the request -> hung, drip, cut, broken, a status, a
            status with seconds to wait ("429 0.2"), a body ("body …"), or None.
        seconds: that each reply takes.

    Attributes:
        bodies, headers, paths: of the requests, in order.
        asked: the predictions, in order.
        most: requests that were under way at a time.
    """

    def __init__(self, verdict_of=None, fault_of=lambda number: None, *, seconds=0.0):
        super().__init__(ChatHandler)
        self.verdict_of = verdict_of or (lambda q, golden, p: "yes" if p in golden else "no")
        self.fault_of, self.seconds = fault_of, seconds
        self.asked = []
        self.under_way = self.most = 0
        self.url = f"{self.address}/v1"

    def fault_for(self, number, body):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return self.fault_of(number)

    @contextlib.contextmanager
    def answering(self):
        yield
        with self.lock:
            self.under_way -= 1

    def text_for(self, body):
        asked = json.loads(body["messages"][-1]["content"])
        with self.lock:
            self.asked.append(asked["prediction"])
        said = self.verdict_of(asked["question"], asked["golden_answers"], asked["prediction"])
        return json.dumps(
            {
                "choices": [{"message": {"role": "assistant", "content": said}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 2},
            }
        )
