"""Object stores on loopback: moto's S3, Google's protocol by the same, and Azure's by Azurite, which comes from npm.

moto answers a request at a time, so that of two who create an object only one does. Google's XML API is S3's but for
the names of some headers (https://cloud.google.com/storage/docs/migrating), which are translated here: no emulator of
it that can be installed knows that API and its preconditions.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)

def google(environ, start_response):
    if "HTTP_X_GOOG_COPY_SOURCE" in environ:
        environ["HTTP_X_AMZ_COPY_SOURCE"] = environ.pop("HTTP_X_GOOG_COPY_SOURCE")
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"
    # By this moto knows whose service is meant.
    scope = "Credential=key/20200101/us-east-1/s3/aws4_request"
    environ["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"
    def started(status, headers, info=None):
        return start_response(status, [*headers, ("x-goog-generation", "1")], info)
    return moto(environ, started)

server = make_server("127.0.0.1", 0, google if sys.argv[1] == "google" else moto)
print(server.port, flush=True)
server.serve_forever()
"""
# The one account that Azurite has. It is in Azure's documentation, and no secret.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


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
        """The same as a process finds it in its environment, of S3."""
        return {f"AWS_{name.upper().removeprefix('AWS_')}": value for name, value in self.options.items()}


@contextmanager
def _moto(protocol: str) -> Iterator[str]:
    """Starts moto; gives its address."""
    command = [sys.executable, "-c", _SERVER, protocol]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def s3() -> Iterator[Callable[[], Place]]:
    """Starts an S3; gives what makes a new bucket in it."""
    with _moto("s3") as address:
        yield lambda: _s3(address)


@contextmanager
def google(folder: Path) -> Iterator[Callable[[], Place]]:
    """Starts a Google Cloud Storage; gives what makes a new bucket in it, with its key in a folder."""
    with _moto("google") as address:
        yield lambda: Place(f"gs://{_bucket(address)}", google_at(address, folder))


def google_at(address: str, folder: Path) -> dict[str, str]:
    """The options that lead to an address, by a key in a folder."""
    key = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (path := folder / f"{address.rpartition(':')[2]}.json").write_text(json.dumps(key))
    return {"google_service_account": str(path), "allow_http": "true"}


def _bucket(address: str) -> str:
    # Without a hyphen, which clients of Google write as %2D, and moto leaves so.
    name = f"bucket{time.time_ns()}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=60).close()
    return name


def _s3(address: str) -> Place:
    options = {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "aws_region": "us-east-1",
        "aws_endpoint": address,
        "allow_http": "true",
        "aws_conditional_put": "etag",
    }
    return Place(f"s3://{_bucket(address)}", options)


@contextmanager
def azure() -> Iterator[Callable[[], Place]]:
    """Starts an Azure; gives what makes a new container in it. The test is skipped where there is no Azurite."""
    command = [*_azurite(), "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry", "--silent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        try:
            said = ""
            while not (found := re.search(r"listens on (http://\S+)", said)):
                line = process.stdout.readline()
                assert line, f"Azurite did not start: {said}"
                said += line
            # The emulator has its address from here alone. With the option azure_storage_endpoint it would be taken for
            # Azure itself and asked for lists that start from a name, which Azurite starts from the first.
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AZURITE_BLOB_STORAGE_URL", found[1])
                yield lambda: _container(found[1])
        finally:
            process.kill()


def _azurite() -> list[str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adventures"
    script = cache / "azurite/node_modules/azurite/dist/src/blob/main.js"
    node = shutil.which("node")
    if not node or not script.is_file():
        pytest.skip("there is no Azurite; `make test` installs it where npm is")
    return [node, str(script)]


def _container(address: str) -> Place:
    name = f"container-{time.time_ns()}"
    said = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    # After the method come eleven headers that are not sent; the account is named once more than in the path.
    lines = ["PUT", *[""] * 11, *map(":".join, said.items()), f"/{_ACCOUNT}/{_ACCOUNT}/{name}", "restype:container"]
    signed = hmac.digest(base64.b64decode(_KEY), "\n".join(lines).encode(), hashlib.sha256)
    said["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(signed).decode()}"
    url = f"{address}/{_ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, headers=said, method="PUT"), timeout=60).close()
    options = {
        "azure_storage_account_name": _ACCOUNT,
        "azure_storage_account_key": _KEY,
        "azure_storage_use_emulator": "true",
    }
    return Place(f"az://{name}", options)
