"""The real service in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

NAME = "adventures-server"
KEY = "a-key-of-the-tests-0123456789"


def program() -> str:
    """The binary that `make test` builds; the test is skipped where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adventures" / "target"
    places = [
        os.environ.get("ADVENTURES_SERVER"),
        Path(sys.executable).with_name(NAME),
        Path(os.environ.get("CARGO_TARGET_DIR") or cache) / "release" / NAME,
        shutil.which(NAME),
    ]
    for place in places:
        if place and Path(place).is_file():
            return str(place)
    pytest.skip(f"{NAME} is not built; `make test` builds it")


@dataclass(frozen=True)
class Reply:
    """A response, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running service; `with Server(…) as server:` waits until it is ready."""

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        command: Sequence[str] = (),
    ) -> None:
        self.started = time.perf_counter()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ADVENTURES_")}
        if cache := os.environ.get("ADVENTURES_CACHE"):
            clean["ADVENTURES_CACHE"] = cache
        self.process = subprocess.Popen(
            [*(command or [program()]), "--port", "0", "--log-format", "json", *map(str, arguments)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**clean, **(env or {})},
        )
        self.log: list[str] = []
        self._url: str | None = None
        self._known = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._known.wait(20) or self._url is None:
            self.process.kill()
            raise AssertionError(f"the service did not start: {''.join(self.log)}")
        self.url = self._url
        self.key: str | None = (env or {}).get("ADVENTURES_API_KEY")
        if ready:
            self.wait_ready()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if self._url is None and '"url"' in line:
                self._url = json.loads(line)["url"].rstrip("/")
                self._known.set()
        self._known.set()

    def wait_ready(self, seconds: float = 60) -> None:
        """Waits until models and library are loaded."""
        end = time.monotonic() + seconds
        while self.get("/ready").status != 200:
            assert self.process.poll() is None, "".join(self.log)
            assert time.monotonic() < end, "".join(self.log)
            time.sleep(0.02)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Sends a request; a dict or list as JSON, bytes as they are."""
        given = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            given["Content-Type"] = "application/json"
        given |= headers or {}
        request = urllib.request.Request(self.url + path, data=data, headers=given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return Reply(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, headers=headers)

    def post(self, path: str, body: object) -> Reply:
        return self.call("POST", path, body)

    def events(self, path: str, body: object) -> Iterator[dict[str, Any] | str]:
        """The data of each event of a streamed response, decoded where it is JSON."""
        with self.stream(path, body) as (response, _):
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data: "):
                    data = line[6:].rstrip(b"\n").decode()
                    yield json.loads(data) if data.startswith("{") else data

    def stream(self, path: str, body: object) -> _Stream:
        return _Stream(self, path, body)

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f"adventures_{name} "):
                return float(line.split()[-1])
        raise KeyError(name)

    def memory(self) -> int:
        """Resident bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024

    def connections(self) -> int:
        """How many clients have a connection that the service has not given up."""
        established, port = "01", f"{self.address[1]:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        fields = (line.split() for line in lines)
        return sum(local.endswith(f":{port}") and state == established for _, local, _, state, *_ in fields)

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 40) -> int:
        """Ends the process and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(signal.SIGKILL)
        assert self.process.stderr is not None
        self.process.stderr.close()


class _Stream:
    def __init__(self, server: Server, path: str, body: object) -> None:
        self.connection = HTTPConnection(*server.address, timeout=120)
        headers = {"Content-Type": "application/json"}
        if server.key:
            headers["Authorization"] = f"Bearer {server.key}"
        self.connection.request("POST", path, json.dumps(body), headers)

    def __enter__(self) -> tuple[Any, HTTPConnection]:
        # The response takes the socket over; who wants to cut it off has the connection.
        self.socket = self.connection.sock
        return self.connection.getresponse(), self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def text_of(events: Iterator[dict[str, Any] | str]) -> str:
    """The text of a streamed chat completion."""
    choices = (event["choices"][0] for event in events if isinstance(event, dict) and event.get("choices"))
    return "".join(choice["delta"].get("content") or "" for choice in choices)
