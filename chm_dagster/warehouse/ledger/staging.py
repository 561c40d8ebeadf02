"""How observations reach the server: the staging table, COPY's text format, and statements that run in the background.

The only module that uses psycopg below its public API. psycopg's `execute` waits for the server. While Postgres merges
one batch, CHM maps the next one, in the same thread and on the same session; that takes a statement that is sent now
and fetched later, and a way to see whether it has ended. psycopg has neither in its public API: its pipeline mode
allows no COPY, and does not report progress. `psycopg.generators` and `Connection.wait` are stable in practice but not
promised, so pyproject.toml bounds psycopg's version, and test_libpq.py pins what is relied on here.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import orjson
import psycopg
from psycopg import generators
from psycopg.copy import LibpqWriter
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from chm_dagster.domain.runs import Observation

KEY = ("pipeline_id", "external_run_id")
# In the order in which `encode` writes them.
COLUMNS = (
    "pipeline_id",
    "status",
    "attempt",
    "progress",
    "started_at",
    "finished_at",
    "duration_seconds",
    "rows_processed",
    "source_version",
    "observed_at",
    "queued_at",
    "kind",
    "will_retry",
    "payload",
    "external_run_id",
    "error_message",
    "status_reason",
    "source_url",
    "error_fingerprint",
)

CREATE = """
CREATE TEMP TABLE IF NOT EXISTS staged_runs (
    pipeline_id uuid NOT NULL,
    external_run_id text COLLATE "C" NOT NULL,
    status text NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    duration_seconds double precision,
    rows_processed bigint,
    error_message text,
    status_reason text,
    source_url text,
    error_fingerprint text,
    payload jsonb NOT NULL,
    attempt integer NOT NULL,
    progress smallint NOT NULL,
    source_version timestamptz,
    observed_at timestamptz NOT NULL,
    queued_at timestamptz,
    kind text,
    will_retry boolean NOT NULL
) ON COMMIT DELETE ROWS
"""

COPY = f"COPY pg_temp.staged_runs ({', '.join(COLUMNS)}) FROM STDIN"

_NULL = r"\N"
_TABS = bytes.maketrans(b",", b"\t")
_BACKSLASH = "\\"


def _escape(text: str | None) -> str:
    if text is None:
        return _NULL
    # These two tests are cheap, and nearly every text passes them.
    if text.isprintable() and _BACKSLASH not in text:
        return text
    text = text.replace(_BACKSLASH, _BACKSLASH * 2)
    return text.replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def encode(observations: Iterable[Observation]) -> bytes:
    """One line for each observation, UTF-8, ready for `COPY ... FROM STDIN`."""
    lines = []
    # Written out without a loop, because this runs once for every ingested run.
    for o in observations:
        # None of these can hold a comma, a quote or a backslash: their JSON differs from COPY's format in punctuation.
        plain = orjson.dumps(
            (
                o.pipeline_id,
                o.status,
                o.attempt,
                o.progress,
                o.started_at,
                o.finished_at,
                o.duration_seconds,
                o.rows_processed,
                o.source_version,
                o.observed_at,
                o.queued_at,
                o.kind,
                o.will_retry,
            )
        )
        # JSON escapes control characters itself; only its backslashes mean something to COPY.
        payload = orjson.dumps(o.payload).replace(b"\\", b"\\\\")
        texts = "\t".join(
            (
                _escape(o.external_run_id),
                _escape(o.error_message),
                _escape(o.status_reason),
                _escape(o.source_url),
                _escape(o.error_fingerprint),
            )
        )
        plain = plain[1:-1].translate(_TABS, b'"').replace(b"null", b"\\N")
        lines.append(b"\t".join((plain, payload, texts.encode())))
    lines.append(b"")
    return b"\n".join(lines)


UNSENT_BYTES = 4 * 1024 * 1024
"""How much COPY data may wait in memory for the socket before Python does."""


class BackgroundStatement:
    """One statement at a time, or several separated by semicolons, on a session that nothing else uses meanwhile."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._running = False

    def start(self, sql: str) -> None:
        """Send the statement, without parameters, and return at once."""
        pgconn = self._connection.pgconn
        pgconn.send_query(sql.encode())
        self._connection.wait(generators.send(pgconn))
        self._running = True

    def is_running(self) -> bool:
        """Whether the server is still running the statement. A statement that has ended still has to be fetched."""
        pgconn = self._connection.pgconn
        pgconn.consume_input()
        return self._running and bool(pgconn.is_busy())

    def fetch(self) -> list[tuple[str, ...]]:
        """Wait for the end. Returns the rows of the first statement that has any as text, nothing if none was started.

        Raises the psycopg error of the first statement that failed; the session is free again afterwards.
        """
        if not self._running:
            return []
        self._running = False
        results = self._connection.wait(generators.fetch_many(self._connection.pgconn))
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, self._connection.info.encoding)
        return next((_rows(result) for result in results if result.status == ExecStatus.TUPLES_OK), [])


def buffered_copy(cursor: psycopg.Cursor[Any], statement: str) -> AbstractContextManager[psycopg.Copy]:
    """COPY ... FROM STDIN that lets up to 4 MB wait for the socket, so that writing rarely blocks."""
    return cursor.copy(statement, writer=LibpqWriter(cursor, flush_threshold=UNSENT_BYTES))


def _rows(result: PGresult) -> list[tuple[str, ...]]:
    columns: Sequence[int] = range(result.nfields)
    return [
        tuple((result.get_value(row, column) or b"").decode() for column in columns) for row in range(result.ntuples)
    ]
