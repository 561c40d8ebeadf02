"""A row of a file as a run. A row goes through the same mapping as a partner's record.

What is only tolerated of a machine is refused here, because there is a person who can mend it: a status that is not
known or leaves the outcome open, a number that is none, an id that a spreadsheet has rounded.
"""

import dataclasses
import difflib
import re
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from chm_dagster.domain.limits import BIGINT_MAX, INT_MAX, MAX_DURATION_SECONDS
from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.domain.runs import Observation, Rejection, RunStatus
from chm_dagster.domain.validation import shown
from chm_dagster.errors import InputError
from chm_dagster.ingestion.run_files import Row
from chm_dagster.partners.engine.mapping import normalise_status
from chm_dagster.partners.platforms.generic import GenericMapper

MAX_REMEMBERED = 1_000
"""Of whatever is kept because rows repeat it."""

NAMES: Mapping[str, str] = {
    "external_run_id": "id",
    "run_id": "id",
    "source_url": "url",
    "source_version": "updated_at",
}
"""Other names of the fields, as the ledger and its exports spell them. If both are there, these win."""
FOREIGN_NAMES: Mapping[str, str] = {
    "databaseid": "id",
    "state": "status",
    "start_date": "started_at",
    "startedat": "started_at",
    "end_date": "finished_at",
    "createdat": "created_at",
    "updatedat": "updated_at",
}
"""Names in lower case that Airflow and GitHub give to the fields. If both are there, the field's own name wins."""
TIMES = ("started_at", "finished_at", "created_at", "updated_at")
FIELDS = (
    "pipeline",
    "id",
    "status",
    *TIMES,
    "duration_seconds",
    "rows_processed",
    "error_message",
    "status_reason",
    "url",
    "attempt",
)
KNOWN = frozenset(FIELDS)
_MOST = {"attempt": INT_MAX, "rows_processed": BIGINT_MAX, "duration_seconds": MAX_DURATION_SECONDS}
_STATUSES = "write running, success, failed, canceled or skipped"
_LEAVES_OPEN = frozenset({"completed", "complete", "done", "finished", "ended"})
_NO_TIME = "not a time; write ISO 8601, such as 2026-01-31T08:00:00Z"
_NAIVE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d{1,6})?)?", re.ASCII)
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_COMMA_NUMBER = re.compile(r"(?:\d{1,15}|\d{1,3}(?:\.\d{3}){1,5})(?:,\d{1,15})?", re.ASCII)
_ROUNDED = re.compile(r"\d(?:[.,]\d+)?E\+\d+", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class RowFormat:
    """How a file spells its rows.

    `columns` gives columns the names of fields, `statuses` gives words a status. `zone` is that of times without an
    offset; None: such times are refused. `date_formats` are forms of times other than ISO 8601, as `strptime` reads
    them. `decimal_comma`: 1.234,5 is a thousand and more.
    """

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    statuses: Mapping[str, RunStatus] = dataclasses.field(default_factory=dict)
    zone: zoneinfo.ZoneInfo | None = None
    date_formats: Sequence[str] = ()
    decimal_comma: bool = False

    def field_names(self, given: tuple[str, ...]) -> Mapping[str, str]:
        """The field of each name; a name that another one overrides is left out.

        Raises InputError for a name that is nearly a field's.
        """
        ranks: dict[str, tuple[int, str]] = {}
        for name in given:
            rank, field = self._field(name)
            if field not in ranks or rank < ranks[field][0]:
                ranks[field] = (rank, name)
        return {name: field for field, (_, name) in ranks.items()}

    def _field(self, name: str) -> tuple[int, str]:
        """The field that a name stands for, and its rank among names of the same field."""
        if name in self.columns:
            return 0, self.columns[name]
        if name in NAMES:
            return 1, NAMES[name]
        if name in KNOWN:
            return 2, name
        if name.lower() in FOREIGN_NAMES:
            return 3, FOREIGN_NAMES[name.lower()]
        close = difflib.get_close_matches(name, [*FIELDS, *NAMES], n=1, cutoff=0.85)
        if close:
            raise InputError(shown(name), f"unknown field; did you mean {close[0]}? Else choose another name")
        return 4, name

    def check_columns(self, names: Sequence[str], *, named: bool) -> None:
        """Raises InputError unless a table with these columns can hold runs; `named`: rows need no pipeline."""
        fields = self.field_names(tuple(name for name in names if name)).values()
        for field in ("id", "status") if named else ("id", "status", "pipeline"):
            if field not in fields:
                hint = "give --pipeline for all rows" if field == "pipeline" else f"say --column {field}=COLUMN"
                there = ", ".join(map(shown, names))
                raise InputError("header", f"has no column {field!r}; it has {there}; or {hint}")

    def status(self, word: str, record: Mapping[str, Any]) -> str:
        """The word for CHM's mapping. Raises InputError for one that leaves the outcome open."""
        plain = normalise_status(word[:100])
        if plain in self.statuses:
            return self.statuses[plain]
        if plain in _LEAVES_OPEN:
            outcome = record.get("conclusion") or record.get("result")
            if not isinstance(outcome, str):
                raise InputError("status", f"{shown(word)!r} leaves open how the run ended; {_map_it(word)}")
            return self.status(outcome, {})
        return word

    def time(self, value: Any, field: str) -> Any:
        """The time in ISO 8601 with an offset. Raises InputError for a wall clock without a time zone."""
        if not isinstance(value, str):
            return value
        text = value.strip()
        wall = self._formatted(text)
        if wall is None and _NAIVE.fullmatch(text):
            try:
                wall = datetime.fromisoformat(text.replace(",", "."))
            except ValueError:
                raise InputError(field, _NO_TIME) from None
        if wall is None:
            return text
        if wall.tzinfo is None:
            if self.zone is None:
                raise InputError(field, "has no time zone; write an offset such as Z or +02:00, or give --timezone")
            wall = _in_zone(wall, self.zone, field)
        return wall.isoformat()

    def _formatted(self, text: str) -> datetime | None:
        for form in self.date_formats:
            with suppress(ValueError):
                return datetime.strptime(text, form)
        return None

    def number(self, value: Any, field: str) -> Any:
        """The number that a value is or spells. Raises InputError for what the mapping would drop silently."""
        given = value
        if isinstance(value, str):
            text = value.strip()
            if self.decimal_comma and _COMMA_NUMBER.fullmatch(text) is not None:
                text = text.replace(".", "").replace(",", ".")
            if _NUMBER.fullmatch(text) is not None:
                value = float(text) if "." in text else int(text)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST[field]
        if not usable or (isinstance(value, float) and field != "duration_seconds"):
            wanted = "seconds, such as 12.5" if field == "duration_seconds" else "a whole number from 0 on"
            comma = (
                "; or give --decimal-comma" if isinstance(given, str) and _COMMA_NUMBER.fullmatch(given.strip()) else ""
            )
            raise InputError(field, f"not a number that can be used; write {wanted}, or leave it empty{comma}")
        return value


class RowMapper:
    """Turns rows into observations, or into the reason why not.

    `pipelines` are all that a row may name; `only`: the rows name none, they are all of this one. `observed_at` is when
    the file was written: what CHM has learned since wins. A row was not written before the times in it, whatever the
    age of its file; none of these may be after `now`.
    """

    def __init__(
        self,
        pipelines: Iterable[Pipeline],
        observed_at: datetime,
        *,
        only: Pipeline | None = None,
        form: RowFormat | None = None,
        now: datetime | None = None,
    ) -> None:
        self._pipelines = {ref: p for p in pipelines for ref in (p.key, str(p.id))}
        self._only = only
        self._observed_at, self._now = observed_at, now or observed_at
        self._form = form or RowFormat()
        self._names: dict[tuple[str, ...], Mapping[str, str]] = {}
        self._refused: dict[str, str] = {}
        # If a partner reports the runs, its records win, so what a file holds is never final.
        self._maps = {fed: GenericMapper(reopens=fed) for fed in (True, False)}

    def __call__(self, row: Row) -> Observation | str:
        """The run in the row, or why there is none."""
        if row.problem is not None:
            return row.problem
        try:
            return self._observation(row.record)
        except InputError as refused:
            return f"{refused.field}: {refused.issue}"

    def _observation(self, given: Mapping[str, Any]) -> Observation:
        record, form = self._renamed(given), self._form
        pipeline = self._pipeline(record.pop("pipeline", None))
        if isinstance(run_id := record.get("id"), str) and _ROUNDED.fullmatch(run_id.strip()):
            raise InputError(
                "id", f"{run_id!r} was rounded by a spreadsheet; format the column as text and export again"
            )
        if isinstance(word := record.get("status"), str):
            record["status"] = form.status(word, record)
        for field in TIMES:
            if field in record:
                record[field] = form.time(record[field], field)
        for field in _MOST:
            if field in record:
                record[field] = form.number(record[field], field)
        mapped = self._maps[pipeline.external_id is not None](pipeline.id, record, self._now)
        if isinstance(mapped, Rejection):
            field, _, issue = mapped.reason.partition(": ")
            raise InputError(field, _with_hint(field, issue))
        if mapped.unknown_status:
            word = record["status"]
            raise InputError("status", f"{shown(word)!r} is not known; {_map_it(word)}")
        times = [t for t in (mapped.source_version, mapped.finished_at, mapped.started_at) if t is not None]
        observed_at = min(self._now, max([self._observed_at, *times]))
        return msgspec.structs.replace(mapped, observed_at=observed_at)

    def _renamed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that have a value, by their own names. Raises InputError for one that is nearly a known name."""
        shape = tuple(given)
        names = self._names.get(shape)
        if names is None:
            names = self._form.field_names(shape)
            # Files have few sets of names; one that has a new set in each line must not fill the memory.
            if len(self._names) < MAX_REMEMBERED:
                self._names[shape] = names
        return {names[n]: value for n, value in given.items() if value is not None and value != "" and n in names}

    def _pipeline(self, ref: object) -> Pipeline:
        if self._only is not None:
            if ref is not None and self._pipelines.get(str(ref)) is not self._only:
                raise InputError("pipeline", "names another one than --pipeline; leave one of the two out")
            return self._only
        if ref is None:
            raise InputError("pipeline", "missing; name it as client/pipeline, or give --pipeline for all rows")
        pipeline = self._pipelines.get(str(ref).strip())
        if pipeline is None:
            raise InputError("pipeline", self._unknown(str(ref)[:200]))
        return pipeline

    def _unknown(self, ref: str) -> str:
        issue = self._refused.get(ref)
        if issue is None:
            # Looking for what comes close takes a while; a file names few pipelines many times.
            seek = len(self._refused) < MAX_REMEMBERED
            close = difflib.get_close_matches(ref, self._pipelines, n=1, cutoff=0.75) if seek else []
            issue = f"no pipeline {shown(ref)!r}" + (f"; did you mean {close[0]}?" if close else "")
            if seek:
                self._refused[ref] = issue
        return issue


def _map_it(word: str) -> str:
    return f"{_STATUSES}, or map it, such as --status {shown(word)!r}=success"


def _with_hint(field: str, issue: str) -> str:
    hinted = field in TIMES and issue.startswith("not a time")
    return f"{issue}; or name the form of times, such as --date-format '%d.%m.%Y %H:%M'" if hinted else issue


def _in_zone(wall: datetime, zone: zoneinfo.ZoneInfo, field: str) -> datetime:
    """The time of a wall clock in UTC. Raises InputError for a time that the clock shows twice, or never."""
    try:
        first, second = wall.replace(tzinfo=zone, fold=0), wall.replace(tzinfo=zone, fold=1)
        time = first.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(field, _NO_TIME) from None
    if first.utcoffset() != second.utcoffset():
        raise InputError(field, f"comes twice or never in {zone.key}, where the clocks change; write an offset")
    return time
