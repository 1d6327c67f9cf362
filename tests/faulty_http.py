"""An HTTP server for tests that fails on purpose where it is told to."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers POST with what `server_of` makes of the body, or as a fault says."""

    protocol_version = "HTTP/1.1"
    server_of = None  # the `FaultyHTTPServer`

    def setup(self):
        with self.server_of.lock:
            self.server_of.connections += 1
        super().setup()

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            fault = server.fault_for(len(server.bodies), body)
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
        with server.answering(), contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.answer(fault, server.text_for(body))

    def answer(self, fault, text):
        """Sends the answer, or what a fault makes of it: hung, cut, broken, drip, or a status."""
        if fault == "hung":
            self.server_of.released.wait(self.server_of.hung_seconds)
            self.close_connection = True
        elif fault == "cut":
            self.reply(200, text[: len(text) // 2])
        elif fault == "broken":
            self.reply(200, text[:-5], length=len(text))
            self.close_connection = True
        elif fault == "drip":
            self.reply(200, "", length=len(text))
            for character in text:
                self.wfile.write(character.encode())
                if self.server_of.released.wait(0.02):
                    break
            self.close_connection = True
        elif fault:
            self.reply(int(fault), '{"error": "as asked"}')
        else:
            self.reply(200, text)

    def reply(self, status, text, length=None, **headers):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)


class FaultyHTTPServer:
    """Serves while its context is open; `handler` says how it answers.

    Args:
        handler: the class of its handlers.
        hung_seconds: most that a hung request is held.

    Attributes:
        bodies, headers, paths: of the requests, in order.
        connections: that were opened.
    """

    def __init__(self, handler=Handler, *, hung_seconds=5.0):
        self.hung_seconds = hung_seconds
        self.bodies, self.headers, self.paths = [], [], []
        self.connections = 0
        self.lock, self.released = threading.Lock(), threading.Event()
        mine = type("Mine", (handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), mine)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def fault_for(self, number, body):
        """The fault of a request, by its number and body; the lock is held."""
        raise NotImplementedError

    def text_for(self, body):
        """What is answered to a body."""
        raise NotImplementedError

    def answering(self):
        """A context around each answer."""
        return contextlib.nullcontext()

    def __enter__(self):
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
