"""What the tests need from every real server: its own view of every run."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx

ATTEMPTS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """What CHM should know about a run, read from the server itself without CHM's code."""

    status: str
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, status: str, started: datetime | None, finished: datetime | None, *waiting: datetime | None) -> "Word":
        """A run that has not started is placed at the newest time since when it has waited, unless that is in the future."""
        since = max((moment for moment in waiting if moment), default=None)
        if started is None and since is not None and since <= datetime.now(UTC):
            started = since
        return cls(status, started, None if status == "running" else finished)


Words = Mapping[tuple[str, str], Word]
"""By the pipeline's external id and run id."""


class RealServer(Protocol):
    base_url: str

    def words(self) -> Words:
        """The server's own list of all runs that happened or are happening."""
        ...


def differences(server: Words, ledger: Words) -> list[str]:
    """A description of every run on which the two disagree."""
    found = [f"{key}: {server[key]} at the server, not in the ledger" for key in server.keys() - ledger.keys()]
    found += [f"{key}: {ledger[key]} in the ledger, not at the server" for key in ledger.keys() - server.keys()]
    for key in server.keys() & ledger.keys():
        if server[key] != ledger[key]:
            found.append(f"{key}: {server[key]} at the server, {ledger[key]} in the ledger")
    return sorted(found)


def ask(
    client: httpx.Client, method: str, path: str, *, expect: Collection[int] = (200, 201, 204), **options: Any
) -> httpx.Response:
    """One request. These servers run on SQLite: during writes they sometimes return 500 or 503, which means "try again"."""
    for attempt in range(ATTEMPTS):
        answer = client.request(method, path, **options)
        if answer.status_code not in (500, 503):
            break
        time.sleep(0.1 * 2**attempt)
    assert answer.status_code in expect, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
    return answer


def wait_until(what: str, met: Callable[[], bool], seconds: float = 180.0) -> None:
    """Poll until it is true; fail with its name on timeout."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.25)


def moment(text: str | None) -> datetime | None:
    """A time in the format of these servers."""
    return datetime.fromisoformat(text) if text else None
