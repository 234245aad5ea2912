"""A model hub on this machine: the few routes that a download needs, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What the hub has under one id: files by name, and the token that it asks for, if any."""

    files: dict[str, bytes]
    token: str | None = None
    commit: str = COMMIT


@dataclass
class Hub:
    """A server on the loopback interface; `with` starts and stops it.

    Attributes:
        repositories: By id, `owner/name`.
        cut: How many bytes of a file to send, once, before the connection is dropped; `None` for all.
        broken: A file whose connection is dropped halfway, each time.
        requests: What was asked for, as `METHOD path` and the `Range` header where there is one.
    """

    repositories: dict[str, Repository]
    cut: int | None = None
    broken: str | None = None
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            served = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        span = self.headers.get("Range")
        self.served.requests.append(f"{self.command} {path}" + (f" {span}" if span else ""))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._api(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3], span)
        else:
            self._answer(404)

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        repository = self.served.repositories.get(name)
        if repository is None:
            self._answer(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", repository.commit):
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def _api(self, name: str, what: str | None, revision: str | None) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if what == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in repository.files.items()
            ]
            self._answer(200, {}, json.dumps(entries).encode())
            return
        siblings = [{"rfilename": file} for file in repository.files]
        body = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "private": False}
        self._answer(200, {}, json.dumps(body).encode())

    def _file(self, name: str, revision: str, file: str, span: str | None) -> None:
        repository = self._repository(name, revision)
        if repository is None:
            return
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._answer(403, {"X-Error-Code": "GatedRepo"})
            return
        data = repository.files.get(file)
        if data is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository.commit}
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if start else 200, headers, data[start:])

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = len(body)
        if status in (200, 206) and "/resolve/" in self.path:
            if self.path.split("/")[-1] == self.served.broken:
                sent = len(body) // 2
            elif self.served.cut is not None and len(body) > self.served.cut:
                sent, self.served.cut = self.served.cut, None
        self.wfile.write(body[:sent])
        if sent < len(body):
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Stays silent."""
