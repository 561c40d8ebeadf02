"""Hand-made histories of pipelines, written to the ledger unchanged."""

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.error_text import fingerprint
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.tables import clients, pipelines, runs
from chm_dagster_tests.factories import add_pipeline, minutes

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LETTERS = {"S": "success", "F": "failed", "R": "running", "C": "canceled", "-": "skipped"}


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """A run, as far as health is concerned. `id` breaks ties between runs with the same times.

    `seen` is when CHM saw it first.
    """

    id: UUID
    status: str
    started: datetime | None
    finished: datetime | None
    queued: datetime | None = None
    seen: datetime = NOW
    kind: str | None = None
    will_retry: bool = False
    error: str | None = None

    @property
    def message(self) -> str:
        """Why it failed, if it did."""
        return self.error if self.error is not None else f"no disk for run-{self.id.int}"

    @property
    def effective(self) -> datetime:
        """The time that orders runs."""
        return self.started or self.queued or self.finished or self.seen

    @property
    def settled(self) -> bool:
        """Whether it is over as success or failed, for good."""
        return self.status in ("success", "failed") and not self.will_retry

    @property
    def seconds(self) -> float | None:
        """The duration, or None if it is unknown or meaningless."""
        if self.started is None or self.finished is None or self.finished < self.started:
            return None
        return (self.finished - self.started).total_seconds()


def execution(
    number: int, letter: str, started: datetime | None, finished: datetime | None = None, **more: Any
) -> Execution:
    """By default, a finished run took ten minutes."""
    if finished is None and started is not None and letter != "R":
        finished = started + minutes(10)
    return Execution(UUID(int=number), LETTERS[letter], started, finished, **more)


def strip(letters: str, *, every: timedelta = HOUR, latest: datetime = NOW - HOUR) -> list[Execution]:
    """A history with one letter per run, oldest first; the last run starts at `latest`."""
    first = latest - every * (len(letters) - 1)
    return [execution(n, letter, first + every * n) for n, letter in enumerate(letters)]


def store(engine: sa.Engine, pipeline_id: UUID, executions: Iterable[Execution]) -> None:
    """Write runs of a pipeline."""
    with engine.begin() as connection:
        write(connection, pipeline_id, executions)


def write(connection: sa.Connection, pipeline_id: UUID, executions: Iterable[Execution]) -> None:
    """The lower half of an id is the run's, so that pipelines do not collide."""
    rows = [
        {
            "id": UUID(int=(pipeline_id.int & ~(2**64 - 1)) | e.id.int),
            "pipeline_id": pipeline_id,
            "external_run_id": f"run-{e.id.int}",
            "status": e.status,
            "started_at": e.started,
            "finished_at": e.finished,
            "queued_at": e.queued,
            "created_at": e.seen,
            "kind": e.kind,
            "will_retry": e.will_retry,
            "duration_seconds": e.seconds,
            "error_message": e.message if e.status == "failed" else None,
            "error_fingerprint": fingerprint(e.message) if e.status == "failed" else None,
            "source_url": f"https://partner.example/run-{e.id.int}",
        }
        for e in executions
    ]
    if rows:
        connection.execute(sa.insert(runs), rows)


def watch(engine: sa.Engine, history: str | Sequence[Execution], name: str = "orders", client: str = "Acme") -> UUID:
    """A pipeline with this history, which was read from its partner just now."""
    pipeline = add_pipeline(engine, name, client)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET observed_through = now() WHERE id = :id"), {"id": pipeline.id})
    store(engine, pipeline.id, strip(history) if isinstance(history, str) else history)
    return pipeline.id


def disable(engine: sa.Engine, table: sa.Table, slug: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.update(table).where(table.c.slug == slug).values(is_active=False))


def disable_client(engine: sa.Engine, slug: str) -> None:
    disable(engine, clients, slug)


def disable_pipeline(engine: sa.Engine, slug: str) -> None:
    disable(engine, pipelines, slug)


def slugs(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [row["pipeline_slug"] for row in rows]


def one(engine: sa.Engine, name: str, **parameters: Any) -> dict[str, Any]:
    """The only row of a result."""
    (row,) = ask(engine, name, **parameters)
    return row
