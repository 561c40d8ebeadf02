"""Broken transport: each fault ends soon, in the right error, after the right number of requests."""

import asyncio
import gzip
import json
import tracemalloc
import zlib

import pytest

from chm_dagster.errors import PartnerError, Permanent, SchemaDrift, Transient
from chm_dagster.partners.http import Answer, HttpPolicy
from chm_dagster_tests.partners.fault_server import (
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
from chm_dagster_tests.partners.http_setup import NOW, Slept, partner_http

GOOD = json_reply({"runs": []})
BODY = json.dumps({"runs": [{"id": n, "note": "x" * 40} for n in range(50)]}).encode()
JSON = {"Content-Type": "application/json"}
QUICK = HttpPolicy(deadline=0.4)


def ask(*replies: Reply, policy: HttpPolicy = QUICK) -> tuple[Answer | PartnerError, FaultServer, Slept]:
    async def scene() -> tuple[Answer | PartnerError, FaultServer, Slept]:
        slept = Slept()
        async with (
            FaultServer(in_turn(*replies)) as server,
            partner_http(server.base_url, policy=policy, slept=slept) as http,
        ):
            try:
                return await http.get_json(["runs"]), server, slept
            except PartnerError as error:
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
def test_a_cut_answer_is_asked_for_again(cut: Reply) -> None:
    outcome, server, slept = ask(cut, GOOD)
    assert isinstance(outcome, Answer)
    assert outcome.body == {"runs": []}
    assert len(server.requests) == 2
    assert slept.seconds == [0.5]


@pytest.mark.parametrize("name", [name for name in CUTS if "connection's end" not in name])
def test_an_answer_that_is_always_cut_is_transient_after_three_requests(name: str) -> None:
    outcome, server, slept = ask(CUTS[name])
    assert type(outcome) is Transient
    assert len(server.requests) == 3
    assert slept.seconds == [0.5, 1.0]


def test_json_that_never_parses_is_drift_after_three_requests() -> None:
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
            with pytest.raises(Transient, match="in time"):
                await http.get_json(["runs"])
            return loop.time() - start

    assert 0.25 < asyncio.run(scene()) < 1.5


def test_a_refused_connection_is_transient() -> None:
    async def scene() -> Slept:
        slept = Slept()
        async with FaultServer(in_turn(GOOD)) as server:
            url = server.base_url
        async with partner_http(url, slept=slept) as http:
            with pytest.raises(Transient, match=r"^connection acme: /runs: could not be reached$"):
                await http.get_json(["runs"])
        return slept

    assert len(asyncio.run(scene()).seconds) == 2


def test_a_whole_gzip_body_is_read_also_in_several_members() -> None:
    for body in (gzip.compress(BODY), gzip.compress(BODY[:700]) + gzip.compress(BODY[700:])):
        outcome, _, _ = ask(respond(body, headers={"Content-Encoding": "gzip"}))
        assert isinstance(outcome, Answer)
        assert len(outcome.body["runs"]) == 50


def test_a_gzip_bomb_costs_no_more_memory_than_the_cap() -> None:
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
    assert type(outcome) is Permanent
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
    assert type(outcome) is Permanent
    assert len(server.requests) == 1


def test_a_body_of_exactly_the_cap_is_read() -> None:
    for reply in (respond(BODY), gzipped(BODY)):
        outcome, _, _ = ask(reply, policy=HttpPolicy(max_body_bytes=len(BODY)))
        assert isinstance(outcome, Answer)
        outcome, _, _ = ask(reply, policy=HttpPolicy(max_body_bytes=len(BODY) - 1))
        assert isinstance(outcome, Permanent)


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 520])
def test_a_lasting_failure_of_the_server_costs_exactly_three_requests(status: int) -> None:
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
        (then_close(head(204)), "without content"),
        (respond(b""), "empty"),
        (respond(b" \n "), "empty"),
        (respond(b"", headers={"Content-Encoding": "gzip"}), "empty"),
        (json_reply([1, 2]), "a JSON list and not an object"),
        (json_reply("runs"), "a JSON str and not an object"),
        (respond(b"null"), "a JSON NoneType and not an object"),
        (respond(b"{}", headers={"Content-Encoding": "br"}), "compressed in a way that was not asked for"),
    ],
)
def test_an_answer_of_another_kind_is_drift_at_once(reply: Reply, what: str) -> None:
    outcome, server, _ = ask(reply)
    assert type(outcome) is SchemaDrift
    assert what in str(outcome)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1e999, "b": "\\ud800"}',
        b'{"a": "\xe9"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"b": "\\ud800", "a": ' + b"9" * 5_000 + b"}",
        b'{"a": 1',
        b"\x00\xff\xfe",
    ],
    ids=["nan", "infinity", "1e999", "1e999 behind half a pair", "latin-1", "deep", "huge int", "cut", "bytes"],
)
def test_what_is_not_json_is_drift_and_never_a_crash(body: bytes) -> None:
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
    ],
)
def test_odd_but_legal_json_reaches_the_mapping(body: bytes, value: object) -> None:
    outcome, _, _ = ask(respond(body))
    assert isinstance(outcome, Answer)
    assert outcome.body == {"a": value}


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/problem+json", "text/plain", ""])
def test_json_is_accepted_under_its_usual_labels(kind: str) -> None:
    outcome, _, _ = ask(respond(b"{}", headers={"Content-Type": kind}))
    assert isinstance(outcome, Answer)


def test_an_answer_carries_both_clocks() -> None:
    outcome, _, _ = ask(json_reply({}, headers={"Date": "Sun, 01 Mar 2026 11:59:30 GMT"}))
    assert isinstance(outcome, Answer)
    assert outcome.observed_at == NOW
    assert outcome.server_time is not None
    assert (NOW - outcome.server_time).total_seconds() == 30


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 31 Dec 9999 23:59:59 GMT", "Tue, 03 Mar 2026 12:00:00 GMT"])
def test_a_date_that_cannot_be_is_no_server_time(date: str) -> None:
    outcome, _, _ = ask(json_reply({}, headers={"Date": date}))
    assert isinstance(outcome, Answer)
    assert outcome.server_time is None
