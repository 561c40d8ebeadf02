"""Channels: how a message reaches its receiver, once, under the message's id. Repeating is up to the delivery.

Secrets live in `Channels` only; none appears in a repr, an error or a log line.
"""

import asyncio
import base64
import binascii
import dataclasses
import hashlib
import hmac
import logging
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

import orjson

from chm_dagster.alerting.inbox import Inbox
from chm_dagster.domain.messages import Message
from chm_dagster.domain.rules import Channel
from chm_dagster.errors import AuthError, ConfigError, Permanent, RateLimited, RemoteError, Transient
from chm_dagster.http.client import HttpPolicy, post_once
from chm_dagster.presentation.alerts import html, payload, plain, slack, subject

SLACK_API = "https://slack.com/api"
_POLICY = HttpPolicy(deadline=20.0)
_MAX_SUBJECT = 150
_UNREADABLE = frozenset({"msg_too_long", "invalid_blocks", "invalid_blocks_format", "invalid_arguments", "no_text"})
"""What Slack says of a message that it will never accept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """A webhook's address and the secret that signs what is sent there: `whsec_` and base64, or any text."""

    url: str = dataclasses.field(repr=False)
    secret: str | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Channels:
    """Sends messages. What is None, or is not among the endpoints, is not set up.

    `slack_webhook` is one incoming webhook for all channels; with a `slack_token`, messages are posted to the channel
    that the rule names. `smtp_url` is `smtp://user:password@host:587` (STARTTLS, required), `smtps://...` (TLS), or
    `smtp+plain://host:25` (no encryption: for a relay on this machine). `endpoints` and `apprise_urls` go by their
    `variable_name`. `inbox` keeps what is sent to it. Messages link to the board at `board_url`.
    """

    slack_webhook: str | None = dataclasses.field(default=None, repr=False)
    slack_token: str | None = dataclasses.field(default=None, repr=False)
    slack_api: str = SLACK_API
    smtp_url: str | None = dataclasses.field(default=None, repr=False)
    email_from: str = "chm@localhost"
    endpoints: Mapping[str, Endpoint] = dataclasses.field(default_factory=dict)
    apprise_urls: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    inbox: Inbox | None = None
    board_url: str | None = None
    policy: HttpPolicy = _POLICY

    async def send(self, message: Message, now: datetime) -> None:
        """Send a message once. Returns when its receiver has accepted it.

        Raises ConfigError if the channel is not set up, AuthError, RateLimited, Transient, or Permanent if this message
        will be refused again.
        """
        match message.channel:
            case Channel.SLACK:
                await self._slack(message)
            case Channel.EMAIL:
                await asyncio.to_thread(self.send_mail, email(message, self.email_from, now, self.board_url))
            case Channel.WEBHOOK:
                await self._webhook(message, now)
            case Channel.APPRISE:
                await asyncio.to_thread(self._apprise, message)
            case Channel.INBOX:
                if self.inbox is None:
                    raise ConfigError("inbox: there is no folder for it")
                await asyncio.to_thread(self.inbox.put, message)

    async def _slack(self, message: Message) -> None:
        content = {
            **slack(message, self.board_url),
            "metadata": {"event_type": "chm_alert", "event_payload": {"id": str(message.id)}},
        }
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if self.slack_token is None:
            if self.slack_webhook is None:
                raise ConfigError("slack: neither CHM_SLACK_WEBHOOK_URL nor CHM_SLACK_BOT_TOKEN is set")
            del content["metadata"]  # incoming webhooks refuse it
            await post_once("slack", self.slack_webhook, orjson.dumps(content), headers, policy=self.policy)
            return
        content["channel"] = message.destination
        headers["Authorization"] = f"Bearer {self.slack_token}"
        url = f"{self.slack_api}/chat.postMessage"
        body = orjson.dumps(content)
        _accepted_by_slack(await post_once("slack", url, body, headers, policy=self.policy, reads_body=True))

    async def _webhook(self, message: Message, now: datetime) -> None:
        name = variable_name(message.destination)
        endpoint = self.endpoints.get(name)
        label = f"webhook {message.destination}"
        if endpoint is None:
            raise ConfigError(f"{label}: CHM_WEBHOOK_URL_{name} is not set")
        body = orjson.dumps(payload(message, self.board_url))
        headers = {"Content-Type": "application/json", **signed(str(message.id), now, body, endpoint.secret)}
        await post_once(label, endpoint.url, body, headers, policy=self.policy)

    def send_mail(self, mail: EmailMessage) -> None:
        """Hand an email to the mail server. Raises as `send` does."""
        if self.smtp_url is None:
            raise ConfigError("email: CHM_SMTP_URL is not set")
        failure: RemoteError | None = None
        try:
            with _smtp(self.smtp_url, self.policy.deadline) as server:
                server.send_message(mail)
        except smtplib.SMTPException as error:
            failure = _smtp_failure(error)
        except OSError as error:
            failure = Transient(f"email: cannot reach the mail server ({_problem(error)})")
        # Raised outside of the handlers: what the server said may quote an address or a password.
        if failure is not None:
            raise failure

    def _apprise(self, message: Message) -> None:
        name = variable_name(message.destination)
        label = f"apprise {message.destination}"
        try:
            import apprise
        except ImportError:
            raise ConfigError(f"{label}: needs the library apprise; install chm-dagster[apprise]") from None
        if (url := self.apprise_urls.get(name)) is None:
            raise ConfigError(f"{label}: CHM_APPRISE_URL_{name} is not set")
        # Its log lines may quote addresses.
        logging.getLogger("apprise").setLevel(logging.CRITICAL)
        service = apprise.Apprise(asset=apprise.AppriseAsset(app_id="CHM", async_mode=False, secure_logging=True))
        if not service.add(url):
            raise ConfigError(f"{label}: CHM_APPRISE_URL_{name} is not an address that apprise can read")
        if not service.notify(
            title=subject(message), body=plain(message, self.board_url), body_format=apprise.NotifyFormat.TEXT
        ):
            raise Transient(f"{label}: the service has not accepted the message")


def variable_name(destination: str) -> str:
    """What stands for an endpoint's name in the variables that hold its address and its secret."""
    return re.sub(r"[^A-Z0-9]", "_", destination.upper())


def signed(message_id: str, now: datetime, body: bytes, secret: str | None) -> dict[str, str]:
    """The headers of Standard Webhooks for a body: id, timestamp and, with a secret, the signature."""
    stamp = str(int(now.timestamp()))
    headers = {"webhook-id": message_id, "webhook-timestamp": stamp}
    if secret is not None:
        digest = hmac.new(_key(secret), f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        return secret.encode()


def _accepted_by_slack(body: bytes) -> None:
    """Slack answers 200 to what it refuses. Raises what its error means."""
    try:
        answer = orjson.loads(body)
        is_ok, reason = bool(answer["ok"]), str(answer.get("error", ""))[:100]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Transient("slack: the response is not one of Slack's API") from None
    if is_ok:
        return
    if reason in ("invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "missing_scope"):
        raise AuthError(f"slack: {reason}; check CHM_SLACK_BOT_TOKEN")
    if reason in ("ratelimited", "rate_limited"):
        raise RateLimited("slack: rate limited")
    if reason in ("internal_error", "fatal_error", "service_unavailable", "request_timeout"):
        raise Transient(f"slack: {reason}")
    if reason in _UNREADABLE:
        raise Permanent(f"slack: refused the message ({reason})")
    # A channel can be created, or the app invited to it, before the day is over.
    raise Transient(f"slack: refused ({reason})")


def email(message: Message, sender: str, now: datetime, board_url: str | None = None) -> EmailMessage:
    """The email of a message. Its Message-ID is the same for every attempt."""
    mail = EmailMessage()
    mail["From"], mail["To"] = sender, message.destination
    # A line break in a name would begin another header.
    mail["Subject"] = " ".join(subject(message).split())[:_MAX_SUBJECT]
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = f"<{message.id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(plain(message, board_url))
    mail.add_alternative(html(message, board_url), subtype="html")
    return mail


@contextmanager
def _smtp(url: str, seconds: float) -> Iterator[smtplib.SMTP]:
    """A session with the mail server that ends after so many seconds, however slowly it answers."""
    parts = urlsplit(url)
    host, trust, begun = parts.hostname or "", ssl.create_default_context(), time.monotonic()
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, parts.port or 465, timeout=seconds, context=trust)
    else:
        server = smtplib.SMTP(host, parts.port or 587, timeout=seconds)
    # The library's own limit is for each read: a server that sends a byte now and then would hold it for ever.
    left = max(seconds - (time.monotonic() - begun), 0)
    watch = threading.Timer(left, _break_off, [server])
    watch.daemon = True
    watch.start()
    try:
        # A password, and what clients' errors say, must not be sent in the clear.
        if parts.scheme == "smtp":
            server.starttls(context=trust)
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        yield server
        # It has accepted the message; whatever becomes of the farewell changes nothing.
        with suppress(smtplib.SMTPException, OSError):
            server.quit()
    finally:
        watch.cancel()
        server.close()


def _break_off(server: smtplib.SMTP) -> None:
    with suppress(OSError):
        if server.sock is not None:
            server.sock.shutdown(socket.SHUT_RDWR)


def _smtp_failure(error: smtplib.SMTPException) -> RemoteError:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return AuthError("email: the mail server refuses the user or the password in CHM_SMTP_URL")
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return Transient(
            "email: the mail server offers no STARTTLS; use smtps://, or smtp+plain:// on a trusted network"
        )
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        return _refused(codes[0] if codes else 0, "the receiver")
    if isinstance(error, smtplib.SMTPDataError):
        return _refused(error.smtp_code, "the message")
    if isinstance(error, smtplib.SMTPResponseException):
        # The greeting, HELO, STARTTLS and MAIL are about the connection or the sender: a person can mend those.
        return Transient(f"email: the mail server refuses CHM ({error.smtp_code})")
    return Transient("email: the mail server closed the connection")


def _refused(code: int, what: str) -> RemoteError:
    text = f"email: the mail server refuses {what} ({code})"
    return Permanent(text) if 500 <= code < 600 else Transient(text)


def _problem(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    return "timed out" if isinstance(error, TimeoutError) else (error.strerror or "connection lost").lower()
