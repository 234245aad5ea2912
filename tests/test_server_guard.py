"""Who gets in: keys, hosts, origins, names, and bodies that are not what they should be."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serving import KEY, Reply, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import adventures as adv

OTHER = "another-key-of-the-tests-98765"
OPEN = {("GET", "/"), ("GET", "/page/{name}"), ("GET", "/favicon.ico"), ("GET", "/health"), ("GET", "/ready")}
KEYED = {
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/search"),
    ("POST", "/v1/rerank"),
    ("POST", "/chat"),
    ("POST", "/embeddings"),
    ("POST", "/embed"),
    ("POST", "/create_index"),
    ("POST", "/query"),
    ("GET", "/indexes"),
    ("GET", "/indexes/{index_name}"),
    ("DELETE", "/indexes/{index_name}"),
    ("POST", "/indexes/{index_name}/documents"),
    ("POST", "/indexes/{index_name}/delete"),
    ("GET", "/jobs"),
    ("GET", "/jobs/{id}"),
}


@pytest.fixture(scope="module")
def server(stock: adv.Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"# who may come in\nteam {KEY}\nvisitor {OTHER} 3\n\n")
    arguments = ["--library", stock.path, "--api-key-file", keys, "--allow-host", "chat.example.org"]
    with Server(*arguments) as server:
        server.key = KEY
        yield server


def raw(server: Server, request: bytes) -> bytes:
    """What comes back for some bytes."""
    with socket.create_connection(server.address, timeout=10) as connection:
        # The service may have answered and closed before all of it was sent.
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def status(reply: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3})", reply)
    return int(found[1]) if found else 0


def anonymous(server: Server, method: str, path: str, headers: dict[str, str], body: bytes = b"{}") -> Reply:
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    try:
        connection.request(method, path, body if method == "POST" else None, headers)
        response = connection.getresponse()
        return Reply(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


class TestKeys:
    def test_every_route_is_in_the_table(self, server: Server) -> None:
        described = server.get("/openapi.json").json()["paths"]
        routes = {(method.upper(), path) for path, item in described.items() for method in item}
        assert routes == OPEN | KEYED
        source = (Path(__file__).parents[1] / "adventures-server/src/http/endpoint.rs").read_text()
        in_code = set(re.findall(r'^    \w+ (GET|POST|DELETE) "([^"]+)",$', source, re.MULTILINE))
        assert {(method, path.replace(":.+}", "}")) for method, path in in_code} == routes

    @pytest.mark.parametrize(("method", "path"), sorted(OPEN | KEYED))
    def test_who_gets_in(self, server: Server, method: str, path: str) -> None:
        place = path.format(name="app.js", model="smollm2-135m-instruct", index_name="shop", id="none")
        json = {"Content-Type": "application/json"}
        wrong = {
            "none": {},
            "wrong": {"Authorization": f"Bearer {KEY[:-1]}x"},
            "longer": {"Authorization": f"Bearer {KEY}x"},
            "empty": {"Authorization": "Bearer "},
            "basic": {"Authorization": f"Basic {KEY}"},
            "bare": {"Authorization": KEY},
            "alias": {"X-Api-Key": KEY},
            "another alias": {"Api-Key": KEY},
            "cookie": {"Cookie": f"key={KEY}"},
        }
        for name, headers in wrong.items():
            reply = anonymous(server, method, place, json | headers)
            if (method, path) in OPEN:
                assert reply.status == 200, name
            else:
                assert reply.status == 401, name
                assert reply.headers["www-authenticate"] == "Bearer"
        assert anonymous(server, method, f"{place}?key={KEY}", json).status in (
            {200} if (method, path) in OPEN else {401}
        )
        # The service has no indexes.
        answers = {404} if "index" in path or "job" in path else {200, 400}
        for scheme in ("Bearer", "bearer"):
            reply = anonymous(server, method, place, json | {"Authorization": f"{scheme} {KEY}"})
            assert reply.status in answers | {400}, reply.body

    @pytest.mark.parametrize(
        "path",
        [
            "/page%2f..%2fv1/models", "/page/..%2fv1%2fmodels", "/page/%2e%2e/v1/models",
            "/page/../v1/models", "//v1/models", "/v1//models", "/v1/models/", "/v1/models;x", "/V1/models",
            "/v1%2fmodels", "/v1/%6dodels", "/health/../v1/models", "/health%2f..%2finfo", "/./info",
            "/info%00", "/info%20", "/info.json", "/%69nfo", "/info/", "/ready/../metrics", "/metrics%2f",
            "/openapi.json%00.css", "/favicon.ico/../info", "/?/info", "/#/info", "/page/app.js/../../info",
            "/v1/search%23", "/chat%3f", "/\\info", "/..;/info", "/v1/models/..",
            "/v1/models/%2e%2e/%2e%2e/info",
        ],
    )  # fmt: skip
    def test_no_way_around_by_spelling(self, server: Server, path: str) -> None:
        reply = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        # "/?" and "/#" are the page itself; nothing of what needs a key.
        assert status(reply) in {200, 400, 401, 404}
        if status(reply) == 200:
            assert b"adventures is running" in reply
        assert b"smollm2" not in reply

    def test_refused_before_the_body_is_read(self, server: Server) -> None:
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: 4000000\r\n\r\n"
        with socket.create_connection(server.address, timeout=5) as connection:
            connection.sendall(head)
            assert status(connection.recv(4096)) == 401

    def test_each_key_has_its_own_limit(self, server: Server) -> None:
        headers = {"Authorization": f"Bearer {OTHER}"}
        replies = [anonymous(server, "GET", "/v1/models", headers) for _ in range(6)]
        assert [reply.status for reply in replies] == [200] * 3 + [429] * 3
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        assert server.get("/v1/models").status == 200

    def test_no_key_and_no_question_is_logged(self, server: Server) -> None:
        canary = "canary-Quetzalcoatl-4711"
        body = {"model": "default", "messages": [{"role": "user", "content": canary}], "max_tokens": 2}
        server.post("/v1/chat/completions", body)
        server.post("/v1/search", {"query": canary})
        server.post("/v1/embeddings", {"model": canary, "input": canary})
        server.post("/v1/search", {"query": canary, canary: 1})
        server.get(f"/v1/models/{canary}")
        server.get(f"/{canary}")
        anonymous(server, "GET", "/info", {"Authorization": f"Bearer {canary}{canary}"})
        time.sleep(0.2)
        log = "".join(server.log)
        assert '"route":"/v1/search"' in log
        for secret in (canary, KEY, OTHER):
            assert secret not in log


class TestHosts:
    @pytest.mark.parametrize(
        "host", ["localhost", "LocalHost:1", "127.0.0.1", "[::1]:80", "chat.example.org", "chat.example.org:443"]
    )
    def test_ours(self, server: Server, host: str) -> None:
        assert status(raw(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())) == 200

    @pytest.mark.parametrize("path", ["/", "/health", "/page/app.js", "/v1/models", "/no-such-thing"])
    @pytest.mark.parametrize(
        "host",
        [
            "evil.com",
            "localhost.evil.com",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "[::ffff:10.0.0.1]",
            "localhost:",
            "",
            "0.0.0.0",
        ],
    )
    def test_others(self, server: Server, host: str, path: str) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
        assert status(raw(server, request.encode())) in {400, 421}

    def test_one_host(self, server: Server) -> None:
        for hosts in ("", "Host: localhost\r\nHost: evil.com\r\n", "Host: localhost\r\nHost: localhost\r\n"):
            assert status(raw(server, f"GET /health HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())) == 400


class TestOrigins:
    @pytest.mark.parametrize(
        "origin", ["https://evil.com", "null", "http://localhost:1", "file://", "https://chat.example.org"]
    )
    def test_no_page_elsewhere_reads_answers(self, server: Server, origin: str) -> None:
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Authorization": f"Bearer {KEY}"}
            reply = anonymous(server, method, "/v1/models", headers)
            assert not [name for name in reply.headers if name.lower().startswith("access-control")]

    def test_an_origin_that_is_allowed(self) -> None:
        with Server("--cors-origin", "https://intranet.example", "--generator", "none") as server:
            ours = anonymous(server, "GET", "/health", {"Origin": "https://intranet.example"})
            assert ours.headers["access-control-allow-origin"] == "https://intranet.example"
            assert "access-control-allow-credentials" not in ours.headers
            other = anonymous(server, "GET", "/health", {"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
    def test_only_json_is_read(self, server: Server, kind: str | None) -> None:
        headers = {"Authorization": f"Bearer {KEY}"} | ({"Content-Type": kind} if kind else {})
        assert anonymous(server, "POST", "/v1/search", headers, b'{"query": "x"}').status == 415

    def test_headers_of_the_page(self, server: Server) -> None:
        headers = server.get("/", Accept="text/html").headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


class TestBodies:
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
    def test_nothing_is_unpacked(self, server: Server, encoding: str) -> None:
        bomb = gzip.compress(b"0" * (64 << 20))
        before = server.memory()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Content-Encoding": encoding}
        assert anonymous(server, "POST", "/v1/embeddings", headers, bomb).status == 415
        assert server.memory() - before < 16 << 20

    def test_a_body_that_is_too_long(self, server: Server) -> None:
        body = b'{"query": "' + b"x" * (5 << 20) + b'"}'
        head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {KEY}\r\n"
        known = f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
        assert status(raw_until_reply(server, known, body)) == 413
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in batched(body, 1 << 16)) + b"0\r\n\r\n"
        assert status(raw_until_reply(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), chunks)) == 413

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b'"x"', b"{}" * 2, b"\xff", b'{"query": 1e999}', b"[" * 100_000]
    )
    def test_a_body_that_is_none(self, server: Server, body: bytes) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        reply = anonymous(server, "POST", "/v1/search", headers, body)
        assert reply.status == 400
        assert len(reply.body) < 2_000

    @pytest.mark.parametrize(
        "lines",
        [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length: -1",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: xchunked",
            "Content-Length : 5",
        ],
    )
    def test_a_length_that_two_readers_could_read_differently(self, server: Server, lines: str) -> None:
        head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n{lines}\r\n\r\n"
        replies = raw(server, head.encode() + b"0\r\n\r\nGET /")
        assert status(replies) in {400, 0}
        assert replies.count(b"HTTP/1.1") <= 1

    def test_a_head_that_is_too_long(self, server: Server) -> None:
        before = server.memory()
        reply = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n")
        assert status(reply) in {0, 400, 431}
        assert server.memory() - before < 8 << 20
        assert server.get("/health").status == 200

    @pytest.mark.parametrize(
        "path",
        [
            "../../Cargo.toml",
            "..%2f..%2fetc%2fpasswd",
            "%2e%2e/app.js",
            "app.js%00",
            "",
            ".",
            "app.css/x",
            "index.html",
        ],
    )
    def test_no_other_files(self, server: Server, path: str) -> None:
        reply = raw(server, f"GET /page/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert status(reply) in {400, 401, 404}

    def test_model_names_lead_nowhere(self, server: Server) -> None:
        names = [
            "../../etc/passwd",
            "/etc/passwd",
            "a\0b",
            "http://evil.com/x",
            "sha256:" + "0" * 64,
            "",
            " ",
            "x" * 10_000,
        ]
        for name in names:
            assert server.post("/v1/completions", {"model": name, "prompt": "x"}).status == 404


def batched(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def raw_until_reply(server: Server, head: bytes, body: bytes) -> bytes:
    """Sends for as long as it is taken; the service may answer before the end and close."""
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(head)
        try:
            for part in itertools.islice(batched(body, 1 << 16), None):
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            return connection.recv(4096)
        except ConnectionResetError:
            return b""
