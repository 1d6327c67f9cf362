"""A stand-in for an OpenAI-compatible endpoint, which fails on purpose where it is told to."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
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
        self.verdict_of = verdict_of or (lambda q, golden, p: "yes" if p in golden else "no")
        self.fault_of, self.seconds = fault_of, seconds
        self.bodies, self.headers, self.paths, self.asked = [], [], [], []
        self.under_way = self.most = 0
        self.lock, self.released = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    fault = outer.fault_of(len(outer.bodies))
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.under_way += 1
                    outer.most = max(outer.most, outer.under_way)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.answer(fault, outer.text_for(body))
                with outer.lock:
                    outer.under_way -= 1

            def answer(self, fault, text):
                time.sleep(outer.seconds)
                if fault == "hung":
                    outer.released.wait(5)
                    self.close_connection = True
                elif fault == "drip":
                    self.reply(200, "", length=len(text))
                    for character in text:
                        self.wfile.write(character.encode())
                        if outer.released.wait(0.02):
                            break
                    self.close_connection = True
                elif fault == "cut":
                    self.reply(200, text[: len(text) // 2])
                elif fault == "broken":
                    self.reply(200, text[:-5], length=len(text))
                    self.close_connection = True
                elif fault and fault.startswith("body "):
                    self.reply(200, fault.removeprefix("body "))
                elif fault:
                    status, _, wait = fault.partition(" ")
                    told = json.dumps({"error": self.headers.get("Authorization", "as asked")})
                    self.reply(int(status), told, wait=wait)
                else:
                    self.reply(200, text)

            def reply(self, status, text, length=None, wait=""):
                data = text.encode()
                self.send_response(status)
                if status == 301:
                    self.send_header("Location", "/elsewhere")
                if wait:
                    self.send_header("Retry-After", wait)
                self.send_header("Content-Length", str(len(data) if length is None else length))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

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

    def __enter__(self):
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
