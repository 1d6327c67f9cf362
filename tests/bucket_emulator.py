"""A storage service on this machine for tests, which can be made to fail.

The emulator keeps the objects in memory. In front of it stands a proxy: it does what the emulator
leaves out (preconditions on generations, and that of what is read), and fails where it is told to
or, from a seed, at random.
"""

import contextlib
import http.client
import json
import logging
import os
import random
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gcp_storage_emulator.server import create_server

BUCKET = "test-bucket"
# What a program needs to find the service; its processes inherit it.
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
FAULTS = ("refused", "unanswered", "lost_answer", "cut_upload", "cut_answer")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class BucketServer:
    """An emulator and its proxy, running until `close`.

    Attributes:
        url: of the proxy.
        fail: function of (method, path) that names one of `FAULTS`, or None; called in the order
            of requests.
        away: while True no request is answered.
        requests: (method, path with query) of all requests so far.
        hang_seconds: how long a request stays that is never answered.
    """

    def __init__(self, hang_seconds: float = 0.2):
        logging.getLogger("gcp_storage_emulator").disabled = True  # it logs what is not there
        for name in ("api.object", "gcp_storage_emulator.storage", "gcp_storage_emulator.server"):
            logging.getLogger(name).disabled = True
        self._emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        self._emulator.start()
        self._behind = self._emulator._api._httpd.server_address
        self.fail, self.away, self.hang_seconds = (lambda method, path: None), False, hang_seconds
        self.requests: list[tuple[str, str]] = []
        self.faults: list[tuple[str, str, str]] = []
        self.denied: set[str] = set()  # buckets that may be read and not written
        self.hidden: set[str] = set()  # those of which only objects may be asked for
        self.writing = threading.Lock()
        self._sessions: dict[str, str] = {}  # upload id -> generation that it asks for
        self.ended: dict[str, tuple] = {}  # upload id -> answer to its last part
        handler = type("BoundHandler", (_Handler,), {"bucket_server": self})
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"

    def close(self):
        self._proxy.shutdown()
        self._proxy.server_close()
        self._emulator.stop()

    @contextlib.contextmanager
    def environment(self):
        """Points the storage clients of this process, and of its children, to the service."""
        before = {name: os.environ.get(name) for name in VARIABLES}
        os.environ |= dict.fromkeys(VARIABLES, self.url)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def fail_at_random(self, seed: int, share: float, faults=FAULTS):
        """Lets a share of the requests fail, drawn from a seed."""
        draw, lock = random.Random(seed), threading.Lock()

        def fail(method, path):
            with lock:
                return draw.choice(faults) if draw.random() < share else None

        self.fail = fail

    def ask_behind(self, method, path, body=None, headers=None):
        """(status, headers, content) of the emulator itself."""
        connection = http.client.HTTPConnection(*self._behind, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def generation(self, bucket, name):
        """Of an object, as text; "0" where there is none."""
        path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        status, _, content = self.ask_behind("GET", path)
        return json.loads(content)["generation"] if status == 200 else "0"

    def wanted_generation(self, method, parts, query, body):
        """(bucket, object, generation it has to have) of a request; None where any will do."""
        wanted = query.get("ifGenerationMatch", [None])[0]
        upload = query.get("upload_id", [None])[0]
        if upload in self._sessions:
            return self._sessions[upload]
        if wanted is None:
            return None
        names = parts.path.split("/b/", 1)[1].split("/o")
        bucket, name = names[0], urllib.parse.unquote(names[1].removeprefix("/"))
        if not name:
            name = query["name"][0] if "name" in query else _name_in(body)
        return bucket, name, wanted

    def remember_session(self, headers, condition):
        """A resumable upload asks for its generation when it begins, and means its end."""
        location = dict(headers).get("Location", "")
        upload = urllib.parse.parse_qs(urllib.parse.urlsplit(location).query).get("upload_id")
        if upload:
            self._sessions[upload[0]] = condition


def _name_in(body: bytes) -> str:
    """The name in the JSON that an upload of several parts, or a resumable one, begins with."""
    text = body[body.index(b"{") :].decode("utf-8", errors="replace")
    return json.JSONDecoder().raw_decode(text)[0]["name"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket_server: BucketServer

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def _serve(self):
        server = self.bucket_server
        server.requests.append((self.command, self.path))
        fault = "refused" if server.away else server.fail(self.command, self.path)
        if fault:
            server.faults.append((fault, self.command, self.path))
        body = self._body(fault)
        if fault == "refused":
            self._answer(503, [], b'{"error": {"code": 503, "message": "as asked"}}')
        elif fault in ("unanswered", "cut_upload"):
            if fault == "unanswered":
                threading.Event().wait(server.hang_seconds)
            self._hang_up()
        else:
            status, headers, content = self._ask(body)
            if fault == "lost_answer":
                self._hang_up()
            else:
                self._answer(status, headers, content, cut=fault == "cut_answer")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

    def _body(self, fault):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length // 2 if fault == "cut_upload" else length)

    def _ask(self, body):
        server, parts = self.bucket_server, urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        bucket = parts.path.split("/b/", 1)[-1].split("/")[0]
        if bucket in server.denied and self.command != "GET":
            return 403, [], b'{"error": {"code": 403, "message": "no storage.objects.create"}}'
        if self.command == "GET" and parts.path.endswith(tuple(f"/b/{b}" for b in server.hidden)):
            return 403, [], b'{"error": {"code": 403, "message": "no storage.buckets.get"}}'
        with server.writing if self.command != "GET" else contextlib.nullcontext():
            condition = server.wanted_generation(self.command, parts, query, body)
            changes = self.command != "GET" and condition
            if changes and server.generation(*condition[:2]) != condition[2]:
                return 412, [], b'{"error": {"code": 412, "message": "conditionNotMet"}}'
            path = self.path
            if query.get("uploadType") == ["media"] and not body:
                # The emulator fails where an object has no content, but not in this form.
                path = path.replace("uploadType=media", "uploadType=multipart")
                headers["Content-Type"] = 'multipart/related; boundary="x"'
                body = b"--x\nContent-Type: application/json\n\n{}\n"
                body += b"--x\nContent-Type: application/octet-stream\n\n\n--x--"
            answer = server.ask_behind(self.command, path, body, headers)
            upload = query.get("upload_id", [""])[0]
            if upload and answer[0] == 200:
                server.ended[upload] = answer
            elif upload in server.ended and answer[0] == 404:
                answer = server.ended[upload]  # the emulator forgets it, the service does not
            if self.command == "GET" and query.get("alt") == ["media"] and answer[0] == 200:
                # The emulator does not tell of what generation content is; TensorStore has to know.
                name = urllib.parse.unquote(parts.path.split("/o/", 1)[1])
                told = ("x-goog-generation", server.generation(bucket, name))
                answer = answer[0], [*answer[1], told], answer[2]
            if condition and query.get("uploadType") == ["resumable"]:
                server.remember_session(answer[1], condition)
        return answer

    def _answer(self, status, headers, content, *, cut=False):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in {*_HOP_BY_HOP, "server", "date"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self):
        self.close_connection = True
