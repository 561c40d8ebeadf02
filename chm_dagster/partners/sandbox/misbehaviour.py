"""Faults that the sandbox can simulate on request.

Rules are kept in memory only: a restart of the sandbox clears them.
"""

import dataclasses
import enum
import math
from collections.abc import Collection
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chm_dagster.errors import InputError

MAX_SECONDS = 3600.0


class Kind(enum.StrEnum):
    """All kinds of misbehaviour."""

    RATE_LIMIT = "rate_limit"
    RATE_LIMIT_DATE = "rate_limit_date"
    SERVER_ERROR = "server_error"
    SLOW = "slow"
    TRUNCATED = "truncated"
    GARBAGE = "garbage"
    HTML = "html"
    UNAUTHORIZED = "unauthorized"
    BAD_RECORDS = "bad_records"
    CURSOR_LOOP = "cursor_loop"
    MISSING_PIPELINE = "missing_pipeline"


class Endpoint(enum.Enum):
    """The requested listing."""

    PIPELINE_RUNS = enum.auto()
    ACCOUNT_RUNS = enum.auto()
    INVENTORY = enum.auto()


_ONLY_RUNS = frozenset({Kind.BAD_RECORDS, Kind.CURSOR_LOOP})


@dataclasses.dataclass(slots=True)
class Misbehaviour:
    """One rule. `external_id` None: every listing; `times` None: until cleared.

    `seconds` is the delay of `slow`, and the Retry-After of the rate limits.
    """

    kind: Kind
    external_id: str | None = None
    times: int | None = None
    seconds: float = 2.0

    @classmethod
    def from_json(cls, body: Any, known_ids: Collection[str]) -> "Misbehaviour":
        """Read a rule. Raises InputError naming the wrong field."""
        if not isinstance(body, dict) or set(body) - {"kind", "external_id", "times", "seconds"}:
            raise InputError("body", "must be an object of kind, external_id, times and seconds")
        kind, external_id, times = body.get("kind"), body.get("external_id"), body.get("times")
        seconds = body.get("seconds", 2.0)
        if kind not in list(Kind):
            raise InputError("kind", f"must be one of {', '.join(Kind)}")
        if external_id is not None and external_id not in known_ids:
            raise InputError("external_id", "must be null or the id of a pipeline")
        if times is not None and (type(times) is not int or times < 1):
            raise InputError("times", "must be null or an integer of at least 1")
        if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_SECONDS:
            raise InputError("seconds", f"must be a number from 0 to {MAX_SECONDS:.0f}")
        return cls(Kind(kind), external_id, times, float(seconds))

    @classmethod
    def from_text(cls, text: str, known_ids: Collection[str]) -> "Misbehaviour":
        """Read `kind[@external_id][*times]`. Raises InputError."""
        rest, star, times = text.partition("*")
        if star and not (times.isascii() and times.isdigit() and len(times) < 10):
            raise InputError("times", "must be an integer of at least 1")
        kind, _, external_id = rest.partition("@")
        return cls.from_json(
            {"kind": kind, "external_id": external_id or None, "times": int(times) if star else None}, known_ids
        )

    def as_json(self) -> dict[str, Any]:
        """The format that `from_json` reads; `times` is the remaining number."""
        return dataclasses.asdict(self)

    def applies(self, endpoint: Endpoint, external_id: str | None) -> bool:
        """Whether the rule applies to a request. Rules for one pipeline never affect the account-wide listings."""
        if self.external_id is not None:
            return self.external_id == external_id
        if self.kind is Kind.MISSING_PIPELINE:
            return endpoint is Endpoint.PIPELINE_RUNS
        return not (self.kind in _ONLY_RUNS and endpoint is Endpoint.INVENTORY)


class Misbehaviours:
    """The active rules, oldest first. The first rule that applies to a request is used."""

    def __init__(self) -> None:
        self._rules: list[Misbehaviour] = []

    def add(self, rule: Misbehaviour) -> None:
        """Activate a rule."""
        self._rules.append(rule)

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def as_json(self) -> list[dict[str, Any]]:
        """The active rules."""
        return [rule.as_json() for rule in self._rules]

    def take(self, endpoint: Endpoint, external_id: str | None = None) -> Misbehaviour | None:
        """The rule for this request, if any; counts as one of its `times`."""
        for rule in self._rules:
            if rule.applies(endpoint, external_id):
                if rule.times is not None:
                    rule.times -= 1
                    if rule.times == 0:
                        self._rules.remove(rule)
                return rule
        return None


class TruncatedResponse(Response):
    """Announces its full length, sends half of it, and closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Never finishes the response, which makes the server close the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})


def wrong_response(rule: Misbehaviour, now: datetime) -> Response | None:
    """The response instead of a listing; None for kinds that only modify a good response."""
    wait = math.ceil(rule.seconds)
    match rule.kind:
        case Kind.RATE_LIMIT:
            return _error(429, "rate_limited", {"Retry-After": str(wait)})
        case Kind.RATE_LIMIT_DATE:
            return _error(429, "rate_limited", {"Retry-After": http_date(now + timedelta(seconds=wait))})
        case Kind.SERVER_ERROR:
            return _error(500, "internal_error", {})
        case Kind.UNAUTHORIZED:
            return _error(401, "unauthorized", {"WWW-Authenticate": 'Bearer realm="sandbox"'})
        case Kind.MISSING_PIPELINE:
            return _error(404, "not_found", {})
        case Kind.GARBAGE:
            return Response(b'{"runs": [{"id": 1, "status": \x00\xff\xfe NaN, ]]', media_type="application/json")
        case Kind.HTML:
            page = "<!doctype html><title>Sign in</title><form method=post><input name=user></form>"
            return Response(page, media_type="text/html")
        case _:
            return None


def bad_records(good: dict[str, Any]) -> list[dict[str, Any]]:
    """Records with one defect each, derived from a good one. Their ids never change: a replay is identical."""
    return [
        {name: value for name, value in good.items() if name != "id"},
        {**good, "id": "sandbox-naive-time", "started_at": "2026-01-31T10:00:00"},
        {**good, "id": "sandbox-nan", "duration_seconds": "NaN", "rows_processed": "Infinity"},
        {**good, "id": "sandbox-unknown-status", "status": "hibernating"},
        {**good, "id": "sandbox-no-time", "started_at": "yesterday at noon"},
        {**good, "id": None},
    ]


def mixed_with_bad(records: list[dict[str, Any]], model: dict[str, Any]) -> list[dict[str, Any]]:
    """All of `records`, with a bad one after each of the first six, or at the end."""
    bad = bad_records(model)
    mixed = [entry for pair in zip(records, bad, strict=False) for entry in pair]
    return mixed + records[len(bad) :] + bad[len(records) :]


def http_date(when: datetime) -> str:
    """A date as in HTTP headers; fractions of a second are dropped."""
    return format_datetime(when.replace(microsecond=0), usegmt=True)


def _error(status: int, code: str, headers: dict[str, str]) -> Response:
    body = f'{{"error": {{"code": "{code}", "message": "simulated by the sandbox"}}}}'
    return Response(body, status, headers, media_type="application/json")
