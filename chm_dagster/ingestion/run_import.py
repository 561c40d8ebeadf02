"""Bring a file of runs into the ledger: rows -> observations -> merge, each row counted exactly once."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import orjson

from chm_dagster.domain import values
from chm_dagster.domain.redaction import redact
from chm_dagster.domain.runs import Counts, Observation
from chm_dagster.domain.sync import SAMPLES
from chm_dagster.errors import DatabaseUnavailable, InputError
from chm_dagster.ingestion.run_files import Row
from chm_dagster.ingestion.run_rows import KNOWN, RowMapper
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger.merge import BATCH
from chm_dagster.warehouse.ledger.syncs import ledger_writer

MAX_COMPARED = 1_000_000
"""Rows whose ids are kept, about 150 MB, to find those that come again."""
_TRIES = 3
_PAUSE_SECONDS = 0.5

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


@dataclasses.dataclass(slots=True)
class ImportReport:
    """The outcomes of the rows. `rejections` are the first ones, as (line, reason); the rejects file has all of them.

    `kept` names the columns that are not fields of a run: they are stored in its payload.
    """

    rows: int = 0
    counts: Counts = dataclasses.field(default_factory=Counts)
    rejections: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    kept: set[str] = dataclasses.field(default_factory=set)

    @property
    def accounted_for(self) -> bool:
        """Whether every row ended in exactly one outcome."""
        return self.rows == self.counts.total


def import_runs(
    engine: Engine,
    rows: Iterable[Row],
    mapper: RowMapper,
    rejects: Path,
    progress: Progress = lambda rows: None,
) -> ImportReport:
    """Write the rows' runs, batch by batch; rejected rows go to the file `rejects`, which exists only if there are any.

    Importing the same rows again writes nothing. Raises InputError for an unusable file, and
    DatabaseUnavailable; earlier batches stay, and importing again continues from there.
    """
    report = ImportReport()
    rejects.unlink(missing_ok=True)
    with ExitStack() as stack:
        mapped = _mapped(rows, mapper, _Rejects(rejects, stack), report)
        for batch in _batches(mapped):
            for counts in _write(engine, batch):
                report.counts.add(counts)
            progress(report.rows)
    return report


def _write(engine: Engine, batch: list[Observation]) -> Iterable[Counts]:
    # A sync that writes the same runs at the same time may abort this transaction: the batch is tried again.
    for left in reversed(range(_TRIES)):
        try:
            with ledger_writer(engine) as ledger:
                return ledger.merge([batch]).values()
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


def _mapped(rows: Iterable[Row], mapper: RowMapper, rejects: _Rejects, report: ImportReport) -> Iterator[Observation]:
    repeats = _Repeats()
    for row in rows:
        mapped = mapper(row)
        if not isinstance(mapped, str) and (problem := repeats.problem(row, mapped)) is not None:
            mapped = problem
        report.rows += 1
        if isinstance(mapped, str):
            report.counts.rejected += 1
            if len(report.rejections) < SAMPLES:
                report.rejections.append((row.line, mapped))
            rejects.add(row, mapped)
        else:
            report.kept |= mapped.payload.keys() - KNOWN
            yield mapped


class _Repeats:
    """Finds rows that say something else about a run that an earlier row of the file is about.

    They are states of one run only if `updated_at` or `attempt` say in which order. Else they are more likely two runs
    whose ids have become the same, and to merge them would lose one without a word.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int]] = {}

    def problem(self, row: Row, run: Observation) -> str | None:
        """Why the row cannot be used, if it cannot."""
        key = hash((run.pipeline_id, run.external_run_id, run.attempt, run.source_version))
        content = hash((run.status, run.started_at, run.finished_at, run.rows_processed, run.error_message))
        line, known = self._seen.get(key, (0, 0))
        if not line:
            if len(self._seen) < MAX_COMPARED:
                self._seen[key] = (row.line, content)
            return None
        if known == content:
            return None
        return (
            f"id: the same as in line {line}, with other content; if both are about one run, give updated_at or"
            " attempt, else give each run an id of its own"
        )


def _batches(observations: Iterator[Observation]) -> Iterator[list[Observation]]:
    batch: list[Observation] = []
    for observation in observations:
        batch.append(observation)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
