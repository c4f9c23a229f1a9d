"""A server with the part of Grafana's HTTP API that pushing boards needs; it records all requests."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_secret"
SOURCES = [
    {"id": 1, "uid": "P1", "name": "Prometheus", "type": "prometheus", "isDefault": True},
    {"id": 2, "uid": "P2", "name": "Thanos", "type": "prometheus", "isDefault": False},
    {"id": 3, "uid": "L1", "name": "Loki", "type": "loki", "isDefault": False},
]


class Grafana:
    """The server's state. asked: (method, path) of each request, in order."""

    def __init__(self) -> None:
        self.url = ""
        self.folders: list[dict[str, Any]] = [{"id": 1, "uid": "other", "title": "Other"}]
        self.boards: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [asked for asked in self.asked if asked[0] != "GET"]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((method, path))
        match method, path.partition("?")[0].strip("/").split("/")[1:]:
            case "GET", ["datasources"]:
                return 200, SOURCES
            case "GET", ["folders"]:
                return 200, self.folders
            case "POST", ["folders"]:
                self.folders.append({"id": len(self.folders) + 1, "uid": "made", "title": body["title"]})
                return 200, self.folders[-1]
            case "GET", ["dashboards", "uid", uid]:
                return (200, self.boards[uid]) if uid in self.boards else (404, {"message": "Dashboard not found"})
            case "POST", ["dashboards", "db"]:
                return self._keep(body)
        return 404, {"message": f"no {method} {path}"}

    def _keep(self, body: dict[str, Any]) -> tuple[int, Any]:
        board = body["dashboard"]
        before = self.boards.get(board["uid"])
        if before is not None and not body.get("overwrite"):
            return 412, {"message": "A dashboard with the same uid already exists", "status": "name-exists"}
        version = before["dashboard"]["version"] + 1 if before else 1
        kept = board | {"id": len(self.boards) + 1, "version": version}
        self.boards[board["uid"]] = {"dashboard": kept, "meta": {"folderUid": body["folderUid"], "version": version}}
        return 200, {"uid": board["uid"], "version": version, "status": "success"}


@contextmanager
def grafana() -> Iterator[Grafana]:
    """Run the server on loopback."""
    state = Grafana()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                status, content = 401, {"message": "Invalid API key"}
            else:
                status, content = state.answer(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
