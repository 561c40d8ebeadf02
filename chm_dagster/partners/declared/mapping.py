"""A run record of a configured API, as CHM knows it."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chm_dagster.domain import values
from chm_dagster.domain.runs import Observation, Rejection, RunStatus
from chm_dagster.errors import InputError
from chm_dagster.partners.declared.model import Duration, Meaning, Runs, Shown, Status
from chm_dagster.partners.declared.places import find, first, link_of, word_of
from chm_dagster.partners.generic.mapping import SAYS_NO_MORE, normalise_status

ENRICHED = "_chm"
"""The field of a landed record that holds what CHM asked for beyond the list of runs: `error`, `rows`, `reason`."""

_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?)", re.ASCII)
_PERIOD = re.compile(
    r"P(?:(\d{1,4})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,8})M)?(?:(\d{1,10}(?:\.\d{1,9})?)S)?)?", re.ASCII | re.IGNORECASE
)


_CLOCKS_DIFFER = timedelta(minutes=1)
"""A time that is no further ahead of our clock than this is not taken for one that is still to come."""


class StatusWords:
    """What the status words of one API mean."""

    def __init__(self, status: Status) -> None:
        self._status = status
        words = {normalise_status(word): _shown(meaning) for word, meaning in status.map.items()}
        self._exact = {word: shown for word, shown in words.items() if not word.endswith("*")}
        starts = {word[:-1]: shown for word, shown in words.items() if word.endswith("*")}
        self._starts = sorted(starts.items(), key=lambda item: -len(item[0]))

    def word(self, record: Any) -> str | None:
        """The record's status word; None where there is none."""
        word = word_of(record, self._status.word)
        if isinstance(word, bool) or not isinstance(word, str | int):
            return None
        return str(word)[:200] if isinstance(word, str) or word.bit_length() < 64 else None

    def meaning(self, word: str) -> Shown | None:
        """What it means; None for a word that is not mapped."""
        plain = normalise_status(word)
        exact = self._exact.get(plain)
        return exact or next((shown for start, shown in self._starts if plain.startswith(start)), None)

    def is_dropped(self, record: Any) -> bool:
        """Whether this record is no run yet."""
        word = self.word(record)
        meaning = self.meaning(word) if word is not None else None
        return meaning is not None and meaning.status == "drop"

    def read(self, record: Any) -> tuple[RunStatus, str | None, bool]:
        """Status, the word for people where it says more, and whether it is unknown. Raises InputError."""
        word = self.word(record)
        if word is None or not word.strip("/ "):
            raise InputError("status", "missing or not a text; every run needs one")
        shown = values.reason_text(first(record, self._status.shown)) if self._status.shown else None
        said = shown or values.reason_text(word)
        meaning = self.meaning(word)
        if meaning is None or meaning.status == "drop":
            return RunStatus.RUNNING, said, meaning is None
        more = None if said is None or normalise_status(said) in SAYS_NO_MORE else said
        return RunStatus(meaning.status), meaning.reason or more, False


def _shown(meaning: Meaning) -> Shown:
    return meaning if isinstance(meaning, Shown) else Shown(status=meaning)


class RestMapping:
    """Maps the records of one API. `ui` is the address of its pages for people, without a slash at its end."""

    def __init__(self, runs: Runs, *, reopens: bool, ui: str = "") -> None:
        self._runs = runs
        self._words = StatusWords(runs.status)
        self._reopens = reopens
        self._left_out = frozenset([ENRICHED, *runs.restless])
        self._ui = ui

    def __call__(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation | Rejection:
        """The run that the record tells of, or why it tells of none. Never raises on bad data."""
        try:
            return self._observation(pipeline_id, record, observed_at)
        except InputError as refused:
            return Rejection(pipeline_id, str(refused), values.clean_record(record))

    def _observation(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation:
        if not isinstance(record, dict):
            raise InputError("record", "not an object; send one JSON object for each run")
        runs = self._runs
        run_id = values.run_id(first(record, [runs.id]), runs.id)
        status, word, unknown = self._words.read(record)
        added = record.get(ENRICHED)
        added = added if isinstance(added, dict) else {}
        bare = {name: value for name, value in record.items() if name not in self._left_out}
        started, finished, duration = self._times(record, status.finished, observed_at)
        text = added.get("error") or first(record, runs.error)
        # A person has to map an unknown word, so the word is what they must see.
        reason = None if unknown else values.reason_text(added.get("reason") or first(record, runs.reason))
        if reason is None and status is RunStatus.CANCELED:
            reason = values.reason_text(text)
        rows = added.get("rows")
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
            source_url=values.link(link_of(record, runs.url, self._ui)) if runs.url else None,
            payload=values.clean_record(bare),
            attempt=values.attempt(first(record, [runs.attempt])) if runs.attempt else 0,
            progress=1 if status.finished and not self._reopens else 0,
            source_version=self._newest(record, runs.version, observed_at + values.SLACK),
            observed_at=observed_at,
            unknown_status=unknown,
        )

    def _times(
        self, record: dict[str, Any], done: bool, observed_at: datetime
    ) -> tuple[datetime | None, datetime | None, float | None]:
        """Start, finish and duration in seconds. Raises InputError for a time that cannot be used.

        A run that is not finished has neither finish nor duration, whatever the record says: it may have been reopened.
        """
        runs, latest = self._runs, observed_at + values.SLACK
        started = self._time(record, runs.started, latest)
        finished = self._time(record, runs.finished, latest) if done else None
        claimed = _seconds(record, runs.duration) if done and runs.duration else None
        if finished is None and started is not None and claimed is not None and runs.duration:
            finished = started + timedelta(seconds=claimed) if runs.duration.gives_finish else None
        duration = values.duration(started, finished, claimed) if done else None
        if started is None:
            # Stands in for the start where it orders runs, but the time in the queue is no part of the duration.
            waiting = self._newest(record, runs.waiting, None)
            started = waiting if waiting is not None and waiting <= observed_at + _CLOCKS_DIFFER else None
        if started is None and finished is None and done:
            raise InputError(runs.started[0], "missing, as is the finish; a finished run needs one of them")
        return started, finished, duration

    def _newest(self, record: dict[str, Any], paths: Sequence[str], latest: datetime | None) -> datetime | None:
        """The newest of these times; None without any. Times to come are allowed where `latest` is None."""
        moments = [self._time(record, [path], latest) for path in paths]
        return max((moment for moment in moments if moment is not None), default=None)

    def _time(self, record: dict[str, Any], paths: Sequence[str], latest: datetime | None) -> datetime | None:
        runs, end = self._runs, latest or _FAR
        for path in paths:
            value = first(record, [path])
            if value is None or any(value == null and type(value) is type(null) for null in runs.nulls):
                continue
            if runs.times == "iso":
                return values.parse_time(value, path, end)
            return values.parse_epoch(value, "s" if runs.times == "epoch" else "ms", path, end)
        return None


_FAR = datetime.fromisoformat("9999-12-30T00:00:00+00:00")


def _seconds(record: Mapping[str, Any], duration: Duration) -> float | None:
    """The partner's figure in seconds; None for what is no figure."""
    value = next(iter(find(record, duration.path)), None)
    if duration.unit in ("clock", "iso8601"):
        return _spelled(value, duration.unit)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value < values.MAX_DURATION_SECONDS * 1000:
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
