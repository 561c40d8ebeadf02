"""Bring a file of runs into the ledger: rows -> observations -> merge, each row counted exactly once.

A row goes through the same mapping and the same merge rule as a partner's record. What is only tolerated of a machine
is refused here, because there is a person who can mend it: a status that is not known, a number that is none.
"""

import dataclasses
import difflib
import re
import time
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from chm_dagster.domain import values
from chm_dagster.domain.fields import shown
from chm_dagster.domain.inventory import Pipeline
from chm_dagster.domain.redaction import redact
from chm_dagster.domain.runs import BIGINT_MAX, INT_MAX, Observation, Rejection
from chm_dagster.errors import DatabaseUnavailable, InputError
from chm_dagster.ingestion.prefetch import prefetched
from chm_dagster.ingestion.report import SAMPLES
from chm_dagster.ingestion.run_files import Row
from chm_dagster.partners.generic.mapping import GenericMapping
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.runs import BATCH, Tally
from chm_dagster.warehouse.session import LedgerWriter, ledger_writer

MAX_REMEMBERED = 1_000
"""Of whatever is kept because rows repeat it."""
_TRIES = 3
_PAUSE_SECONDS = 0.5

NAMES: Mapping[str, str] = {
    "external_run_id": "id",
    "run_id": "id",
    "source_url": "url",
    "source_version": "updated_at",
}
"""Other names of the fields, as the ledger and its exports spell them. Where both are there, these win."""
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
_STATUSES = "write running, success, failed, canceled or skipped"
_NAIVE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.,]\d{1,6})?)?", re.ASCII)
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)

Progress = Callable[[int], None]
"""Told how many rows were read so far."""


@dataclasses.dataclass(slots=True)
class ImportReport:
    """What became of the rows. `rejections` are the first ones, as (line, reason); all of them are in the rejects file.

    `kept` names the columns that are no field of a run: they stay with it as its payload.
    """

    rows: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    stale: int = 0
    rejected: int = 0
    rejections: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    kept: set[str] = dataclasses.field(default_factory=set)

    @property
    def accounted_for(self) -> bool:
        """Whether every row ended in exactly one outcome."""
        return self.rows == self.inserted + self.updated + self.unchanged + self.stale + self.rejected

    def add(self, tallies: Iterable[Tally]) -> None:
        """Count what became of a batch."""
        for tally in tallies:
            self.inserted += tally.inserted
            self.updated += tally.updated
            self.unchanged += tally.unchanged
            self.stale += tally.stale


def import_runs(
    engine: Engine,
    rows: Iterable[Row],
    mapper: "RowMapper",
    rejects: Path,
    progress: Progress = lambda rows: None,
) -> ImportReport:
    """Write the rows' runs, batch by batch; rejected rows go to the file `rejects`, which exists only if there are any.

    Importing the same rows again writes nothing. Raises InputError for a file that cannot be used at all, and
    DatabaseUnavailable; the batches before stay, and importing again goes on from there.
    """
    report = ImportReport()
    rejects.unlink(missing_ok=True)
    with ExitStack() as stack:
        writer = stack.enter_context(ledger_writer(engine))
        mapped = _mapped(rows, mapper, _Rejects(rejects, stack), report)
        for batch in prefetched(_batches(mapped)):
            report.add(_write(writer, batch))
            progress(report.rows)
    return report


def _write(writer: LedgerWriter, batch: list[Observation]) -> Iterable[Tally]:
    # A sweep that writes the very same runs right now may cost this transaction: the batch is just tried again.
    for left in reversed(range(_TRIES)):
        try:
            return writer.write([batch], ()).values()
        except DatabaseUnavailable:
            if not left:
                raise
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError("the last try returns or raises")


class _Rejects:
    """The file of rejected rows, made when there is a first one."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._file: IO[bytes] | None = None

    def add(self, row: Row, reason: str) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(_create(self._path))
        record = redact(row.record) if isinstance(row.record, str) else values.clean_record(row.record)
        line = {"line": row.line, "reason": reason, "record": record}
        self._file.write(orjson.dumps(line, default=str) + b"\n")


def _create(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except OSError as error:
        raise InputError("--rejects", f"cannot write {path} ({error.strerror}); name another file") from None


def _mapped(rows: Iterable[Row], mapper: "RowMapper", rejects: _Rejects, report: ImportReport) -> Iterator[Observation]:
    for row in rows:
        mapped = mapper(row)
        report.rows += 1
        if isinstance(mapped, str):
            report.rejected += 1
            if len(report.rejections) < SAMPLES:
                report.rejections.append((row.line, mapped))
            rejects.add(row, mapped)
        else:
            report.kept |= mapped.payload.keys() - _KNOWN
            yield mapped


_KNOWN = frozenset(FIELDS)


def _batches(observations: Iterator[Observation]) -> Iterator[list[Observation]]:
    batch: list[Observation] = []
    for observation in observations:
        batch.append(observation)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class RowMapper:
    """Turns rows into observations, or into the reason why not.

    `pipelines` are all that a row may name; `only`: the rows name none, they are all of this one. `observed_at` is when
    the file was written: what CHM has learned since wins. `zone` is that of times without an offset; None: such times
    are refused.
    """

    def __init__(
        self,
        pipelines: Iterable[Pipeline],
        observed_at: datetime,
        *,
        only: Pipeline | None = None,
        zone: zoneinfo.ZoneInfo | None = None,
    ) -> None:
        self._pipelines = {ref: p for p in pipelines for ref in (p.key, str(p.id))}
        self._only = only
        self._observed_at = observed_at
        self._zone = zone
        self._names: dict[tuple[str, ...], Mapping[str, str]] = {}
        self._refused: dict[str, str] = {}
        # What a partner itself says of a run has the last word, so that a file's word on it is never final.
        self._maps = {fed: GenericMapping(reopens=fed) for fed in (True, False)}

    def __call__(self, row: Row) -> Observation | str:
        """The run that the row tells of, or why it tells of none."""
        if row.problem is not None:
            return row.problem
        try:
            return self._observation(row.record)
        except InputError as refused:
            return f"{refused.field}: {refused.issue}"

    def _observation(self, given: Mapping[str, Any]) -> Observation:
        record = self._renamed(given)
        pipeline = self._pipeline(record.pop("pipeline", None))
        for field in TIMES:
            if field in record:
                record[field] = self._time(record[field], field)
        for field in _MOST:
            if field in record:
                record[field] = _number(record[field], field)
        mapped = self._maps[pipeline.external_id is not None](pipeline.id, record, self._observed_at)
        if isinstance(mapped, Rejection):
            field, _, issue = mapped.reason.partition(": ")
            raise InputError(field, issue)
        if mapped.unknown_status:
            raise InputError("status", f"{shown(record['status'])!r} is not known; {_STATUSES}")
        return mapped

    def _renamed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that say something, by their own names. Raises InputError for one that is nearly a known name."""
        shape = tuple(given)
        names = self._names.get(shape)
        if names is None:
            names = _field_names(shape)
            # Files have few sets of names; one that has a new set in each line must not fill the memory.
            if len(self._names) < MAX_REMEMBERED:
                self._names[shape] = names
        return {names[name]: value for name, value in given.items() if value is not None and name in names}

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

    def _time(self, value: Any, field: str) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if _NAIVE.fullmatch(text) is None:
            return text
        if self._zone is None:
            raise InputError(field, "has no time zone; write an offset such as Z or +02:00, or give --timezone")
        return _in_zone(text, self._zone, field).isoformat()


def _field_names(given: tuple[str, ...]) -> Mapping[str, str]:
    """What each name stands for; one that another name overrides is left out."""
    names = {name: NAMES.get(name, name) for name in given}
    for name in given:
        if name not in _KNOWN and name not in NAMES:
            close = difflib.get_close_matches(name, [*FIELDS, *NAMES], n=1, cutoff=0.85)
            if close:
                raise InputError(shown(name), f"unknown field; did you mean {close[0]}? Else choose another name")
    preferred = {field: name for name, field in names.items() if name != field}
    return {name: field for name, field in names.items() if preferred.get(field, name) == name}


def check_columns(names: Sequence[str], *, named: bool) -> None:
    """Raises InputError unless a table with these columns can tell of runs; `named`: rows need not name a pipeline."""
    fields = _field_names(tuple(name for name in names if name)).values()
    for field in ("id", "status") if named else ("id", "status", "pipeline"):
        if field not in fields:
            hint = "; or give --pipeline for all rows" if field == "pipeline" else ""
            raise InputError("header", f"has no column {field!r}; it has {', '.join(map(shown, names))}{hint}")


_MOST = {"attempt": INT_MAX, "rows_processed": BIGINT_MAX, "duration_seconds": values.MAX_DURATION_SECONDS}


def _number(value: Any, field: str) -> Any:
    """The number that a value is or spells. Raises InputError for what the mapping would quietly drop."""
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text) is not None:
            value = float(text) if "." in text else int(text)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST[field]
    if not usable or (isinstance(value, float) and field != "duration_seconds"):
        wanted = "seconds, such as 12.5" if field == "duration_seconds" else "a whole number from 0 on"
        raise InputError(field, f"not a number that can be used; write {wanted}, or leave it empty")
    return value


def _in_zone(text: str, zone: zoneinfo.ZoneInfo, field: str) -> datetime:
    """The moment of a wall clock. Raises InputError for a time that the clock shows twice, or never."""
    try:
        wall = datetime.fromisoformat(text.replace(",", "."))
        first, second = wall.replace(tzinfo=zone, fold=0), wall.replace(tzinfo=zone, fold=1)
        moment = first.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(field, "not a time; write ISO 8601, such as 2026-01-31T08:00:00Z") from None
    if first.utcoffset() != second.utcoffset():
        raise InputError(field, f"comes twice or never in {zone.key}, where the clocks change; write an offset")
    return moment
