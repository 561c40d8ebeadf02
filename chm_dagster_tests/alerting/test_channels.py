"""Each channel against a real receiver on loopback."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import standardwebhooks

from chm_dagster.alerting.channels import Channels, Endpoint, signed
from chm_dagster.domain.alerts import Evidence, NoticeKind
from chm_dagster.domain.messages import Item, Message
from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.errors import AuthError, ChmError, ConfigError, Permanent, RateLimited, Transient
from chm_dagster.http.client import HttpPolicy
from chm_dagster_tests.alerting.mail_server import PASSWORD, MailServer
from chm_dagster_tests.http.fault_server import (
    FaultServer,
    Reply,
    in_turn,
    json_reply,
    respond,
    silence,
    status_reply,
    then_close,
    then_reset,
)

NOW = datetime(2026, 3, 2, 3, 4, tzinfo=UTC)
SINCE = NOW - timedelta(minutes=58)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
QUICK = HttpPolicy(deadline=0.5)


def item(number: int = 1, **changes: Any) -> Item:
    fields: dict[str, Any] = {
        "key": f"e{number}-opened",
        "kind": NoticeKind.OPENED,
        "rule_id": UUID(int=7),
        "rule_type": RuleType.ON_FAILURE,
        "threshold": None,
        "window_minutes": None,
        "episode_id": UUID(int=number),
        "client_slug": "acme",
        "client_name": "Acme <b>& Sons</b>",
        "pipeline_slug": f"orders-{number}",
        "pipeline_name": f"Orders {number}",
        "platform": Platform.AIRFLOW,
        "environment": "prod",
        "since": SINCE,
        "evidence": Evidence(("r1",), "r2", 2),
        "error": "KeyError: 'price' <!channel>",
        "source_url": "https://airflow.example/runs/r2?tab=1&x=2",
    }
    return Item(**(fields | changes))


def message(channel: Channel, destination: str, *items: Item) -> Message:
    return Message(UUID(int=42), channel, destination, NOW, items or (item(),), NOW)


def send(channels: Channels, what: Message) -> None:
    asyncio.run(channels.send(what, NOW))


def received(
    answer: Reply, channels: Callable[[FaultServer], Channels], what: Message
) -> tuple[list[Any], ChmError | None]:
    """The requests that arrived, and the error of the attempt."""

    async def scene() -> tuple[list[Any], ChmError | None]:
        async with FaultServer(in_turn(answer)) as server:
            try:
                await channels(server).send(what, NOW)
            except ChmError as error:
                return server.requests, error
            return server.requests, None

    return asyncio.run(scene())


# --- webhooks ---------------------------------------------------------------------------------------------------------


def to_webhook(server: FaultServer) -> Channels:
    return Channels(endpoints={"OPS": Endpoint(server.base_url + "/hooks/TOP-SECRET?sig=HIDDEN", SECRET)}, policy=QUICK)


WEBHOOK = message(Channel.WEBHOOK, "ops")


def test_a_webhook_is_signed_json_under_the_id_of_the_message() -> None:
    [request], error = received(status_reply(204), to_webhook, WEBHOOK)
    assert error is None
    assert (request.method, request.target) == ("POST", "/base/hooks/TOP-SECRET?sig=HIDDEN")
    assert request.headers["webhook-id"] == str(WEBHOOK.id)
    signed_text = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed_text, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"
    [notice] = request.json["data"]["notices"]
    assert (notice["kind"], notice["pipeline"], notice["failures"], notice["key"]) == (
        "opened",
        "acme/orders-1",
        2,
        "e1-opened",
    )
    assert notice["since"] == SINCE.isoformat()
    assert notice["failures_are_at_least"] is False


def test_the_reference_library_verifies_what_was_sent() -> None:
    async def scene() -> Any:
        async with FaultServer(in_turn(status_reply(204))) as server:
            await to_webhook(server).send(WEBHOOK, datetime.now(UTC))
            return server.requests[0]

    request = asyncio.run(scene())
    verified = standardwebhooks.Webhook(SECRET).verify(request.body, dict(request.headers))
    assert verified["data"]["subject"] == request.json["data"]["subject"]
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(request.body + b" ", dict(request.headers))


def test_the_signature_is_that_of_the_published_example() -> None:
    when = datetime.fromtimestamp(1614265330, UTC)
    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", when, b'{"test": 2432232314}', SECRET)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert "webhook-signature" not in signed("m", when, b"{}", None)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        pytest.param(
            status_reply(429, {"Retry-After": "90"}), RateLimited, "answered 429, asks to wait for 90 s", id="429"
        ),
        pytest.param(status_reply(500), Transient, "answered 500", id="500"),
        pytest.param(status_reply(302, {"Location": "https://evil.example/x"}), Permanent, "redirect", id="redirect"),
        pytest.param(status_reply(401), AuthError, "credentials refused (401)", id="401"),
        pytest.param(status_reply(404), Permanent, "refused (404)", id="404"),
        pytest.param(status_reply(400), Permanent, "refused (400)", id="400"),
        pytest.param(silence(), Transient, "no complete response", id="timeout"),
        pytest.param(then_reset(b""), Transient, "broke off", id="reset"),
        pytest.param(then_close(b"not http\r\n\r\n"), Transient, "broke off", id="not-http"),
    ],
)
def test_what_a_receiver_may_do_has_its_error_and_shows_no_secret(
    answer: Reply, error: type[ChmError], text: str
) -> None:
    requests, found = received(answer, to_webhook, WEBHOOK)
    assert isinstance(found, error)
    assert text in str(found)
    assert "SECRET" not in str(found)
    assert "HIDDEN" not in str(found)
    assert len(requests) == 1
    if isinstance(found, RateLimited):
        assert found.retry_after == 90


def test_a_refused_connection_may_pass() -> None:
    with pytest.raises(Transient, match="cannot connect"):
        send(Channels(endpoints={"OPS": Endpoint("http://127.0.0.1:1/x")}), WEBHOOK)


@pytest.mark.parametrize(
    "answer", [respond(b"x" * 10, after=0), then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\nslow")]
)
def test_a_receiver_that_says_200_has_accepted_whatever_follows(answer: Reply) -> None:
    assert received(answer, to_webhook, WEBHOOK)[1] is None


def test_a_name_that_is_not_set_up_says_which_variable_is_missing() -> None:
    with pytest.raises(ConfigError, match="CHM_WEBHOOK_URL_OPS is not set"):
        send(Channels(), WEBHOOK)
    with pytest.raises(ConfigError, match="not a URL"):
        send(Channels(endpoints={"OPS": Endpoint("file:///etc/passwd")}), WEBHOOK)


# --- Slack ------------------------------------------------------------------------------------------------------------

SLACK = message(Channel.SLACK, "#alerts")


def test_an_incoming_webhook_of_slack_gets_text_and_blocks() -> None:
    channels = lambda server: Channels(slack_webhook=server.base_url + "/services/T0/B0/KEY", policy=QUICK)  # noqa: E731
    [request], error = received(respond(b"ok", headers={"Content-Type": "text/html"}), channels, SLACK)
    assert error is None
    assert request.path == "/base/services/T0/B0/KEY"
    assert set(request.json) == {"text", "blocks"}
    text = json.dumps(request.json)
    assert "failing since 2026-03-02 02:06 UTC, 2 failures in a row" in text
    assert "&lt;!channel&gt;" in text
    assert "<!channel>" not in text
    assert "<https://airflow.example/runs/r2?tab=1&amp;x=2|Open the run>" in text


def slack_app(server: FaultServer) -> Channels:
    return Channels(slack_token="xoxb-SECRET", slack_api=server.base_url, policy=QUICK)


def test_a_bot_posts_to_the_channel_of_the_rule() -> None:
    [request], error = received(json_reply({"ok": True}), slack_app, SLACK)
    assert error is None
    assert (request.path, request.headers["authorization"]) == ("/base/chat.postMessage", "Bearer xoxb-SECRET")
    assert request.json["channel"] == "#alerts"
    assert request.json["metadata"]["event_payload"] == {"id": str(SLACK.id)}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (json_reply({"ok": False, "error": "invalid_auth"}), AuthError),
        (json_reply({"ok": False, "error": "channel_not_found"}), Transient),
        (json_reply({"ok": False, "error": "ratelimited"}), RateLimited),
        (json_reply({"ok": False, "error": "internal_error"}), Transient),
        (json_reply({"ok": False, "error": "msg_too_long"}), Permanent),
        (json_reply({"ok": False, "error": "invalid_blocks"}), Permanent),
        (json_reply({"ok": False, "error": "invalid_arguments"}), Permanent),
        (json_reply({"ok": False, "error": "no_text"}), Permanent),
        (respond(b"<html>login</html>"), Transient),
        (json_reply([1]), Transient),
        (status_reply(429, {"Retry-After": "30"}), RateLimited),
    ],
)
def test_what_slack_refuses_is_an_error(answer: Reply, error: type[ChmError]) -> None:
    found = received(answer, slack_app, SLACK)[1]
    assert type(found) is error
    assert "SECRET" not in str(found)


def test_a_long_list_is_cut_after_ten_lines() -> None:
    many = message(Channel.SLACK, "#alerts", *(item(n) for n in range(13)))
    [request], _ = received(json_reply({"ok": True}), slack_app, many)
    sections = [block for block in request.json["blocks"] if block["type"] == "section"]
    assert len(sections) == 11
    assert "and 3 more" in sections[-1]["text"]["text"]


# --- email ------------------------------------------------------------------------------------------------------------

EMAIL = message(Channel.EMAIL, "oncall@example.com")


def by_mail(url: str) -> Channels:
    return Channels(smtp_url=url, email_from="CHM <chm@monitor.example>", policy=HttpPolicy(deadline=5))


def test_an_email_goes_through_starttls_and_login(server_tls: ssl.SSLContext) -> None:
    with MailServer(server_tls) as server:
        send(by_mail(server.url), EMAIL)
    [mail] = server.mails
    assert (server.in_clear, server.logins, server.receivers) == (
        ["EHLO", "STARTTLS"],
        1,
        ["rcpt TO:<oncall@example.com>"],
    )
    assert mail["Subject"] == "Acme <b>& Sons</b> / Orders 1: failing since 2026-03-02 02:06 UTC, 2 failures in a row"
    assert mail["Message-ID"] == f"<{EMAIL.id}@monitor.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    text, page = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert page is not None
    assert "KeyError: 'price' <!channel>" in text.get_content()
    assert "chm alert ack 000000000001" in text.get_content()
    assert "KeyError: &#x27;price&#x27; &lt;!channel&gt;" in page.get_content()
    assert "<b>&" not in page.get_content()


def test_a_repeated_email_has_the_same_message_id(server_tls: ssl.SSLContext) -> None:
    with MailServer(server_tls) as server:
        send(by_mail(server.url), EMAIL)
        send(by_mail(server.url), msgspec.structs.replace(EMAIL, attempts=1))
    assert len({mail["Message-ID"] for mail in server.mails}) == 1
    assert len(server.mails) == 2


def test_a_line_break_in_a_name_makes_no_header(server_tls: ssl.SSLContext) -> None:
    what = message(Channel.EMAIL, "a@example.com", item(pipeline_name="x\r\nBcc: evil@example.com"))
    with MailServer(server_tls) as server:
        send(by_mail(server.url), what)
    [mail] = server.mails
    assert mail["Bcc"] is None


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ({"AUTH": "535 no"}, AuthError),
        ({"RCPT": "550 no such user"}, Permanent),
        ({"RCPT": "450 try again later"}, Transient),
        ({"MAIL": "451 greylisted"}, Transient),
        ({"MAIL": "550 sender not allowed"}, Transient),
        ({"EHLO": "550 go away", "HELO": "550 go away"}, Transient),
        ({"GREETING": "554 not now"}, Transient),
        ({"STARTTLS": "554 no"}, Transient),
        ({"DATA": "554 looks like spam"}, Permanent),
        ({"DATA": "452 disk full"}, Transient),
        ({"MAIL": "hang up"}, Transient),
        ({"STARTTLS": "454 not now"}, Transient),
    ],
)
def test_what_a_mail_server_refuses(server_tls: ssl.SSLContext, replies: dict[str, str], error: type[ChmError]) -> None:
    with MailServer(server_tls, replies) as server, pytest.raises(ChmError) as caught:
        send(by_mail(server.url), EMAIL)
    assert type(caught.value) is error
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_mail_server_that_answers_byte_by_byte_is_given_up_at_the_deadline() -> None:
    with MailServer(None, {"MAIL": "drip"}, needs_login=False) as server, pytest.raises(Transient):
        channels = Channels(smtp_url=f"smtp+plain://127.0.0.1:{server.port}", policy=HttpPolicy(deadline=1))
        send(channels, EMAIL)
    assert server.mails == []


def test_no_password_is_sent_in_the_clear() -> None:
    with MailServer(None) as server, pytest.raises(ChmError, match="STARTTLS"):
        send(by_mail(server.url), EMAIL)
    assert "AUTH" not in server.in_clear


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with MailServer(context) as server, pytest.raises(Transient, match="certificate is not trusted"):
        send(by_mail(server.url), EMAIL)
    assert server.logins == 0


def test_a_relay_without_tls_has_to_be_asked_for() -> None:
    with MailServer(None, needs_login=False) as server:
        send(by_mail(f"smtp+plain://127.0.0.1:{server.port}"), EMAIL)
    assert len(server.mails) == 1


def test_a_mail_server_that_is_not_there_may_come_back() -> None:
    with pytest.raises(Transient, match="cannot reach the mail server"):
        send(by_mail("smtp://127.0.0.1:1"), EMAIL)
    with pytest.raises(ConfigError, match="CHM_SMTP_URL is not set"):
        send(Channels(), EMAIL)


# --- apprise ----------------------------------------------------------------------------------------------------------

APPRISE = message(Channel.APPRISE, "ops teams")


def by_apprise(server: FaultServer) -> Channels:
    address = server.base_url.replace("http://", "json://")
    return Channels(apprise_urls={"OPS_TEAMS": f"{address}/hooks/TOP-SECRET"})


def test_apprise_gets_the_subject_and_the_text() -> None:
    [request], error = received(status_reply(200), by_apprise, APPRISE)
    assert error is None
    assert request.path == "/base/hooks/TOP-SECRET"
    assert request.json["title"].endswith("failing since 2026-03-02 02:06 UTC, 2 failures in a row")
    assert "KeyError: 'price' <!channel>" in request.json["message"]


@pytest.mark.parametrize("answer", [status_reply(500), status_reply(404), then_reset(b"")])
def test_what_apprise_could_not_send_is_tried_again_and_shows_no_secret(
    answer: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    _, error = received(answer, by_apprise, APPRISE)
    assert isinstance(error, Transient)
    assert str(error) == "apprise ops teams: the service has not accepted the message"
    assert "SECRET" not in caplog.text


def test_an_address_that_is_not_set_up_for_apprise_is_named() -> None:
    with pytest.raises(ConfigError, match="CHM_APPRISE_URL_OPS_TEAMS is not set"):
        send(Channels(), APPRISE)
    with pytest.raises(ConfigError, match="not an address") as caught:
        send(Channels(apprise_urls={"OPS_TEAMS": "nothing://SECRET"}), APPRISE)
    assert "SECRET" not in str(caught.value)


def test_no_secret_is_in_a_repr() -> None:
    channels = replace(
        by_mail(f"smtp://u:{PASSWORD}@h"),
        slack_token="xoxb-SECRET",
        slack_webhook="https://h/SECRET",
        endpoints={"a": Endpoint("https://h/SECRET", "SECRET")},
        apprise_urls={"a": "discord://SECRET"},
    )
    assert "SECRET" not in repr(channels)
    assert PASSWORD not in repr(channels)
