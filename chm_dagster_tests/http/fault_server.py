"""A partner that misbehaves on request: a raw socket server whose every byte is scripted."""

import asyncio
import gzip
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlsplit

Send = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire. `target` is still percent-encoded."""

    target: str
    headers: Mapping[str, str]
    method: str = "GET"
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def lists(self) -> dict[str, list[str]]:
        """The query parameters, which can be repeated."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Reply:
    """How to respond to one request. The connection closes afterwards unless `keep_alive`."""

    send: Send
    keep_alive: bool = False


@dataclass
class FaultServer:
    """Answers each request with `answer(request)`; remembers requests and counts connections."""

    answer: Callable[[Request], Reply]
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    most_open: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def base_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/base"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                reply = await self._received(reader, await reader.readuntil(b"\r\n\r\n"))
                self.open_now += 1
                self.most_open = max(self.most_open, self.open_now)
                try:
                    await reply.send(writer)
                finally:
                    self.open_now -= 1
                if not reply.keep_alive:
                    break
        writer.close()
        self._tasks.discard(task)

    async def _received(self, reader: asyncio.StreamReader, head: bytes) -> Reply:
        line, *rest = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in rest)}
        method, target, _ = line.split(" ")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(target, headers, method, body)
        self.requests.append(request)
        return self.answer(request)


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    """The first reply for the first request, and so on; the last one is repeated."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def head(status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def respond(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, *, after: float = 0.0) -> Reply:
    """A well-formed response over a connection that stays open."""

    async def send(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(after)
        all_headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        writer.write(head(status, all_headers) + body)
        await writer.drain()

    return Reply(send, keep_alive=True)


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, after: float = 0.0) -> Reply:
    return respond(json.dumps(value).encode(), status, headers, after=after)


def runs_reply(
    runs: Sequence[Any], cursor: str | None = None, headers: Mapping[str, str] | None = None, *, after: float = 0.0
) -> Reply:
    return json_reply({"runs": list(runs), "next_cursor": cursor}, headers=headers, after=after)


def status_reply(status: int, headers: Mapping[str, str] | None = None) -> Reply:
    return respond(b"{}", status, headers)


def page_reply(status: int) -> Reply:
    """A web page, as a proxy sends it that does not know the server behind it."""
    return respond(b"<html><h1>404 page not found</h1></html>", status, {"Content-Type": "text/html; charset=utf-8"})


def then_close(data: bytes) -> Reply:
    """Exactly these bytes, then a clean close of the connection."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return Reply(send)


def then_reset(data: bytes) -> Reply:
    """Exactly these bytes, then a TCP reset."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.02)
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return Reply(send)


def drip(data: bytes, at_once: int = 0) -> Reply:
    """`at_once` bytes immediately, then a byte every hundredth of a second."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data[:at_once])
        for byte in data[at_once:]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.01)

    return Reply(send)


def silence() -> Reply:
    async def send(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    return Reply(send)


def gzipped(body: bytes, cut: int | None = None) -> Reply:
    """A gzip body with the right Content-Length for what is sent of it."""
    return respond(gzip.compress(body)[:cut], headers={"Content-Encoding": "gzip"})
