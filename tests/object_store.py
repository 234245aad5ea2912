"""An object store on loopback: moto's S3, a request at a time, so that of two who create an object only one does."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
print(server.port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a library is.

    Attributes:
        uri: Its address.
        options: What LanceDB and deltalake need to reach it.
    """

    uri: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        """The same for the service."""
        return [f"--storage-option={name}={value}" for name, value in self.options.items()]

    @property
    def variables(self) -> dict[str, str]:
        """The same as a process finds it in its environment."""
        return {f"AWS_{name.upper().removeprefix('AWS_')}": value for name, value in self.options.items()}


@contextmanager
def serving() -> Iterator[str]:
    """Starts a store; gives its address."""
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def bucket(address: str) -> Place:
    """Makes a new bucket."""
    name = f"bucket-{time.time_ns()}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=60).close()
    options = {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "aws_region": "us-east-1",
        "aws_endpoint": address,
        "allow_http": "true",
        "aws_conditional_put": "etag",
    }
    return Place(f"s3://{name}", options)
