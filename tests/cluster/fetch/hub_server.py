"""A small server that speaks the part of the hub's API that the hub's own library asks for."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40
# Beyond this a file is stored apart, under its SHA-256, as the hub does with weights.
LARGE_BYTES = 1 << 20


@dataclass
class Repository:
    """What the server has and how it misbehaves.

    token: who asks must show it; gated: the right token is not enough. cut: the next so many answers with a large
    file's content break off in the middle. damage: a byte of each is wrong. begun: the content of one was asked for;
    hold: it is sent once this is set. sent: bytes of content by file; starts: where answers with large ones began.
    """

    name: str
    files: dict[str, bytes]
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None
    gated: bool = False
    cut: int = 0
    damage: bool = False
    begun: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event | None = None
    sent: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    starts: list[int] = field(default_factory=list)

    @property
    def sent_bytes(self) -> int:
        return sum(self.sent.values())


def of_folder(name: str, folder: Path, **more: object) -> Repository:
    """A repository with a folder's files, and some files that workers do not load."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return Repository(name, files | {"pytorch_model.bin": bytes(4096), "banner.png": bytes(4096)}, **more)  # type: ignore[arg-type]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repository: Repository

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        repository = self.repository
        path = self.path.partition("?")[0]
        repository.asked[self.command] += 1
        if (refused := self._refused()) is not None:
            return self._json(*refused)
        if found := re.fullmatch(rf"/api/models/{repository.name}(/revision/(?P<revision>.+))?", path):
            commit = self._commit(found["revision"] or "main")
            return self._no_revision() if commit is None else self._json(200, {"id": repository.name, "sha": commit})
        if found := re.fullmatch(rf"/api/models/{repository.name}/tree/(?P<revision>[^/]+)/?", path):
            return self._no_revision() if self._commit(found["revision"]) is None else self._json(200, self._tree())
        if found := re.fullmatch(rf"/{repository.name}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path):
            commit = self._commit(found["revision"])
            return self._no_revision() if commit is None else self._file(commit, found["file"], body)
        return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def _refused(self) -> tuple[int, object, dict[str, str]] | None:
        repository = self.repository
        if repository.token is not None and self.headers.get("authorization") != f"Bearer {repository.token}":
            return 401, {"error": "Invalid username or password."}, {"X-Error-Code": "RepoNotFound"}
        if repository.gated:
            return 403, {"error": "Access to model is restricted"}, {"X-Error-Code": "GatedRepo"}
        return None

    def _commit(self, revision: str) -> str | None:
        commits = self.repository.commits
        return revision if revision in commits.values() else commits.get(revision)

    def _no_revision(self) -> None:
        self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})

    def _tree(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for name, content in self.repository.files.items():
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _git(content)}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _file(self, commit: str, name: str, body: bool) -> None:
        repository = self.repository
        content = repository.files.get(name)
        if content is None:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        large = len(content) >= LARGE_BYTES
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        tag = f'"{_sha256(content) if large else _git(content)}"'
        headers = {"ETag": tag, "X-Repo-Commit": commit, "Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self._send(name, content, start, large)

    def _send(self, name: str, content: bytes, start: int, large: bool) -> None:
        repository = self.repository
        stop = len(content)
        if large:
            repository.starts.append(start)
            repository.begun.set()
            if repository.hold is not None:
                repository.hold.wait(60)
            if repository.damage:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if repository.cut:
                repository.cut -= 1
                stop = start + (stop - start) // 2
        repository.sent[name] += stop - start
        try:
            self.wfile.write(content[start:stop])
        except OSError:
            self.close_connection = True
        if stop < len(content):
            self.close_connection = True

    def _json(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server(repository: Repository) -> Iterator[str]:
    """Run the server; yields its address."""
    handler = type("Handler", (_Handler,), {"repository": repository})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
