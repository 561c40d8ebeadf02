"""Alerts of a running `chm up`: opened, grouped, recovered and corrected, by a real mail server and a signed webhook."""

import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chm_dagster.serving import serve_in_thread
from chm_dagster_tests.alerting.mail_server import MailServer
from chm_dagster_tests.e2e.conftest import READY, Up, until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECONDS = 180
"""Long enough for a slow machine: the rules are evaluated every 30 s, and each delivery is a Dagster run."""


class Webhook:
    """Keeps what the reference library of Standard Webhooks verifies, and counts what it does not."""

    def __init__(self) -> None:
        self.messages: dict[str, dict[str, Any]] = {}
        self.forged = 0
        self.app = Starlette(routes=[Route("/hook", self._hear, methods=["POST"])])

    async def _hear(self, request: Request) -> Response:
        body = await request.body()
        try:
            self.messages[request.headers["webhook-id"]] = standardwebhooks.Webhook(SECRET).verify(
                body, dict(request.headers)
            )
        except standardwebhooks.WebhookVerificationError:
            self.forged += 1
        return Response(status_code=204)

    @property
    def heard(self) -> list[str]:
        """What the messages announce."""
        return [notice for message in self.by_message for notice in message]

    @property
    def by_message(self) -> list[list[str]]:
        return [[f"{n['kind']} {n['pipeline']}" for n in m["data"]["notices"]] for m in self.messages.values()]


@pytest.fixture
def webhook() -> Iterator[tuple[Webhook, str]]:
    found = Webhook()
    with serve_in_thread(found.app) as url:
        yield found, f"{url}/hook"


def chm(running: Up, *words: str) -> None:
    """A command as a person gives it."""
    command = [sys.executable, "-m", "chm_dagster.cli.main", *words]
    ended = subprocess.run(command, env=running.environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_an_alert_opens_is_grouped_recovers_and_is_corrected_by_mail_and_by_webhook(
    up: Callable[[], Up],
    server_tls: ssl.SSLContext,
    webhook: tuple[Webhook, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver, url = webhook
    with MailServer(server_tls) as mail_server:
        monkeypatch.setenv("CHM_SANDBOX", "off")
        monkeypatch.setenv("CHM_SMTP_URL", mail_server.url)
        monkeypatch.setenv("CHM_SMTP_FROM", "CHM <chm@monitor.example>")
        monkeypatch.setenv("CHM_WEBHOOK_URL_OPS", url)
        monkeypatch.setenv("CHM_WEBHOOK_SECRET_OPS", SECRET)
        running = up()
        running.wait_for(READY)
        chm(running, "client", "create", "Acme")
        for name in ("Orders", "Stock"):
            chm(running, "pipeline", "create", "acme", name, "--platform", "custom", "--type", "ingestion")
        for channel, destination in (("email", "oncall@example.com"), ("webhook", "ops")):
            rule = ("--type", "on_failure", "--channel", channel, "--destination", destination)
            chm(running, "rule", "create", "--client", "acme", *rule)
        begin = datetime.now(UTC) - timedelta(minutes=10)

        def record(pipeline: str, run: str, status: str, start: float, end: float, *more: str) -> None:
            times = [(begin + timedelta(minutes=minutes)).isoformat() for minutes in (start, end)]
            chm(running, "run", "record", f"acme/{pipeline}", "--run", run, "--status", status, *more,
                "--started-at", times[0], "--finished-at", times[1])  # fmt: skip

        record("orders", "r1", "failed", 0, 2, "--error", "KeyError: 'price'")
        record("stock", "r1", "failed", 0, 2, "--error", "disk full")
        opened = ["opened acme/orders", "opened acme/stock"]
        assert until(lambda: sorted(receiver.heard) == opened, SECONDS), receiver.heard
        record("orders", "r2", "success", 4, 5)
        assert until(lambda: "recovered acme/orders" in receiver.heard, SECONDS), receiver.heard
        # It started after the run that failed and was over before it: the pipeline never failed.
        record("stock", "r2", "success", 1, 1.5)
        assert until(lambda: "corrected acme/stock" in receiver.heard, SECONDS), receiver.heard
        assert until(lambda: len(mail_server.mails) == len(receiver.messages), SECONDS)
        assert running.stop() == 0
    assert receiver.forged == 0
    assert receiver.by_message[-2:] == [["recovered acme/orders"], ["corrected acme/stock"]]
    assert (set(mail_server.in_clear), mail_server.logins) == ({"EHLO", "STARTTLS"}, len(mail_server.mails))
    subjects = [mail["Subject"].strip() for mail in mail_server.mails]
    assert sorted(subjects) == sorted(message["data"]["subject"] for message in receiver.messages.values())
    text = mail_server.mails[0].get_body(("plain",))
    assert text is not None
    assert "KeyError: 'price'" in text.get_content() or "disk full" in text.get_content()
