"""A stand-in for the Hugging Face hub on loopback: the routes by which a model is looked up and downloaded."""

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typing_extensions import override

_REVISION = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)(?:\?.*)?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """A model: a folder of files for each commit."""

    commits: dict[str, Path]
    branches: dict[str, str]
    token: str | None = None
    """What must be presented if the model is gated."""

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or a commit names."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range) of all requests."""
    stalls: dict[str, int] = field(default_factory=dict)
    """By the name of a file, the bytes after which its download stands still."""
    breaks: dict[str, int] = field(default_factory=dict)
    """By the name of a file, the bytes after which the connection breaks, once."""
    stalled: threading.Event = field(default_factory=threading.Event)

    def downloads(self, name: str) -> list[str | None]:
        """The ranges of the requests for a file's content."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers["Range"]))
        found = _FILE.fullmatch(self.path) or _TREE.fullmatch(self.path) or _REVISION.fullmatch(self.path)
        if found is None:
            return self._refuse(404, "EntryNotFound")
        repository = self.hub.repositories.get(found[1])
        if repository is None:
            return self._refuse(401, "RepoNotFound")  # as the hub does, which does not tell whether it is private
        if repository.token and self.headers["Authorization"] != f"Bearer {repository.token}":
            return self._refuse(401, "GatedRepo")
        commit = repository.commit_of(found[2] or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        folder = repository.commits[commit]
        if found.re is _REVISION:
            return self._send_json({"id": found[1], "sha": commit, "siblings": [], "private": False, "tags": []})
        if found.re is _TREE:
            return self._send_json([_entry(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()])
        return self._send_file(folder / found[3], commit)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "refused")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, path: Path, commit: str) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        begin = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, len(content)) if span and span[2] else len(content)
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        stall = self.hub.stalls.get(path.name)
        if stall is not None and span is None:
            self.wfile.write(content[:stall])
            self.wfile.flush()
            self.hub.stalled.set()
            with contextlib.suppress(ConnectionError):
                self.connection.recv(1)  # until the caller leaves
            self.close_connection = True
            return
        broken = None if span else self.hub.breaks.pop(path.name, None)
        self.wfile.write(content[begin:end] if broken is None else content[:broken])
        self.close_connection = broken is not None


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    content = path.read_bytes()
    oid = hashlib.sha256(content).hexdigest()
    entry: dict[str, Any] = {
        "type": "file",
        "path": path.relative_to(folder).as_posix(),
        "size": len(content),
        "oid": oid[:40],
    }
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # a download connects many times at once, and 5 is the default

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of callers that leave in the middle, as some of these tests do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serves models until the block ends."""
    hub = Hub(repositories)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
