"""Many clients of the service at once, on loopback, with bounded counts: for its tests and its benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Address = tuple[str, int]


@dataclass
class Outcome:
    """What one client saw.

    Attributes:
        status: Of the response; 0 where the connection broke before one came.
        seconds: Until the response's head was there.
        first: Until the first event with text, from the beginning.
        total: Until the end.
        done: Whether the stream said `[DONE]`.
        error: The code of an error event.
        retry_after: As the response says.
        text: What was written.
        body: Of a response that is no stream.
    """

    status: int = 0
    seconds: float = 0.0
    first: float | None = None
    total: float = 0.0
    done: bool = False
    error: str | None = None
    retry_after: int | None = None
    text: str = ""
    body: bytes = b""
    events: list[Any] = field(default_factory=list, repr=False)


def request(path: str, body: object, *, key: str | None = None, method: str = "POST") -> bytes:
    """Returns a request as bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    if data:
        head.append(f"Content-Length: {len(data)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


async def read(address: Address, data: bytes) -> Outcome:
    """Sends a request and reads the response to its end."""
    outcome, begun = Outcome(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(*address, limit=1 << 24)
    except OSError:
        return outcome
    try:
        writer.write(data)
        await writer.drain()
        await _head(reader, outcome)
        outcome.seconds = time.perf_counter() - begun
        async for line in reader:
            text = line.strip()
            if not text.startswith(b"data: "):
                outcome.body += line
                continue
            value = text[6:].decode()
            if value == "[DONE]":
                outcome.done = True
                continue
            event = json.loads(value)
            if "error" in event:
                outcome.error = event["error"]["code"]
                continue
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content") or choice.get("text") or ""
                if piece and outcome.first is None:
                    outcome.first = time.perf_counter() - begun
                outcome.text += piece
            outcome.events.append(event)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        outcome.total = time.perf_counter() - begun
        writer.close()
    return outcome


async def _head(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    line = await reader.readline()
    if not line:
        return
    outcome.status = int(line.split()[1])
    while (line := await reader.readline()).strip():
        name, _, value = line.decode().partition(":")
        if name.lower() == "retry-after":
            outcome.retry_after = int(value)


async def together(address: Address, requests: Sequence[bytes]) -> list[Outcome]:
    """Sends all requests at once."""
    return list(await asyncio.gather(*(read(address, data) for data in requests)))


async def leave(address: Address, data: bytes, *, after: float, how: str) -> None:
    """Sends a request and goes away after some seconds: `close`, `half` (one half, then waits) or `reset`."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    with contextlib.suppress(TimeoutError, OSError):
        await asyncio.wait_for(reader.read(-1), after)
    sock: socket.socket = writer.get_extra_info("socket")
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half" and not writer.is_closing():
        try:
            writer.write_eof()
            await asyncio.wait_for(reader.read(-1), 5)
        except (TimeoutError, OSError):
            pass
    # What is not sent yet is not sent any more.
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def dawdle(address: Address, data: bytes, *, seconds: float, rate: int = 1) -> tuple[bytes, float]:
    """Reads some bytes a second with a small buffer; returns what came, and after how long the connection was gone."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, address)
    begun, seen = time.perf_counter(), b""
    try:
        await loop.sock_sendall(sock, data)
        while time.perf_counter() - begun < seconds:
            part = await asyncio.wait_for(loop.sock_recv(sock, rate), seconds)
            if not part:
                break
            seen += part
            await asyncio.sleep(1)
    except (OSError, TimeoutError):
        pass
    finally:
        sock.close()
    return seen, time.perf_counter() - begun


async def watch(address: Address, work: Awaitable[Any], *, key: str | None = None) -> tuple[Any, list[float]]:
    """Asks for `/health` ten times a second while something else runs; returns its result and how long each took.

    Another process asks: here each would wait for what all the other clients do.
    """
    data = request("/health", None, key=key, method="GET")
    asking = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        *map(str, address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert asking.stdin
    asking.stdin.write(len(data).to_bytes(4, "big") + data)
    try:
        result = await work
    finally:
        printed, _ = await asking.communicate(b"")
    return result, [float(line) for line in printed.split()]


def _ask(address: Address, data: bytes) -> float:
    """Sends a request on a connection of its own; returns how long the response took, or infinity."""
    begun, reply = time.perf_counter(), b""
    try:
        with socket.create_connection(address, timeout=10) as sock:
            sock.sendall(data)
            while part := sock.recv(1 << 16):
                reply += part
    except OSError:
        return float("inf")
    return time.perf_counter() - begun if b" 200 " in reply[:16] else float("inf")


class _Kept(asyncio.Protocol):
    """A client that keeps its connection, and takes the next request from those that are left."""

    def __init__(self, left: list[tuple[int, bytes]], bodies: list[bytes], done: asyncio.Future[None]) -> None:
        self.left, self.bodies, self.done = left, bodies, done
        self.came, self.at = b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if self.left:
            self.at, data = self.left.pop()
            self.transport.write(data)
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.came += data
        head = self.came.find(b"\r\n\r\n")
        if head < 0:
            return
        length = self.came[:head].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if len(self.came) >= head + 4 + int(length):
            self.bodies[self.at], self.came = self.came[head + 4 :], b""
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.done.done():
            self.done.set_result(None)


async def kept(address: Address, requests: Sequence[bytes], *, clients: int) -> list[bytes]:
    """Sends requests over so many connections, each the next as soon as it has its answer; returns the bodies.

    It takes little of the time that it measures; a body that did not come is empty.
    """
    bodies, loop = [b""] * len(requests), asyncio.get_running_loop()
    left = [(at, data.replace(b"Connection: close\r\n", b"")) for at, data in enumerate(requests)]
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(clients)]
    for end in ends:
        await loop.create_connection(lambda end=end: _Kept(left, bodies, end), *address)  # type: ignore[misc]
    await asyncio.gather(*ends)
    return bodies


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value that this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Waits for a condition; returns after how long it held, or infinity."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        if await asyncio.to_thread(condition):
            return time.perf_counter() - begun
        await asyncio.sleep(0.01)
    return float("inf")


def _main() -> None:
    """Prints how long `/health` takes, ten times a second, until nobody listens any more; see `watch`."""
    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    data, over = sys.stdin.buffer.read(size), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), over.set()), daemon=True).start()
    while not over.wait(0.1):
        print(_ask((sys.argv[1], int(sys.argv[2])), data))


if __name__ == "__main__":
    _main()
