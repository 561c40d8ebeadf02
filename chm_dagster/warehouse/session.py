"""One writer for each partner connection: the session that fences a second, or a forgotten, ingestion."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.runs import Observation
from chm_dagster.errors import Busy, DatabaseUnavailable
from chm_dagster.warehouse.engine import Engine, database_errors, is_lock_timeout
from chm_dagster.warehouse.runs import RunMerge, Tally, Watermark, advance_watermarks

_CLAIM = sa.text("SELECT pg_advisory_lock(hashtextextended('chm/connection/' || :name, 0))")
PATIENCE_SECONDS = 120.0
"""How long to wait for another ingestion of the same connection: longer than most sweeps take."""
# A writer that hangs without a word loses its session, and with it the lock, after this long.
_IDLE_SESSION_TIMEOUT = "10min"
_KEEP_ALIVE_SECONDS = 60.0


class LedgerWriter:
    """Writes runs of the connections that it has claimed. Its claims live and die with its one database session."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._last_used = time.monotonic()

    def close(self) -> None:
        """End the session, and with it all claims. Closing it again changes nothing."""
        if not self._connection.closed:
            # Not back to the pool: whatever state it is in, its locks go with it.
            self._connection.invalidate()
            self._connection.close()

    def claim(self, connection_name: str, patience: float = PATIENCE_SECONDS) -> None:
        """Become the only writer of this partner connection's runs.

        Raises Busy if another process is still at it after `patience` seconds.
        """
        try:
            with database_errors(), self._connection.begin():
                self._connection.execute(sa.text(f"SET LOCAL lock_timeout = {max(1, int(patience * 1000))}"))
                self._connection.execute(_CLAIM, {"name": connection_name})
        except DatabaseUnavailable as error:
            if is_lock_timeout(error.__cause__):
                raise Busy(f"connection {connection_name} is being ingested by another process") from None
            raise

    def keep_alive(self) -> None:
        """Tell the server that this writer still lives; cheap enough to call for every page. Raises DatabaseUnavailable
        if the session, and so the right to write, is gone.
        """
        if time.monotonic() - self._last_used > _KEEP_ALIVE_SECONDS:
            with database_errors(), self._connection.begin():
                self._connection.execute(sa.text("SELECT 1"))
            self._last_used = time.monotonic()

    def write(
        self, batches: Iterable[Sequence[Observation]], watermarks: Iterable[Watermark], *, rehearsal: bool = False
    ) -> dict[UUID, Tally]:
        """Merge all batches and move the watermarks in one transaction; a rehearsal is rolled back at its end.

        Raises DatabaseUnavailable; then nothing of it was written.
        """
        with database_errors(), self._connection.begin() as transaction:
            self._connection.execute(sa.text("SET LOCAL work_mem = '64MB'"))
            with RunMerge(self._connection) as merge:
                for batch in batches:
                    merge.add(batch)
            advance_watermarks(self._connection, watermarks)
            if rehearsal:
                transaction.rollback()
        self._last_used = time.monotonic()
        return merge.tallies


@contextmanager
def ledger_writer(engine: Engine) -> Iterator[LedgerWriter]:
    """A session to write runs with. Raises DatabaseUnavailable."""
    with database_errors():
        connection = engine.connect()
    writer = LedgerWriter(connection)
    try:
        with database_errors(), connection.begin():
            connection.execute(sa.text(f"SET idle_session_timeout = '{_IDLE_SESSION_TIMEOUT}'"))
        yield writer
    finally:
        writer.close()
