"""A stand-in for a web search of Brave's form, that fails on purpose where it is told to."""

import json
from urllib.parse import parse_qs, urlsplit

from faulty_http import FaultyHTTPServer, Handler

KEY = "a-key-of-tests"
# Of one request a second and a thousand a month.
SECOND_OVER = {"X-RateLimit-Limit": "1, 1000", "X-RateLimit-Remaining": "0, 500"}
MONTH_OVER = {"X-RateLimit-Limit": "1, 1000", "X-RateLimit-Remaining": "1, 0"}


class WebHandler(Handler):
    """Answers GET; a fault may also be (status, headers)."""

    def do_GET(self):
        server, parts = self.server_of, urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        with server.lock:
            fault = server.fault_of(len(server.bodies), query)
            server.bodies.append(query)
            server.headers.append(dict(self.headers))
            server.paths.append(parts.path)
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            if self.headers.get("X-Subscription-Token") != KEY:
                self.reply(422, json.dumps({"error": {"code": "SUBSCRIPTION_TOKEN_INVALID"}}))
            elif isinstance(fault, tuple):
                status, headers = fault
                text = json.dumps({"echo": KEY})
                self.reply(status, text, **headers)
            else:
                self.answer(fault, server.text_for(query))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.under_way -= 1


class WebSearch(FaultyHTTPServer):
    """Answers with what a retriever finds, except where `fault_of` names a fault.

    Args:
        retriever: finds what is answered.
        fault_of: function of (number of the request, its parameters) -> a fault of `Handler`, a
            status with headers, or None.

    Attributes:
        bodies: the parameters of the requests.
        most_under_way: requests at the same time.
    """

    def __init__(self, retriever, fault_of=lambda number, query: None):
        super().__init__(WebHandler)
        self.retriever, self.fault_of = retriever, fault_of
        self.under_way = self.most_under_way = 0
        self.url = f"{self.address}/res/v1/web/search"

    def text_for(self, query):
        (found,) = self.retriever.search([query["q"]], int(query["count"]))
        results = [
            {"title": p.title, "url": f"https://web.test/{p.id}", "description": p.text}
            for p in found
        ]
        answer = {"type": "search", "query": {"original": query["q"]}}
        # As the original: without results there is no "web".
        return json.dumps(answer | ({"web": {"results": results}} if results else {}))
