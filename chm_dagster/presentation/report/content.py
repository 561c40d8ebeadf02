"""What a report says, in words: the same for the page, the PDF, the terminal and the email.

Nothing here depends on the time at which it is written: the same report gives the same words.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

from chm_dagster.domain.evaluation import MAX_SLOTS
from chm_dagster.domain.reports import UNCOUNTED, Change, DayFigures, Figures, PipelineFigures, Report
from chm_dagster.domain.service import Cause, Incident, Unknown
from chm_dagster.presentation.columns import by_reason, count, duration, listed

UNKNOWN = "unknown"
SHOWN_INCIDENTS, SHOWN_PIPELINES, SHOWN_REVISIONS, SHOWN_NAMES = 6, 7, 3, 3
"""What fits on one page; the rest is counted, and complete in CSV and JSON."""
_NAME_CHARS, _CELL_CHARS, _ERROR_CHARS = 60, 30, 64
_WEEK_DAYS = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: what it is, its value, what it is made of, and how it was in the period before."""

    label: str
    value: str
    note: str
    before: str


@dataclasses.dataclass(frozen=True, slots=True)
class DayCell:
    """A day in a strip. `state` is ok, bad, part, unknown or idle; `mark` says it in a sign, `word` in words."""

    weekday: str
    date: str
    state: str
    mark: str
    word: str


@dataclasses.dataclass(frozen=True, slots=True)
class IncidentRow:
    """An incident: when it began and ended, how long it lasted, and what happened."""

    pipeline: str
    start: str
    end: str
    lasted: str
    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class PipelineRow:
    """A pipeline and its days."""

    name: str
    runs: str
    success: str
    on_time: str
    incidents: str
    days: tuple[DayCell, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """A report in words, in the order of the page."""

    title: str
    client: str
    period: str
    span: str
    summary: str
    revisions: tuple[str, ...]
    tiles: tuple[Tile, ...]
    days: tuple[DayCell, ...]
    incidents: tuple[IncidentRow, ...]
    more_incidents: str
    pipelines: tuple[PipelineRow, ...]
    more_pipelines: str
    notes: tuple[tuple[str, str], ...]
    definitions: str


def content(report: Report) -> Content:
    """The report in words."""
    zone, unit = ZoneInfo(report.timezone), "week" if len(report.days) == _WEEK_DAYS else "month"
    shown = report.pipelines[:SHOWN_PIPELINES]
    return Content(
        f"{line(report.client_name)}: {_period(report)}",
        line(report.client_name),
        _period(report),
        f"{_day(report.first)} to {_day(report.last)} {report.last:%Y}, {report.timezone}",
        summary(report, unit),
        tuple(_revisions(report)),
        tuple(_tiles(report, unit)),
        tuple(map(day_cell, report.days)),
        tuple(_incident(one, zone, unit) for one in _worst(report.incidents)),
        _more(len(report.incidents) - SHOWN_INCIDENTS, "shorter incident"),
        tuple(map(_pipeline, shown)),
        _more_pipelines(report.pipelines[SHOWN_PIPELINES:]),
        tuple(_notes(report, zone, unit)),
        _DEFINITIONS.format(unit=unit),
    )


_DEFINITIONS = (
    "Success rate: of the runs that ended in success or failure, those that succeeded. On time: of the scheduled runs,"
    " those that began within their grace time. An incident is a time in which a pipeline failed, missed scheduled runs"
    " or ran for too long; it is shown as it was at the end of the {unit}. Known: the share of the {unit} in which CHM"
    " could see all runs. What cannot be known reads “unknown”."
)


def line(text: str, limit: int = _NAME_CHARS) -> str:
    """A name or a message on one line, shortened, without signs that have no shape."""
    plain = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def percent(rate: float | None) -> str:
    """A rate with one digit, rounded down: what is not all never reads 100 %."""
    if rate is None:
        return UNKNOWN
    tenths = math.floor(rate * 1000 + 1e-6)
    return f"{tenths / 10:.1f}".removesuffix(".0") + " %"


def _period(report: Report) -> str:
    if len(report.days) != _WEEK_DAYS:
        return f"{report.first:%B %Y}"
    year, week = report.period.split("-W")
    return f"Week {int(week)} of {year}"


def _day(day: Any) -> str:
    return f"{day:%A} {day.day} {day:%B}"


def moment(time: datetime, zone: ZoneInfo) -> str:
    """A time in the client's zone: `Tue 17 Nov 03:10`."""
    local = time.astimezone(zone)
    return f"{local:%a} {local.day} {local:%b %H:%M}"


def summary(report: Report, unit: str) -> str:
    """The report in two or three sentences."""
    figures = report.figures
    if not report.pipelines:
        return "This client has no pipelines in production."
    said = []
    if not figures.runs:
        said.append("No runs." if figures.is_known else "No runs are known.")
    elif figures.settled:
        known = "" if figures.is_known else " known"
        said.append(f"{figures.success:,} of {figures.settled:,}{known} runs succeeded.")
    if figures.incidents:
        open_ = f", {figures.open_incidents:,} of them without a known end" if figures.open_incidents else ""
        said.append(f"{count(figures.incidents, 'incident')}{open_}.")
    else:
        said.append("No incidents." if figures.is_known else "No incidents are known.")
    if not report.is_final:
        said.append(f"Preliminary: the {unit} is not over.")
    elif not figures.is_known and figures.coverage is not None:
        said.append(f"{percent(figures.coverage)} of the {unit} is known.")
    return " ".join(said)


# --- revisions -------------------------------------------------------------------------------------------------------

_WORDS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "pipelines": ("pipelines", lambda value: f"{value:,.0f}"),
    "runs": ("runs", lambda value: f"{value:,.0f}"),
    "success_rate": ("success rate", percent),
    "on_time_rate": ("on time", percent),
    "incidents": ("incidents", lambda value: f"{value:,.0f}"),
    "open_incidents": ("incidents without an end", lambda value: f"{value:,.0f}"),
    "seconds_to_recover": ("mean time to recover", lambda value: "none" if value is None else duration(value)),
    "coverage": ("known", percent),
    "in_maintenance": ("runs in maintenance", lambda value: f"{value:,.0f}"),
}


def _revisions(report: Report) -> Iterator[str]:
    for revision in report.revisions[::-1][:SHOWN_REVISIONS]:
        yield f"Revision {revision.number} changed: {'; '.join(map(change, revision.changes))}."


def change(found: Change) -> str:
    """A change in words: `runs 412 → 415`."""
    if found.figure == UNCOUNTED:
        return "details, but no figure above"
    word, shown = _WORDS[found.figure]
    before, after = shown(found.before), shown(found.after)
    return f"{word} {before} → {after}" if before != after else f"{word} by less than is shown"


# --- headline figures ------------------------------------------------------------------------------------------------


def _tiles(report: Report, unit: str) -> Iterator[Tile]:
    now, before = report.figures, report.before
    known = "" if now.is_known else " known"
    yield Tile(
        "Success rate",
        percent(now.success_rate) if now.settled or not now.is_known else "no runs",
        f"{now.success:,} of {now.settled:,}{known} runs",
        _before(now.success_rate, before.success_rate, unit),
    )
    yield Tile(
        "On time",
        percent(now.on_time_rate) if now.slots or not now.is_known else "no schedule",
        f"{now.on_time:,} of {now.slots:,}{known} scheduled runs",
        _before(now.on_time_rate, before.on_time_rate, unit),
    )
    yield Tile(
        "Incidents",
        f"{now.incidents:,}" if now.incidents or now.is_known else "none known",
        f"{now.open_incidents:,} without a known end" if now.open_incidents else "none was open at the end",
        f"{unit} before: {_incidents(before)}",
    )
    yield Tile(
        "Mean time to recover",
        "none" if now.seconds_to_recover is None else duration(now.seconds_to_recover),
        f"over {count(now.recovered, 'incident')} that ended" if now.recovered else "no incident ended",
        f"{unit} before: {'none' if before.seconds_to_recover is None else duration(before.seconds_to_recover)}",
    )
    yield Tile("Runs", f"{now.runs:,}", f"of {count(now.pipelines, 'pipeline')}", f"{unit} before: {before.runs:,}")
    coverage = "no pipelines" if now.coverage is None else percent(now.coverage)
    was = "no pipelines" if before.coverage is None else percent(before.coverage)
    yield Tile("Known", coverage, f"of the {unit}", f"{unit} before: {was}")


def _incidents(figures: Figures) -> str:
    if figures.incidents or figures.is_known:
        return f"{figures.incidents:,}"
    return "none known"


def _before(now: float | None, before: float | None, unit: str) -> str:
    if now is None or before is None:
        return f"{unit} before: {percent(before)}"
    points = round(100 * (now - before), 1)
    if not points:
        return f"as in the {unit} before"
    return f"{'up' if points > 0 else 'down'} {abs(points):g} points from {percent(before)}"


# --- days ------------------------------------------------------------------------------------------------------------


def day_cell(day: DayFigures) -> DayCell:
    """A day in a strip."""
    state, mark, word = _state(day)
    return DayCell(f"{day.date:%a}", str(day.date.day), state, mark, word)


def _sign(number: int) -> str:
    """A number in at most four signs, rounded down: `999`, `1.4k`, `12k`."""
    if number < 1_000:
        return str(number)
    if number < 1_000_000:
        return f"{number // 100 / 10:g}k" if number < 10_000 else f"{number // 1_000}k"
    return f"{min(number // 1_000_000, 999)}M"


def _state(day: DayFigures) -> tuple[str, str, str]:
    tally = day.tally
    missed = tally.slots - tally.on_time
    if tally.failed or missed:
        parts = [f"{tally.failed:,} failed"] * bool(tally.failed) + [f"{missed:,} not on time"] * bool(missed)
        return "bad", _sign(tally.failed + missed), ", ".join(parts)
    if day.coverage is not None and day.coverage < 1:
        return ("part", "?", "partly known") if day.coverage else ("unknown", "?", UNKNOWN)
    if tally.success or tally.on_time:
        return "ok", "✓", "all well"
    if tally.in_maintenance:
        return "idle", "–", "maintenance"
    return "idle", "–", "no runs"


# --- tables ----------------------------------------------------------------------------------------------------------


def _worst(incidents: Sequence[Incident]) -> list[Incident]:
    """The longest ones, in the order in which they began."""
    longest = sorted(incidents, key=lambda one: (-one.seconds, one.start, one.pipeline, one.cause))[:SHOWN_INCIDENTS]
    return [one for one in incidents if one in longest]


def _incident(one: Incident, zone: ZoneInfo, unit: str) -> IncidentRow:
    end = f"open at the end of the {unit}" if one.is_open else "not known"
    return IncidentRow(
        line(one.pipeline_name, _CELL_CHARS),
        moment(one.start, zone),
        moment(one.end, zone) if one.end is not None else end,
        duration(one.seconds) if one.end is not None or one.is_open else f"at least {duration(one.seconds)}",
        what_happened(one, zone),
    )


def what_happened(one: Incident, zone: ZoneInfo) -> str:
    """The incident's cause in words."""
    match one.cause:
        case Cause.MISSED:
            due = "" if one.slot is None else f" that was due {moment(one.slot, zone)}"
            if one.count == 1:
                return f"no run in time{due}"
            return f"{one.count}{'+' if one.count >= MAX_SLOTS else ''} runs not in time, the first{due}"
        case Cause.OVERRUNNING:
            return f"ran for more than {duration(60 * (one.limit_minutes or 0))}"
        case Cause.FAILING:
            return f"{count(one.count, 'failed run')}: {line(one.error, _ERROR_CHARS) or 'no message'}"


def _pipeline(one: PipelineFigures) -> PipelineRow:
    tally, is_known = one.tally, one.unknown is None
    return PipelineRow(
        line(one.name, _CELL_CHARS) + ("" if one.is_active else " (disabled)"),
        f"{tally.runs:,}",
        percent(one.success_rate) if tally.success + tally.failed or not is_known else "–",
        percent(one.on_time_rate) if tally.slots or not is_known else "–",
        f"{one.incidents:,}" if one.incidents or is_known else UNKNOWN,
        tuple(map(day_cell, one.days)),
    )


def _more(number: int, noun: str) -> str:
    return f"and {count(number, noun)}" if number > 0 else ""


def _more_pipelines(rest: Sequence[PipelineFigures]) -> str:
    if not rest:
        return ""
    bad = sum(1 for one in rest if one.tally.failed or one.incidents or one.tally.slots > one.tally.on_time)
    unknown = sum(1 for one in rest if one.unknown is not None)
    parts = [f"{bad:,} of them with failures"] * bool(bad) + [f"{unknown:,} not fully known"] * bool(unknown)
    return f"and {count(len(rest), 'more pipeline')}, {' and '.join(parts) or 'all well'}"


# --- notes -----------------------------------------------------------------------------------------------------------

_REASONS: Mapping[Unknown, str] = {
    Unknown.NEVER_READ: "could never be read",
    Unknown.NOT_READ_SINCE: "not read since {through}",
    Unknown.NOT_UNDERSTOOD: "what it sent since {through} is not understood",
    Unknown.NOT_HEARD: "not heard while CHM's API was down",
    Unknown.GONE: "not known to its partner any more",
    Unknown.NEW: "monitored since {start}",
    Unknown.NOT_YET: "",
}


def _notes(report: Report, zone: ZoneInfo, unit: str) -> Iterator[tuple[str, str]]:
    if blind := _blind(report, zone):
        yield "Not known", f"{blind}."
    flaky = [
        (-one.flaky.flips, f"{name} ({count(one.flaky.flips, 'flip')} in its last {one.flaky.settled} runs)")
        for one in report.pipelines
        if one.flaky is not None and (name := line(one.name, _CELL_CHARS))
    ]
    if flaky:
        yield "Flaky", f"{listed([text for _, text in sorted(flaky, key=itemgetter(0))], SHOWN_NAMES)}."
    if report.figures.in_maintenance:
        left_out = count(report.figures.in_maintenance, "run")
        yield "Maintenance", f"{left_out} in announced maintenance, left out of the figures above."
    if running := sum(one.tally.running for one in report.pipelines):
        yield "In progress", f"{count(running, 'run')} of the {unit} had not ended yet."
    if own := sum(one.reports_itself for one in report.pipelines):
        yield "Self-reporting", f"{count(own, 'pipeline')}: a report that was lost on its way does not show."
    if report.others:
        yield "Left out", f"{count(report.others, 'pipeline')} outside of production."


def _blind(report: Report, zone: ZoneInfo) -> str:
    """Which pipelines are not known and why. Many with the same reason are counted, not named."""
    found = by_reason((line(one.name, _CELL_CHARS), why) for one in report.pipelines if (why := _reason(one, zone)))
    parts: list[tuple[str, int]] = []
    for reason, names in found.items():
        many = len(names) > SHOWN_NAMES
        shown = [count(len(names), "pipeline")] if many else names
        parts += [(f"{name}, {reason}", len(names) if many else 1) for name in shown]
    rest = sum(number for _, number in parts[SHOWN_NAMES:])
    return "; ".join(text for text, _ in parts[:SHOWN_NAMES]) + (f"; and {rest:,} more" if rest else "")


def _reason(one: PipelineFigures, zone: ZoneInfo) -> str:
    if one.unknown is None:
        return ""
    return _REASONS[one.unknown].format(
        through="" if one.known_through is None else moment(one.known_through, zone),
        start="" if one.known_from is None else moment(one.known_from, zone),
    )
