"""Shared by the HTTP tests: a controlled clock, and a client that does not really wait."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chm_dagster.http.client import DEFAULT_POLICY, HttpClient, HttpPolicy

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
TOKEN = "sentinel-token-4711"


@dataclass
class Slept:
    """Records how long the backoff would have waited."""

    seconds: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def partner_http(
    base_url: str,
    *,
    token: str | None = TOKEN,
    policy: HttpPolicy = DEFAULT_POLICY,
    slept: Slept | None = None,
    random: Callable[[], float] = lambda: 1.0,
    clock: Callable[[], datetime] = lambda: NOW,
) -> HttpClient:
    return HttpClient(
        "connection acme", base_url, token=token, policy=policy, clock=clock, sleep=slept or Slept(), random=random
    )
