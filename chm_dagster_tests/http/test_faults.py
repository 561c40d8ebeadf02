"""Broken transport: each fault ends quickly with the right error after the right number of requests."""

import asyncio
import errno
import gzip
import json
import re
import socket
import ssl
import tracemalloc
import zlib
from typing import Any

import httpx
import pytest

from chm_dagster.errors import Permanent, RemoteError, ResponseTooLarge, SchemaDrift, Transient
from chm_dagster.http.client import HttpPolicy, Response
from chm_dagster.http.failures import Classifier, Misconfigured
from chm_dagster_tests.http.fault_server import (
    FaultServer,
    Reply,
    drip,
    gzipped,
    head,
    in_turn,
    json_reply,
    respond,
    silence,
    status_reply,
    then_close,
    then_reset,
)
from chm_dagster_tests.http.setup import NOW, Slept, partner_http

GOOD = json_reply({"runs": []})
BODY = json.dumps({"runs": [{"id": n, "note": "x" * 40} for n in range(50)]}).encode()
JSON = {"Content-Type": "application/json"}
QUICK = HttpPolicy(deadline=0.4)


def nested(depth: int, *, objects: bool = False) -> Any:
    """None inside of so many lists, or objects."""
    value: Any = None
    for _ in range(depth):
        value = {"[": value} if objects else [value]
    return value


def ask(*replies: Reply, policy: HttpPolicy = QUICK) -> tuple[Response | RemoteError, FaultServer, Slept]:
    async def scene() -> tuple[Response | RemoteError, FaultServer, Slept]:
        slept = Slept()
        async with (
            FaultServer(in_turn(*replies)) as server,
            partner_http(server.base_url, policy=policy, slept=slept) as http,
        ):
            try:
                return await http.get_json(["runs"]), server, slept
            except RemoteError as error:
                return error, server, slept

    return asyncio.run(scene())


CUTS = {
    "a body that drips": drip(head(200, {**JSON, "Content-Length": str(len(BODY))}) + BODY, at_once=80),
    "headers that drip": drip(head(200, JSON) + BODY),
    "no answer": silence(),
    "a short body for its length": then_close(head(200, {**JSON, "Content-Length": str(len(BODY))}) + BODY[:100]),
    "chunks without an end": then_close(head(200, {**JSON, "Transfer-Encoding": "chunked"}) + b"40\r\n" + BODY[:64]),
    "a cut gzip body with the right length": gzipped(BODY, cut=-12),
    "gzip cut within its trailer, all JSON there": gzipped(BODY, cut=-4),
    "damaged gzip": respond(b"\x1f\x8b\x08\x00nonsense-nonsense", headers={"Content-Encoding": "gzip"}),
    "a reset within the body": then_reset(head(200, {**JSON, "Content-Length": str(len(BODY))}) + BODY[:100]),
    "a connection closed without a word": then_close(b""),
    "something that is not HTTP": then_close(b"220 smtp ready\r\n\r\n"),
    "a cut body whose end is the connection's end": then_close(head(200, JSON) + BODY[:100]),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_truncated_response_is_retried(cut: Reply) -> None:
    outcome, server, slept = ask(cut, GOOD)
    assert isinstance(outcome, Response)
    assert outcome.body == {"runs": []}
    assert len(server.requests) == 2
    assert slept.seconds == [0.5]


@pytest.mark.parametrize("name", [name for name in CUTS if "connection's end" not in name])
def test_a_response_that_is_always_truncated_is_transient_after_three_requests(name: str) -> None:
    outcome, server, slept = ask(CUTS[name])
    assert type(outcome) is Transient
    assert len(server.requests) == 3
    assert slept.seconds == [0.5, 1.0]


def test_invalid_json_is_drift_after_three_requests() -> None:
    outcome, server, _ = ask(CUTS["a cut body whose end is the connection's end"])
    assert type(outcome) is SchemaDrift
    assert len(server.requests) == 3


def test_the_deadline_covers_headers_and_body_together() -> None:
    async def scene() -> float:
        loop = asyncio.get_running_loop()
        policy = HttpPolicy(deadline=0.3, attempts=1)
        async with (
            FaultServer(in_turn(drip(head(200, JSON) + BODY))) as server,
            partner_http(server.base_url, policy=policy) as http,
        ):
            start = loop.time()
            with pytest.raises(Transient, match=r"no complete response from 127.0.0.1:\d+ within 0.3 s"):
                await http.get_json(["runs"])
            return loop.time() - start

    assert 0.25 < asyncio.run(scene()) < 1.5


def test_a_refused_connection_is_transient() -> None:
    async def scene() -> Slept:
        slept = Slept()
        async with FaultServer(in_turn(GOOD)) as server:
            url = server.base_url
        async with partner_http(url, slept=slept) as http:
            address = url.removeprefix("http://").partition("/")[0]
            words = f"connection acme: cannot connect to {address} (connection refused)"
            with pytest.raises(Transient, match=f"^{re.escape(words)}$"):
                await http.get_json(["runs"])
        return slept

    assert len(asyncio.run(scene()).seconds) == 2


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "sentinel"), Transient, "unknown host"),
        (socket.gaierror(socket.EAI_AGAIN, "sentinel"), Transient, "name lookup failed"),
        (OSError(errno.EHOSTUNREACH, "sentinel"), Transient, "no route to host"),
        (OSError("sentinel"), Transient, "could not be reached"),
        (ssl.SSLEOFError(8, "sentinel"), Transient, "closed during the TLS handshake"),
        (ssl.SSLError(1, "sentinel"), Misconfigured, "TLS handshake failed"),
        (httpx.ConnectTimeout("sentinel"), Transient, "timed out after 5 s"),
    ],
)
def test_a_failed_connection_names_host_port_and_cause(cause: Exception, kind: type[Exception], words: str) -> None:
    classifier = Classifier("connection acme", "acme.example:443", "", 60.0, 30.0, 5.0)
    error: Exception = cause if isinstance(cause, httpx.ConnectTimeout) else httpx.ConnectError("sentinel")
    error.__cause__ = None if error is cause else cause
    failure = classifier.broken("/runs", error, 1)
    assert type(failure.error) is kind
    assert failure.retry is (kind is Transient)
    assert str(failure.error) == f"connection acme: cannot connect to acme.example:443 ({words})"


def test_a_server_without_tls_is_reported_as_such() -> None:
    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def scene() -> None:
        server = await asyncio.start_server(reject, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, partner_http(f"https://127.0.0.1:{port}") as http:
            with pytest.raises(Misconfigured, match=r"\(the server does not speak TLS on this port\)$"):
                await http.get_json(["runs"])

    asyncio.run(scene())


def test_a_gzip_body_of_several_members_is_read_completely() -> None:
    for body in (gzip.compress(BODY), gzip.compress(BODY[:700]) + gzip.compress(BODY[700:])):
        outcome, _, _ = ask(respond(body, headers={"Content-Encoding": "gzip"}))
        assert isinstance(outcome, Response)
        assert len(outcome.body["runs"]) == 50


def test_a_gzip_bomb_uses_no_more_memory_than_the_cap() -> None:
    deflate = zlib.compressobj(9, wbits=31)
    bomb = b"".join(deflate.compress(bytes(1024 * 1024)) for _ in range(64)) + deflate.flush()
    tracemalloc.start()
    try:
        outcome, server, _ = ask(
            respond(bomb, headers={"Content-Encoding": "gzip"}), policy=HttpPolicy(max_body_bytes=1024 * 1024)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(outcome) is ResponseTooLarge
    assert "larger than 1048576 bytes" in str(outcome)
    assert len(server.requests) == 1
    assert peak < 10 * 1024 * 1024


def test_an_endless_body_is_cut_off_at_the_cap() -> None:
    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, JSON))
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    outcome, server, _ = ask(Reply(flood), policy=HttpPolicy(max_body_bytes=300_000))
    assert type(outcome) is ResponseTooLarge
    assert len(server.requests) == 1


def test_a_small_body_that_holds_millions_of_values_is_refused_before_they_are_built() -> None:
    body = b'{"runs":[' + b"[]," * 10_000_000 + b"[]]}"
    reply = respond(gzip.compress(body), headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    outcome, server, _ = ask(reply, policy=HttpPolicy())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(outcome) is ResponseTooLarge
    assert str(outcome) == "connection acme: /runs: the response holds more than 2000000 values"
    assert len(server.requests) == 1
    assert peak < 5 * len(body)


def test_punctuation_in_texts_does_not_count_as_values() -> None:
    text = ',[{"\\' * 1_000_000
    outcome, _, _ = ask(respond(json.dumps({"a": text}).encode()), policy=HttpPolicy())
    assert isinstance(outcome, Response)
    assert outcome.body == {"a": text}


def test_a_body_of_exactly_the_cap_is_read() -> None:
    for reply in (respond(BODY), gzipped(BODY)):
        outcome, _, _ = ask(reply, policy=HttpPolicy(max_body_bytes=len(BODY)))
        assert isinstance(outcome, Response)
        outcome, _, _ = ask(reply, policy=HttpPolicy(max_body_bytes=len(BODY) - 1))
        assert type(outcome) is ResponseTooLarge


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 520])
def test_a_permanent_server_failure_costs_exactly_three_requests(status: int) -> None:
    outcome, server, slept = ask(status_reply(status))
    assert type(outcome) is Transient
    assert str(outcome) == f"connection acme: /runs: answered {status}"
    assert len(server.requests) == 3
    assert slept.seconds == [0.5, 1.0]


@pytest.mark.parametrize("status", [400, 404, 405, 409, 410, 422, 501, 505])
def test_a_refusal_is_permanent_at_once(status: int) -> None:
    outcome, server, slept = ask(status_reply(status))
    assert isinstance(outcome, Permanent)
    assert getattr(outcome, "status", None) == status
    assert len(server.requests) == 1
    assert slept.seconds == []


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (
            respond(b"<html>sign in</html>", headers={"Content-Type": "text/html; charset=utf-8"}),
            "not JSON but text/html",
        ),
        (then_close(head(204)), "no content"),
        (respond(b""), "empty"),
        (respond(b" \n "), "empty"),
        (respond(b"", headers={"Content-Encoding": "gzip"}), "empty"),
        (json_reply([1, 2]), "a JSON list and not an object"),
        (json_reply("runs"), "a JSON str and not an object"),
        (respond(b"null"), "a JSON NoneType and not an object"),
        (respond(b"{}", headers={"Content-Encoding": "br"}), "an encoding that was not accepted"),
    ],
)
def test_a_response_of_another_content_type_is_drift_at_once(reply: Reply, what: str) -> None:
    outcome, server, _ = ask(reply)
    assert type(outcome) is SchemaDrift
    assert what in str(outcome)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [b'{"a": 1', b'{"a": 1}}', b'{"a": [1}', b'{"a" 1}', b'{"a": Nan}', b"\x00\xff\xfe", b"[" * 100_000],
    ids=["cut", "more", "mismatch", "colon", "Nan", "bytes", "open"],
)
def test_a_response_that_is_not_json_is_drift_and_never_a_crash(body: bytes) -> None:
    outcome, _, _ = ask(respond(body))
    assert type(outcome) is SchemaDrift
    assert f"{len(body)} bytes that are not valid JSON" in str(outcome)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": "\\ud800"}', "\ud800"),
        (b'\xef\xbb\xbf{"a": 1}', 1),
        (b'{"a": "\\u0000"}', "\x00"),
        (b'{"a": 18446744073709551615}', 2**64 - 1),
        (b'{"a": NaN}', None),
        (b'{"a": [-Infinity, 1.5, Infinity]}', [None, 1.5, None]),
        (b'{"a": 1e999}', None),
        (b'{"a": [1e999, "\\ud800"]}', [None, "\ud800"]),
        (b'{"a": "caf\xe9 \xc3\xa9"}', "caf\xe9 \xe9"),
        (b'{"a": "\x01"}', "\x01"),
        ('{"a": "\xe9"}'.encode("utf-16"), "\xe9"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", nested(99)),
        (b'{"a": {"b": ["x]", ' + b'{"[":' * 300 + b"1" + b"}" * 300 + b"]}}", {"b": ["x]", nested(97, objects=True)]}),
        (b'{"a": ' + b"9" * 5_000 + b"}", "9" * 5_000),
        (b'{"a": [NaN, 18446744073709551616, -9223372036854775809]}', [None, str(2**64), str(-(2**63) - 1)]),
        (b'{"a": [NaN, 18446744073709551615, -9223372036854775808]}', [None, 2**64 - 1, -(2**63)]),
    ],
)
def test_odd_but_readable_json_reaches_the_mapping(body: bytes, value: object) -> None:
    outcome, _, _ = ask(respond(body))
    assert isinstance(outcome, Response)
    assert outcome.body == {"a": value}


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/problem+json", "text/plain", ""])
def test_json_is_accepted_under_its_usual_content_types(kind: str) -> None:
    outcome, _, _ = ask(respond(b"{}", headers={"Content-Type": kind}))
    assert isinstance(outcome, Response)


def test_a_response_carries_both_clocks() -> None:
    outcome, _, _ = ask(json_reply({}, headers={"Date": "Sun, 01 Mar 2026 11:59:30 GMT"}))
    assert isinstance(outcome, Response)
    assert outcome.observed_at == NOW
    assert outcome.server_time is not None
    assert (NOW - outcome.server_time).total_seconds() == 30


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 31 Dec 9999 23:59:59 GMT", "Tue, 03 Mar 2026 12:00:00 GMT"])
def test_an_invalid_date_header_is_not_used_as_server_time(date: str) -> None:
    outcome, _, _ = ask(json_reply({}, headers={"Date": date}))
    assert isinstance(outcome, Response)
    assert outcome.server_time is None
