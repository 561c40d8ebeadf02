"""No secret leaks and no foreign host is contacted: paths, redirects, proxies, TLS, logs and messages."""

import asyncio
import logging
import ssl
import traceback
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from chm_dagster.errors import ConfigError, Permanent, RemoteError
from chm_dagster.http.client import HttpClient, HttpPolicy
from chm_dagster_tests.http.fault_server import (
    FaultServer,
    Reply,
    Request,
    head,
    in_turn,
    json_reply,
    respond,
    status_reply,
    then_close,
    then_reset,
)
from chm_dagster_tests.http.setup import TOKEN, partner_http

GOOD = json_reply({"runs": []})


def targets_of(*paths: list[str], params: dict[str, str] | None = None) -> list[str]:
    async def scene() -> list[str]:
        async with FaultServer(in_turn(GOOD)) as server, partner_http(server.base_url + "/") as http:
            for path in paths:
                await http.get_json(path, params)
            return [request.target for request in server.requests]

    return asyncio.run(scene())


def test_each_segment_is_encoded_as_a_whole_below_the_base_path() -> None:
    odd = "a/b c?x#é..%2F"
    assert targets_of(["pipelines", odd, "runs"], []) == [
        "/base/pipelines/a%2Fb%20c%3Fx%23%C3%A9..%252F/runs",
        "/base",
    ]


def test_parameters_are_encoded_too() -> None:
    cursor = "a&limit=1#+ é/?"
    (target,) = targets_of(["runs"], params={"cursor": cursor})
    assert Request(target, {}).query == {"cursor": cursor}
    assert target.isascii()


@pytest.mark.parametrize("segment", ["", ".", "..", "\ud800"])
def test_an_id_that_would_lead_to_another_resource_is_rejected(segment: str) -> None:
    async def scene() -> int:
        async with FaultServer(in_turn(GOOD)) as server, partner_http(server.base_url) as http:
            with pytest.raises(Permanent, match="cannot be part of a URL path"):
                await http.get_json(["pipelines", segment, "runs"])
            return server.connections

    assert asyncio.run(scene()) == 0


@pytest.mark.parametrize("cursor", ["x" * 100_000, "\ud800"], ids=["too long", "half a pair"])
def test_a_cursor_that_fits_in_no_url_is_a_permanent_error(cursor: str) -> None:
    async def scene() -> None:
        async with FaultServer(in_turn(GOOD)) as server, partner_http(server.base_url) as http:
            with pytest.raises(Permanent, match="does not fit into a URL"):
                await http.get_json(["runs"], {"cursor": cursor})

    asyncio.run(scene())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_no_redirect_is_followed(status: int) -> None:
    async def scene() -> tuple[str, int, int]:
        async with FaultServer(in_turn(GOOD)) as canary:
            location = f"http://user:hidden@localhost:{canary.port}/base?token=hidden"
            async with (
                FaultServer(in_turn(status_reply(status, {"Location": location}))) as server,
                partner_http(server.base_url) as http,
            ):
                with pytest.raises(Permanent) as caught:
                    await http.get_json(["runs"])
                return str(caught.value), canary.connections, len(server.requests)

    assert asyncio.run(scene()) == (
        f"connection acme: /runs: redirect ({status}) to localhost not followed; check the credentials if that is "
        "a login page, else set base_url to the final address",
        0,
        1,
    )


@pytest.mark.parametrize(("location", "shown"), [("/login", r"127.0.0.1:\d+"), ("http://[", "an unreadable address")])
def test_an_odd_redirect_is_reported_safely(location: str, shown: str) -> None:
    async def scene() -> None:
        async with (
            FaultServer(in_turn(status_reply(302, {"Location": location}))) as server,
            partner_http(server.base_url) as http,
        ):
            with pytest.raises(Permanent, match=f"to {shown} not followed"):
                await http.get_json(["runs"])

    asyncio.run(scene())


def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> tuple[int, int]:
        async with FaultServer(in_turn(GOOD)) as proxy, FaultServer(in_turn(GOOD)) as server:
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
            async with partner_http(server.base_url) as http:
                await http.get_json(["runs"])
            return proxy.connections, server.connections

    assert asyncio.run(scene()) == (0, 1)


def test_the_token_is_sent_as_a_bearer_token_if_there_is_one() -> None:
    async def scene(token: str | None) -> str | None:
        async with FaultServer(in_turn(GOOD)) as server, partner_http(server.base_url, token=token) as http:
            await http.get_json(["runs"])
            assert server.requests[0].headers["accept-encoding"] == "gzip"
            return server.requests[0].headers.get("authorization")

    assert asyncio.run(scene(TOKEN)) == f"Bearer {TOKEN}"
    assert asyncio.run(scene(None)) is None


@pytest.mark.parametrize(
    "base_url",
    [
        "http://user:hidden@partner.example/api",
        "http://hidden@partner.example",
        "https://partner.example/api?key=hidden",
        "https://partner.example/api#hidden",
        "http://user:hid/den@partner.example",
        "http://partner.example:hidden/",
        "ftp://partner.example/hidden",
        "http://xn--/hidden",
        "partner.example/hidden",
        "http:///hidden",
        "http://[hidden/",
        "http://partner.example/hid\x00den",
        "",
    ],
)
def test_an_unusable_base_url_is_rejected_without_showing_it(base_url: str) -> None:
    with pytest.raises(ConfigError, match="connection acme: base_url") as caught:
        partner_http(base_url)
    assert_nothing_of(["hidden", "hid"], caught.value)


@pytest.mark.parametrize("token", ["", "hidden\n", "hid den", "hidden\r\nX-Other: 1", "hiddén"])
def test_a_token_that_is_not_a_valid_header_is_rejected_without_showing_it(token: str) -> None:
    with pytest.raises(ConfigError, match="connection acme: the token") as caught:
        partner_http("http://127.0.0.1", token=token)
    assert_nothing_of(["hid"], caught.value)


def assert_nothing_of(secrets: list[str], error: BaseException) -> None:
    """Neither the error nor its causes show a secret."""
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = [str(error), repr(error), repr(vars(error)), *traceback.format_exception_only(error)]
    assert not [secret for secret in secrets for text in shown if secret in text]


LEAKY = {
    "answer": GOOD,
    "html": respond(b"<p>sentinel-body</p>", headers={"Content-Type": "text/html"}),
    "not json": respond(b'{"sentinel-body'),
    "not utf-8": respond(b'{"sentinel-body": "\xe9"}'),
    "list": respond(b'["sentinel-body"]'),
    "401": respond(b"sentinel-body", 401),
    "404": respond(b"sentinel-body", 404),
    "500": respond(b"sentinel-body", 500),
    "429": respond(b"sentinel-body", 429, {"Retry-After": "9999", "X-Key": "sentinel-header"}),
    "redirect": status_reply(302, {"Location": "http://u:sentinel-userinfo@127.0.0.1/?k=sentinel-query"}),
    "content type": respond(b"{}", headers={"Content-Type": 'text/html sentinel-header <"'}),
    "cookie": json_reply({}, headers={"Set-Cookie": "session=sentinel-header"}),
    "cut": then_close(head(200, {"Content-Length": "99"}) + b"sentinel-body"),
    "reset": then_reset(head(200, {"Content-Length": "99"}) + b"sentinel-body"),
    "not http": then_close(b"sentinel-body\r\n\r\n"),
    "bad gzip": respond(b"sentinel-body", headers={"Content-Encoding": "gzip"}),
    "too large": respond(b"sentinel-body" * 100),
}


@pytest.mark.parametrize("reply", LEAKY.values(), ids=LEAKY)
def test_no_secret_is_in_a_message_a_repr_or_a_log_record(reply: Reply, all_logs: pytest.LogCaptureFixture) -> None:
    secrets = ["sentinel", TOKEN]

    async def scene() -> None:
        policy = HttpPolicy(max_body_bytes=1_000)
        async with FaultServer(in_turn(reply)) as server, partner_http(server.base_url, policy=policy) as http:
            assert not [secret for secret in secrets if secret in repr(http)]
            try:
                await http.get_json(["runs"], {"cursor": "sentinel-query"})
            except RemoteError as error:
                assert_nothing_of(secrets, error)

    asyncio.run(scene())
    for record in all_logs.records:
        shown = f"{record.getMessage()} {record.args!r} {record.exc_text} {record.exc_info}"
        assert not [secret for secret in secrets if secret in shown]
        assert record.name.partition(".")[0] not in ("httpx", "httpcore", "hpack")


def test_the_log_filter_survives_a_new_logging_configuration(all_logs: pytest.LogCaptureFixture) -> None:
    partner_http("http://127.0.0.1")
    partner_http("http://127.0.0.1")
    for name in ("httpx", "httpcore.http11", "httpcore.http2", "httpcore.connection", "hpack.hpack", "hpack.table"):
        library = logging.getLogger(name)
        library.setLevel(logging.DEBUG)
        library.warning("sentinel")
        assert len(library.filters) == 1
    assert all_logs.records == []


def test_retries_are_logged_with_what_an_operator_needs(all_logs: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with FaultServer(in_turn(status_reply(502), GOOD)) as server, partner_http(server.base_url) as http:
            await http.get_json(["runs"])

    asyncio.run(scene())
    assert "connection acme: /runs: answered 502; attempt 1, next in 0.5 s" in all_logs.messages


def test_the_repr_names_connection_and_host_only() -> None:
    http = HttpClient("connection acme", "https://partner.example:8443/api/hidden/", token=TOKEN)
    assert repr(http) == "HttpClient(label='connection acme', host='partner.example')"


def tls_server(certificate: Path) -> FaultServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return FaultServer(in_turn(GOOD), tls=context)


def test_an_untrusted_certificate_is_rejected_at_once(certificate: Path) -> None:
    async def scene() -> int:
        async with tls_server(certificate) as server, partner_http(server.base_url) as http:
            with pytest.raises(Permanent, match=r"cannot connect to 127.0.0.1:\d+ \(") as caught:
                await http.get_json(["runs"])
            assert str(caught.value).endswith("(TLS certificate not trusted: self-signed certificate)")
            return len(server.requests)

    assert asyncio.run(scene()) == 0


def test_a_certificate_from_the_system_store_is_accepted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")

    async def scene() -> int:
        async with tls_server(certificate) as server, partner_http(server.base_url) as http:
            await http.get_json(["runs"])
            return len(server.requests)

    assert asyncio.run(scene()) == 1


async def serve_h2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A minimal HTTP/2 server that responds to each request with an empty object."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = [(":status", "200"), ("content-type", "application/json"), ("set-cookie", "a=sentinel")]
                connection.send_headers(event.stream_id, headers)
                connection.send_data(event.stream_id, b"{}", end_stream=True)
        writer.write(connection.data_to_send())
    writer.close()


def test_http_2_is_used_where_offered_and_logs_nothing(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, all_logs: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])

    async def scene() -> None:
        server = await asyncio.start_server(serve_h2, "127.0.0.1", 0, ssl=context)
        async with partner_http(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as http:
            answers = await asyncio.gather(*(http.get_json(["runs"], {"cursor": "sentinel"}) for _ in range(20)))
            assert [answer.body for answer in answers] == [{}] * 20
        server.close()

    asyncio.run(scene())
    text = "".join(f"{record.getMessage()} {record.args!r}" for record in all_logs.records)
    assert "sentinel" not in text
    assert TOKEN not in text


def test_certificate_verification_cannot_be_turned_off() -> None:
    sources = Path(__file__).parents[2] / "chm_dagster"
    words = ("verify=" + "False", "CERT_" + "NONE", "check_hostname = " + "False")
    assert not [path for path in sources.rglob("*.py") for word in words if word in path.read_text(encoding="utf-8")]
