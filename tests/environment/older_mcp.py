"""A server of an older version of the protocol over HTTP, without the package: it has sessions,
which it forgets when it is told to.

Written from https://modelcontextprotocol.io/specification/2025-06-18.
"""

import json

from faulty_http import FaultyHTTPServer, Handler

TOOL = {
    "name": "lookup",
    "inputSchema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}


class OlderHandler(Handler):
    def do_GET(self):
        self.reply(405, "")

    def do_DELETE(self):
        self.reply(200, "")

    def do_POST(self):
        server = self.server_of
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(message)
            server.headers.append(dict(self.headers))
        method, session = message["method"], self.headers.get("Mcp-Session-Id")
        if method == "initialize":
            with server.lock:
                server.sessions.append(f"session-{len(server.sessions)}")
            started = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "older", "version": "1"},
            }
            self.answer_to(message, result=started, Mcp_Session_Id=server.sessions[-1])
        elif session is None:
            self.answer_to(message, 400, error={"code": -32600, "message": "Missing session ID"})
        elif session != server.sessions[-1]:
            self.answer_to(message, 404, error={"code": -32600, "message": "Session not found"})
        elif "id" not in message:
            self.reply(202, "")
        elif server.status:
            self.reply(server.status, "no JSON")
        elif method == "tools/list":
            self.answer_to(message, result={"tools": [TOOL]})
        elif method == "tools/call":
            text = f"on {message['params']['arguments']['q']}"
            if text == "on nonsense":
                error = {"code": -32602, "message": "nonsense is refused"}
                self.answer_to(message, error=error)
            else:
                self.answer_to(message, result={"content": [{"type": "text", "text": text}]})
        else:
            self.answer_to(message, error={"code": -32601, "message": "Method not found"})

    def answer_to(self, message, status=200, *, result=None, error=None, **headers):
        said = {"error": error} if error else {"result": result}
        text = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), **said})
        self.reply(status, text, **headers)


class OlderServer(FaultyHTTPServer):
    """Attributes:
    sessions: that were begun; only the last is known.
    status: of every answer in a session; 0: it answers as it should.
    """

    def __init__(self):
        super().__init__(OlderHandler)
        self.sessions, self.status = [], 0
        self.url = f"{self.address}/mcp"

    def forget(self):
        """What a server does that is started anew."""
        self.sessions.append("nobody's")
