"""The columns and sentences of each health question, shared by the terminal, Dagster's metadata and HTML pages."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from chm_dagster.domain.error_text import error_summary

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
DATE_AFTER_DAYS = 90
"""A time further away than this is shown as its date."""


def ago(time: datetime, now: datetime) -> str:
    """How long ago, in one unit: `12 s ago`, `5 min ago`, `2 h ago`, `3 d ago`; the date beyond 90 days."""
    seconds = (now - time).total_seconds()
    if abs(seconds) >= DATE_AFTER_DAYS * 86_400:
        return f"{time:%Y-%m-%d}"
    if abs(seconds) < 1:
        return "just now"
    text = _one_unit(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def _one_unit(seconds: float) -> str:
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3_600:
        return f"{seconds // 60:.0f} min"
    if seconds < 48 * 3_600:
        return f"{seconds // 3_600:.0f} h"
    return f"{seconds // 86_400:.0f} d"


def duration(seconds: float) -> str:
    """How long, in the two largest units: `0.4 s`, `45 s`, `10 min`, `1 h 5 min`, `2 d 3 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    parts = []
    for unit, size in _UNITS:
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def to_the_minute(time: datetime) -> str:
    """A time in UTC: `2026-03-01 06:00`."""
    return f"{time:%Y-%m-%d %H:%M}"


def count(number: int, noun: str) -> str:
    """A number and its noun: `1 pipeline`, `1,204 pipelines`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plural(number: int, noun: str) -> str:
    """The noun alone, as it follows this number."""
    return noun if number == 1 else f"{noun}s"


def listed(names: Sequence[str], shown: int = 10) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names grouped by their reason, from (name, reason) pairs; the reason that most share comes first."""
    groups: dict[str, list[str]] = {}
    for name, reason in pairs:
        groups.setdefault(reason, []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


Row = Mapping[str, Any]

CAPPED_FAILURES = 1_000
"""The highest count of `failing_now`."""
SHAPES = {"S": "●", "F": "✕", "R": "◐", "C": "○", "-": "·"}
"""A status by its letter in a strip of runs: the shape shows it where there is no colour."""

STATUS_SHAPES = {"success": "●", "failed": "✕", "running": "◐", "canceled": "○", "skipped": "·"}
HEALTH_SHAPES = {"failing": "✕", "late": "▲", "overrunning": "▶", "unknown": "?", "healthy": "●", "paused": "‖"}


class Kind(enum.Enum):
    """How the values of a column are formatted, where their type does not say it."""

    PLAIN = enum.auto()
    SECONDS = enum.auto()
    SHARE = enum.auto()
    STRIP = enum.auto()
    LINK = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. On a narrow terminal, columns of the highest `rank` are dropped first, but never rank 0.

    An `elastic` column may be shortened to one line per cell. One with `page_only` is shown in Markdown and HTML.
    """

    name: str
    header: str = ""
    rank: int = 0
    elastic: bool = False
    kind: Kind = Kind.PLAIN
    page_only: bool = False

    @property
    def title(self) -> str:
        """The heading of the column."""
        return self.header or self.name.replace("_", " ")


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A block of the SQL contract as people see it: its title, its columns, and what to say if it has no rows."""

    title: str
    columns: tuple[Column, ...]
    empty: str


_PIPELINE = Column("pipeline")
_ENVIRONMENT = Column("environment", page_only=True)
_WHY = Column("why", elastic=True, rank=1)
_RUN = Column("source_url", "run", kind=Kind.LINK, page_only=True)

FAILING = Question(
    "Failing now",
    (
        _PIPELINE,
        Column("failing_since", "since"),
        Column("streak", "in a row"),
        Column("last_success_at", "last success", rank=2),
        _WHY,
        Column("platform", page_only=True),
        _ENVIRONMENT,
        _RUN,
    ),
    "Nothing is failing.",
)
ATTENTION = Question(
    "Needs attention",
    (
        _PIPELINE,
        Column("health"),
        Column("health_since", "since"),
        _WHY,
        Column("read_at", "read", rank=2),
        Column("platform", page_only=True),
        _ENVIRONMENT,
        _RUN,
    ),
    "Nothing needs attention.",
)
CHANGED = Question(
    "What changed",
    (
        Column("change"),
        _PIPELINE,
        Column("effective_at", "latest run"),
        Column("platform", rank=2),
        _WHY,
        _ENVIRONMENT,
        _RUN,
    ),
    "Nothing changed.",
)
FLAKY = Question(
    "Flaky pipelines",
    (
        _PIPELINE,
        Column("flip_rate", "flips", kind=Kind.SHARE),
        Column("recoveries", rank=3),
        Column("failures", "failed", rank=2),
        Column("settled_runs", "of", rank=2),
        Column("history", "oldest to latest", kind=Kind.STRIP, rank=1),
    ),
    "No pipeline is flaky.",
)
LATEST = Question(
    "Latest runs",
    (
        _PIPELINE,
        Column("health", rank=1),
        Column("status"),
        Column("started_at", "started"),
        Column("duration_seconds", "took", rank=2, kind=Kind.SECONDS),
        _WHY,
        Column("due_at", "due", rank=3),
        Column("read_at", "read", rank=3),
    ),
    "No active pipelines yet. Add one: chm pipeline create",
)
CLIENTS = Question(
    "Clients",
    (
        Column("client_name", "client", elastic=True),
        Column("health"),
        Column("pipelines"),
        Column("failing"),
        Column("late"),
        Column("overrunning", rank=1),
        Column("unknown", rank=1),
        Column("healthy"),
        Column("in_maintenance", "maintenance", rank=2),
        Column("paused", rank=4),
        Column("running", rank=2),
        Column("success", rank=4),
        Column("failed", rank=4),
        Column("canceled", rank=4),
        Column("skipped", rank=4),
        Column("never_ran", rank=4),
        Column("latest_run_at", "latest run", rank=3),
        Column("read_at", "read", rank=3),
    ),
    "No clients yet. Add one: chm client create 'Acme'",
)
ERRORS = Question(
    "Errors",
    (
        Column("failures"),
        Column("clients"),
        Column("pipelines"),
        Column("still_failing", "still failing"),
        Column("last_seen_at", "last seen", rank=1),
        Column("why", "latest message", elastic=True),
        Column("platforms", rank=3),
        Column("client_slugs", "client names", rank=4),
    ),
    "No run failed.",
)
EPISODES = Question(
    "Open episodes",
    (
        Column("episode_id", "id"),
        Column("pipeline", "about", elastic=True),
        Column("rule_type", "rule"),
        Column("since"),
        Column("failures", rank=3),
        Column("announced_at", "announced", rank=2),
        Column("acknowledged_by", "taken by", rank=1),
        Column("destination", page_only=True),
    ),
    "No open episodes.",
)
PAST_EPISODES = Question(
    "Episodes that are over",
    (
        Column("episode_id", "id", rank=3),
        Column("pipeline", "about", elastic=True),
        Column("rule_type", "rule"),
        Column("outcome"),
        Column("since"),
        Column("duration_seconds", "took", kind=Kind.SECONDS, rank=1),
        Column("failures", rank=3),
        Column("announced_at", "announced", rank=2),
        Column("reason", rank=2),
    ),
    "No episodes in this time.",
)
MESSAGES = Question(
    "Messages that wait",
    (
        Column("message_id", "id"),
        Column("channel"),
        Column("destination"),
        Column("notices", rank=2),
        Column("attempts", rank=1),
        Column("state"),
        Column("next_at", "next attempt", rank=2),
        Column("error", elastic=True),
    ),
    "No message waits.",
)


def freshness(connections: Sequence[Row], now: datetime) -> str:
    """How recently partners were read, in a sentence, from the rows of `connections`."""
    if not connections:
        return "No pipeline is read from a partner."
    newest = last_sync(connections)
    if newest is None:
        return "No partner has been read yet: is CHM running?"
    if is_stopped(connections, now):
        return f"Nothing was read since {to_the_minute(newest)} UTC ({ago(newest, now)}): is CHM running?"
    blind = [(row, row["unreadable"] or row["pipelines"]) for row in connections if is_blind(row, now)]
    names = [
        (row["connection"] or row["platform"])
        + (f" ({unread} of {count(row['pipelines'], 'pipeline')})" if unread < row["pipelines"] else "")
        for row, unread in blind
    ]
    return f"Synced {ago(newest, now)}." + (f" Not read: {listed(names)}." if names else "")


def is_blind(row: Row, now: datetime) -> bool:
    """Whether a pipeline of a connection cannot be read, or is behind; of a row of `connections`."""
    stale_at = row["oldest_stale_at"]
    return bool(row["unreadable"]) or row["failing_since"] is not None or stale_at is None or stale_at < now


def is_stopped(connections: Sequence[Row], now: datetime) -> bool:
    """Whether every connection is behind, so that CHM itself is probably not running; of the rows of `connections`."""
    return all(row["stale_at"] is None or row["stale_at"] < now for row in connections)


def last_sync(connections: Sequence[Row]) -> datetime | None:
    """When the newest complete sync started, from the rows of `connections`; None if there was none."""
    return max((row["read_at"] for row in connections if row["read_at"] is not None), default=None)


def alerts_sentence(episodes: Sequence[Row], messages: Sequence[Row]) -> str:
    """What alert rules have found, and whom it did not reach; from the rows of the questions about alerts."""
    found = f"{count(len(episodes), 'open alert')}." if episodes else "No open alerts."
    lost = [f"{row['channel']} {row['destination']} ({row['error']})" for row in messages if row["next_at"] is None]
    late = [f"{row['channel']} {row['destination']}" for row in messages if row["next_at"] is not None and row["error"]]
    undelivered = f" Undeliverable: {listed(lost, 3)}." if lost else ""
    delayed = f" Being tried again: {listed(late, 3)}." if late else ""
    return found + undelivered + delayed


def for_people(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of a health question with what people read: the pipeline's key, why it failed, its streak."""
    return [{**row, **_derived(row)} for row in rows]


def _derived(row: Row) -> dict[str, Any]:
    derived: dict[str, Any] = {}
    if "pipeline_slug" in row:
        derived["pipeline"] = f"{row['client_slug']}/{row['pipeline_slug']}"
    if "error_message" in row or "status_reason" in row:
        derived["why"] = error_summary(row.get("error_message")) or row.get("status_reason")
    if row.get("health_reason"):
        _, _, blind = row["health_reason"].partition("; ")
        if row["health"] != "failing" or not derived.get("why"):
            derived["why"] = row["health_reason"]
        elif blind:
            derived["why"] += f"; {blind}"
    if "status" in row:
        derived["status"] = row["status"] or "never ran"
    if "broken" in row:
        count = f"{row['failures']:,}" + ("+" if row["failures"] >= CAPPED_FAILURES else "")
        derived["streak"] = f"{count}, broken" if row["broken"] else count
    return derived


def plain_text(value: Any, kind: Kind, now: datetime | None) -> str:
    """A value as people read it; empty for None. Times are ages before `now`; without it, UTC to the minute."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return ago(value, now) if now else to_the_minute(value)
    if isinstance(value, int | float):
        return number_text(value, kind)
    if kind is Kind.STRIP:
        return shapes(str(value))
    return str(value)


def number_text(value: float, kind: Kind) -> str:
    """A number as people read it: a duration, a percentage, or with its thousands apart."""
    if kind is Kind.SECONDS:
        return duration(value)
    if kind is Kind.SHARE:
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def shapes(letters: str) -> str:
    """A strip of runs, a shape for each letter; unknown letters stay."""
    return "".join(SHAPES.get(letter, letter) for letter in letters)
