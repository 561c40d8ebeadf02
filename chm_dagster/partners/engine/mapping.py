"""From a raw record to a run: whose it is, which run, what its status words mean, and every other field."""

import abc
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chm_dagster.domain import values
from chm_dagster.domain.limits import MAX_DURATION_SECONDS
from chm_dagster.domain.runs import KnownDetails, Observation, Rejection, RunStatus
from chm_dagster.errors import InputError
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.selectors import (
    Duration,
    Meaning,
    Runs,
    Status,
    as_id,
    find,
    first,
    is_template,
    link_of,
    matches,
    matches_any,
    parts,
    status_word,
    value_at,
)

DETAILS = "_chm"
"""The field of a landed record with what CHM knows beyond the list of runs: `error`, `rows`, `finished`, `version`."""

SYNONYMS: Mapping[RunStatus, str] = {
    RunStatus.RUNNING: "running started in_progress executing active",
    RunStatus.SUCCESS: "success succeeded successful completed complete ok pass passed done",
    RunStatus.FAILED: "failed failure fail error errored",
    RunStatus.CANCELED: "canceled cancelled",
    RunStatus.SKIPPED: "skipped",
}
PLAIN_WORDS = frozenset(word for words in SYNONYMS.values() for word in words.split())
"""Words that say no more than the status itself."""

_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?)", re.ASCII)
_PERIOD = re.compile(
    r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,8})M)?(?:(\d{1,10}(?:\.\d{1,9})?)S)?)?", re.ASCII | re.IGNORECASE
)
_FAR = datetime.fromisoformat("9999-12-30T00:00:00+00:00")
CLOCKS_DIFFER = timedelta(minutes=1)
"""A time that is no further ahead of our clock than this is not in the future."""
_NOBODY = UUID(int=0)


def normalise_status(word: str) -> str:
    """`" Up-for Retry "` -> `up_for_retry`: how the words of a status map are spelled."""
    return re.sub(r"[\s_-]+", "_", word.strip().casefold())


class StatusWords:
    """What the status words of one API mean."""

    def __init__(self, status: Status) -> None:
        self._status = status
        words = {
            normalise_status(word): meaning if isinstance(meaning, Meaning) else Meaning(status=meaning)
            for word, meaning in status.map.items()
        }
        self._exact = {word: meaning for word, meaning in words.items() if not word.endswith("*")}
        prefixes = {word[:-1]: meaning for word, meaning in words.items() if word.endswith("*")}
        self._prefixes = sorted(prefixes.items(), key=lambda item: -len(item[0]))
        self.may_drop = any(meaning.status == "drop" for meaning in words.values())

    def word(self, record: Any) -> str | None:
        """The record's status word; None if there is none."""
        words = (status_word(record, selector) for selector in self._status.selector)
        word = next((word for word in words if word is not None), None)
        if isinstance(word, bool) or not isinstance(word, str | int):
            return None
        return str(word)[:200] if isinstance(word, str) or word.bit_length() < 64 else None

    def meaning(self, word: str) -> Meaning | None:
        """What it means; None for a word that is not mapped."""
        normal = normalise_status(word)
        exact = self._exact.get(normal)
        return exact or next((meaning for start, meaning in self._prefixes if normal.startswith(start)), None)

    def read(self, record: Any) -> tuple[RunStatus, str | None, bool]:
        """Status, the word for people if it says more, and whether it is unknown. Raises InputError."""
        word = self.word(record)
        if word is None or not word.strip("/ "):
            raise InputError("status", "missing or not a text; every run needs one")
        label = values.reason_text(first(record, self._status.label)) or values.reason_text(word)
        meaning = self.meaning(word)
        if meaning is None or meaning.status == "drop":
            return RunStatus.RUNNING, label, meaning is None
        more = None if label is None or normalise_status(label) in PLAIN_WORDS else label
        return RunStatus(meaning.status), meaning.reason or more, False


class RecordReader:
    """Reads what is needed of raw records before they are mapped."""

    def __init__(self, rest: Rest) -> None:
        self._runs = rest.runs
        self._words = StatusWords(rest.runs.status)
        self._mapper = RecordMapper(rest.runs, reopens=rest.reopens)
        self.pipeline_field = rest.runs.pipeline[0]
        self.is_selective = bool(rest.runs.only) or self._words.may_drop
        """Whether there can be records that are not runs."""
        # The usual case, and every record of an account passes through here.
        only_field = len(rest.runs.pipeline) == 1 and not is_template(self.pipeline_field)
        self._owner_field = self.pipeline_field if only_field and len(parts(self.pipeline_field)) == 1 else None

    def owners(self, record: Any) -> Sequence[str] | None:
        """External ids that the record may belong to; none of them for null, None if it does not say."""
        if self._owner_field is not None:
            owner = record.get(self._owner_field) if isinstance(record, dict) else None
            if owner is None:
                return () if isinstance(record, dict) and self._owner_field in record else None
            known = as_id(owner)
            return None if known is None else (known,)
        owners = [owner for value in self._owner_values(record) if (owner := as_id(value)) is not None]
        if owners:
            return owners
        is_null = any(value is None for selector in self._runs.pipeline for value in find(record, selector))
        return () if is_null else None

    def _owner_values(self, record: Any) -> list[Any]:
        found = [first(record, [selector]) for selector in self._runs.pipeline]
        return [value for value in found if value is not None]

    def belongs_to_another(self, record: Any, external_id: str) -> bool:
        """Whether the record names a pipeline, and not this one."""
        named = self._owner_values(record)
        return bool(named) and external_id not in map(as_id, named)

    def runs_in(self, rows: list[Any]) -> list[Any]:
        """The runs in the items of a list; the items themselves unless runs are nested in them."""
        each = self._runs.each
        if each is None:
            return rows
        return [
            {**row, **run} if isinstance(run, dict) and isinstance(row, dict) else run
            for row in rows
            for run in find(row, f"{each}.*")
        ]

    def are_older(self, rows: Sequence[Any], selector: str, time: datetime) -> bool:
        """Whether the selector finds an older time than this in all of the rows."""
        return all(self._mapper.is_older(row, selector, time) for row in rows)

    def run_id(self, record: Any) -> str | None:
        """The record's run id; None for what is none."""
        return as_id(first(record, self._runs.id))

    def key(self, record: Any) -> Any:
        """What makes two records the same run; None for a record that does not say."""
        run_id = self.run_id(record)
        return None if run_id is None else (tuple(self.owners(record) or ()), run_id)

    def is_known(self, record: Any, observed_at: datetime, known: KnownDetails) -> bool:
        """Whether the run has not changed since these details became known."""
        mapped = self._mapper(_NOBODY, record, observed_at)
        if not isinstance(mapped, Observation):
            return False
        same_end = mapped.finished_at == known.finished_at
        if mapped.source_version is None or known.source_version is None:
            return same_end
        return mapped.source_version == known.source_version and (same_end or mapped.finished_at is None)

    def with_version(self, record: Any, time: datetime) -> Any:
        """The record; with this time as its version, if it is unfinished and has no version of its own."""
        if not isinstance(record, dict) or first(record, self._runs.version) is not None:
            return record
        word = self._words.word(record)
        meaning = None if word is None else self._words.meaning(word)
        if meaning is None or meaning.status != "running":
            return record
        return {**record, DETAILS: {"version": time.isoformat()}}

    def is_run(self, record: Any) -> bool:
        """False for records of other things, and for runs that are only planned. What cannot be read is mapped."""
        if not isinstance(record, dict):
            return True
        if self._runs.only and not matches(record, self._runs.only):
            return False
        if not self._words.may_drop:
            return True
        word = self._words.word(record)
        meaning = None if word is None else self._words.meaning(word)
        return meaning is None or meaning.status != "drop"


class Mapper(abc.ABC):
    """Maps records one at a time; a record that cannot be mapped is rejected with its reason."""

    def __call__(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation | Rejection:
        """The run in the record, or why there is none. Never raises on bad data."""
        try:
            if not isinstance(record, dict):
                raise InputError("record", "not an object; send one JSON object for each run")
            return self._observation(pipeline_id, record, observed_at)
        except InputError as refused:
            return Rejection(pipeline_id, str(refused), values.clean_record(record))

    @abc.abstractmethod
    def _observation(self, pipeline_id: UUID, record: dict[str, Any], observed_at: datetime) -> Observation:
        """The run in the record. Raises InputError."""


class RecordMapper(Mapper):
    """Maps the records of one API. `links` are values for links that no record holds: `ui`, and `options.name`."""

    def __init__(self, runs: Runs, *, reopens: bool, links: Mapping[str, Any] | None = None) -> None:
        self._runs = runs
        self._words = StatusWords(runs.status)
        self._reopens = reopens
        self._left_out = frozenset([DETAILS, *runs.volatile])
        self._links = {"ui": "", **(links or {})}

    def _observation(self, pipeline_id: UUID, record: dict[str, Any], observed_at: datetime) -> Observation:
        runs = self._runs
        run_id = values.run_id(first(record, runs.id), runs.id[0])
        status, word, unknown = self._words.read(record)
        details = record.get(DETAILS)
        details = details if isinstance(details, dict) else {}
        started, finished, duration = self._times(record, status.finished, observed_at)
        queued = self._queued(record, started, observed_at) if runs.queued else None
        if started is None and finished is None and queued is None and status.finished:
            raise InputError(runs.started[0], "missing, as is the finish; a finished run needs one of them")
        text = details.get("error") or first(record, runs.error)
        # A person has to map an unknown word, so that word is what they must see.
        reason = None if unknown else values.reason_text(details.get("reason") or first(record, runs.reason))
        if reason is None and status is RunStatus.CANCELED:
            reason = values.reason_text(text)
        rows = details.get("rows")
        return Observation(
            pipeline_id=pipeline_id,
            external_run_id=run_id,
            status=status,
            started_at=started,
            finished_at=finished,
            duration_seconds=duration,
            rows_processed=values.row_count(first(record, runs.rows) if rows is None else rows),
            error_message=values.error_text(text) if status is RunStatus.FAILED else None,
            status_reason=reason or word,
            source_url=values.link(link_of(record, runs.url, self._links)) if runs.url else None,
            payload=values.clean_record({name: v for name, v in record.items() if name not in self._left_out}),
            attempt=values.attempt(first(record, [runs.attempt])) if runs.attempt else 0,
            progress=1 if status.finished and not self._reopens else 0,
            source_version=self._version(record, details, observed_at + values.SLACK),
            observed_at=observed_at,
            unknown_status=unknown,
            queued_at=queued,
            kind=next((kind for kind, found in runs.kinds.items() if matches_any(record, found)), None),
            will_retry=status is RunStatus.FAILED and bool(runs.will_retry) and matches_any(record, runs.will_retry),
        )

    def _times(
        self, record: dict[str, Any], done: bool, observed_at: datetime
    ) -> tuple[datetime | None, datetime | None, float | None]:
        """Start, finish and duration in seconds. Raises InputError for a time that cannot be used.

        A run that is not finished has neither finish nor duration, whatever the record says: it may have been reopened.
        """
        runs, latest = self._runs, observed_at + values.SLACK
        started = self._first_time(record, runs.started, latest)
        finished = self._first_time(record, runs.finished, latest) if done else None
        if done and finished is None and isinstance(details := record.get(DETAILS), dict):
            finished = values.parse_time(details.get("finished"), "finished", latest)
        claimed = _seconds(record, runs.duration) if done and runs.duration else None
        if finished is None and started is not None and claimed is not None and runs.duration:
            finished = started + timedelta(seconds=claimed) if runs.duration.gives_finish else None
        duration = values.duration(started, finished, claimed) if done else None
        return started, finished, duration

    def is_older(self, record: Any, selector: str, time: datetime) -> bool:
        """Whether the selector finds an older time than this in the record."""
        try:
            found = self._time(first(record, [selector]), selector, None)
        except InputError:
            return False
        return found is not None and found < time

    def _queued(self, record: dict[str, Any], started: datetime | None, observed_at: datetime) -> datetime | None:
        """When it was queued; None if that is in the future. Raises InputError for a bad time if there is no start."""
        try:
            queued = self._newest(record, self._runs.queued, None)
        except InputError:
            if started is None:
                raise
            return None
        return queued if queued is not None and queued <= observed_at + CLOCKS_DIFFER else None

    def _version(self, record: dict[str, Any], details: Mapping[str, Any], latest: datetime) -> datetime | None:
        newest = self._newest(record, self._runs.version, latest)
        if newest is None and self._runs.version_if_queued:
            return values.parse_time(details.get("version"), "version", latest)
        return newest

    def _newest(self, record: dict[str, Any], selectors: Sequence[str], latest: datetime | None) -> datetime | None:
        """The newest of all these times; None if there is none. Future times are allowed if `latest` is None."""
        times = [self._time(value, s, latest) for s in selectors for value in find(record, s)]
        return max((time for time in times if time is not None), default=None)

    def _first_time(self, record: dict[str, Any], selectors: Sequence[str], latest: datetime) -> datetime | None:
        """The first of these times that is known."""
        times = (self._time(first(record, [selector]), selector, latest) for selector in selectors)
        return next((time for time in times if time is not None), None)

    def _time(self, value: Any, field: str, latest: datetime | None) -> datetime | None:
        runs, end = self._runs, latest or _FAR
        if value is None or any(value == null and type(value) is type(null) for null in runs.nulls):
            return None
        if runs.times == "iso":
            return values.parse_time(value, field, end)
        return values.parse_epoch(value, "s" if runs.times == "epoch" else "ms", field, end)


def _seconds(record: Mapping[str, Any], duration: Duration) -> float | None:
    """The partner's figure in seconds; None for what is no figure."""
    value = value_at(record, duration.selector)
    if duration.unit in ("clock", "iso8601"):
        return _spelled(value, duration.unit)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value < MAX_DURATION_SECONDS * 1000:
        return None
    return value / 1000 if duration.unit == "milliseconds" else float(value)


def _spelled(value: Any, unit: str) -> float | None:
    if not isinstance(value, str):
        return None
    if unit == "clock":
        clock = _CLOCK.fullmatch(value)
        return None if clock is None else int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
    period = _PERIOD.fullmatch(value)
    if period is None or not any(period.groups()):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in period.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds
