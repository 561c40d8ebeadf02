"""What a page's address says: which part of the world to show. Every link of the board is made here."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from chm_dagster.domain.fields import read_time
from chm_dagster.domain.limits import INT_MAX
from chm_dagster.domain.pipelines import Environment, Health, Platform
from chm_dagster.domain.validation import did_you_mean, read_value, shown
from chm_dagster.domain.values import clean_text
from chm_dagster.errors import InputError
from chm_dagster.warehouse.scope import check_at

DAYS = (1, 7, 30)
"""The time spans that a page offers."""
CHANGES = ("regression", "still failing", "fixed", "new")
MAX_TEXT = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Filters:
    """The filters of a page. None filters nothing; `skip` is how many rows of its list come before it.

    `at` is the time in the past that the page is about; None is now.
    """

    client: str | None = None
    environment: str | None = None
    health: str | None = None
    change: str | None = None
    text: str | None = None
    skip: int = 0
    platform: str | None = None
    days: int = 7
    error: str | None = None
    at: datetime | None = None

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "Filters":
        """The filters of a query string; an empty value is none. Raises InputError, also for an unknown name."""
        given = {name: value for name, value in query.items() if value}
        for name in given:
            if name not in _NAMES:
                raise InputError(shown(name), f"unknown filter; {did_you_mean(name, _NAMES) or _KNOWN}")
        if "environment" in given:
            read_value(Environment, given["environment"], "environment")
        if "health" in given:
            read_value(Health, given["health"], "health")
        if given.get("change", "new") not in CHANGES:
            raise InputError("change", f"must be one of {', '.join(CHANGES)}")
        if "platform" in given:
            read_value(Platform, given["platform"], "platform")
        if given.get("days", "7") not in map(str, DAYS):
            raise InputError("days", f"must be one of {', '.join(map(str, DAYS))}")
        for name in ("q", "error"):
            if name in given and (len(given[name]) > MAX_TEXT or clean_text(given[name]) != given[name]):
                raise InputError(name, f"must be plain text of at most {MAX_TEXT} characters")
        return cls(
            given.get("client"),
            given.get("environment"),
            given.get("health"),
            given.get("change"),
            given.get("q"),
            whole_number(given.get("from", "0"), "from"),
            given.get("platform"),
            int(given.get("days", "7")),
            given.get("error"),
            _time(given.get("at")),
        )

    def link(self, path: str, **changes: Any) -> str:
        """The address of a page with these filters, less its own place in a list, with some of them changed."""
        kept = {"client": self.client, "environment": self.environment, "at": self.at, **changes}
        values = {_PARAMETERS.get(name, name): _shown(value) for name, value in kept.items() if value}
        return path + (f"?{urlencode(values, quote_via=quote)}" if values else "")

    @property
    def own(self) -> dict[str, Any]:
        """The filters of one page, which links to other pages leave out."""
        days = None if self.days == 7 else self.days
        return {
            "health": self.health,
            "change": self.change,
            "text": self.text,
            "platform": self.platform,
            "days": days,
            "error": self.error,
        }

    def same(self, path: str, **more: Any) -> str:
        """The address of a page about the same time, with no other filter than these."""
        return self.link(path, **{"client": None, "environment": None, **more})

    def run(self, client_slug: str, slug: str, run: str, **more: Any) -> str:
        """The address of a run's page about the same time. Ids of runs may hold anything, slashes too."""
        return self.same(f"{pipeline_path(client_slug, slug)}/run", id=run, **more)

    @property
    def timed(self) -> dict[str, Any]:
        """The parameters that questions about now take."""
        return {**self.scope, "at": self.at}

    @property
    def scope(self) -> dict[str, str | None]:
        """The parameters that every question about health takes."""
        return {"client_slug": self.client, "environment": self.environment}


_PARAMETERS = {"text": "q", "skip": "from"}
_NAMES = ("client", "environment", "health", "change", "q", "from", "platform", "days", "error", "at")
_KNOWN = f"there are {', '.join(_NAMES)}"


def whole_number(text: str, field: str) -> int:
    """A number of an address. Raises InputError."""
    if not (text.isascii() and text.isdigit()):
        raise InputError(field, "must be a whole number, not negative")
    if len(text) > 10 or int(text) > INT_MAX:
        raise InputError(field, f"must be a whole number of at most {INT_MAX:,}")
    return int(text)


def _time(text: str | None) -> datetime | None:
    """A time without a zone is in UTC, as the form says."""
    now = datetime.now(UTC)
    at = None if text is None else read_time(text, "at", now, zone=UTC)
    check_at(at, now)
    return at


def _shown(value: Any) -> Any:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value


def client_path(slug: str) -> str:
    """The address of a client's page."""
    return f"/clients/{quote(slug, safe='')}"


def pipeline_path(client_slug: str, slug: str) -> str:
    """The address of a pipeline's page."""
    return f"{client_path(client_slug)}/{quote(slug, safe='')}"
