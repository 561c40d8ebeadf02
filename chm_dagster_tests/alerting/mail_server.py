"""A small SMTP server on loopback: EHLO, STARTTLS, AUTH PLAIN and LOGIN, and whatever it is to refuse."""

import asyncio
import base64
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from types import TracebackType
from typing import Self

USER, PASSWORD = "chm", "s3cret/with:signs"


@dataclass
class MailServer:
    """Answers as a submission server does. `replies` replaces the answer to a command, such as `{"RCPT": "550 no"}`, or has it `drip` or `hang up`;
    `GREETING` is what it says first.

    Runs in a thread of its own. `mails` are what was accepted, `in_clear` the commands that came without TLS.
    """

    tls: ssl.SSLContext | None
    replies: Mapping[str, str] = field(default_factory=dict)
    needs_login: bool = True
    mails: list[EmailMessage] = field(default_factory=list)
    receivers: list[str] = field(default_factory=list)
    in_clear: list[str] = field(default_factory=list)
    logins: int = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
            self.port: int = self._server.sockets[0].getsockname()[1]
            started.set()

        def run() -> None:
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"smtp://{USER}:s3cret%2Fwith%3Asigns@127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = logged_in = False
        writer.write(f"{self.replies.get('GREETING', '220 mail.example ESMTP')}\r\n".encode())
        while line := (await reader.readline()).decode().strip():
            verb = line.split()[0].upper()
            if not secure:
                self.in_clear.append(verb)
            if verb in self.replies:
                if self.replies[verb] == "hang up":
                    break
                if self.replies[verb] == "drip":
                    # Faster than any limit of a single read, and eight seconds in all.
                    for byte in b"250 " + b"o" * 36 + b"\r\n":
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0.2)
                    continue
                writer.write(f"{self.replies[verb]}\r\n".encode())
            elif verb == "EHLO":
                extra = b"250-AUTH PLAIN LOGIN\r\n" if secure or self.tls is None else b"250-STARTTLS\r\n"
                writer.write(b"250-mail.example\r\n" + extra + b"250 8BITMIME\r\n")
            elif verb == "STARTTLS" and self.tls is not None:
                writer.write(b"220 go ahead\r\n")
                await writer.drain()
                await writer.start_tls(self.tls)
                secure = True
            elif verb == "AUTH":
                given = base64.b64decode(line.split()[2]).split(b"\0")
                logged_in = given[1:] == [USER.encode(), PASSWORD.encode()]
                self.logins += logged_in
                writer.write(b"235 welcome\r\n" if logged_in else b"535 wrong user or password\r\n")
            elif verb == "MAIL" and self.needs_login and not logged_in:
                writer.write(b"530 log in first\r\n")
            elif verb == "RCPT":
                self.receivers.append(line)
                writer.write(b"250 ok\r\n")
            elif verb == "DATA":
                writer.write(b"354 go ahead\r\n")
                content = await reader.readuntil(b"\r\n.\r\n")
                found = message_from_bytes(content[:-3], policy=policy.default)
                assert isinstance(found, EmailMessage)
                self.mails.append(found)
                writer.write(b"250 accepted\r\n")
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 ok\r\n")
            await writer.drain()
        writer.close()
