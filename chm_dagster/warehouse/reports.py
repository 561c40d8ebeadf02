"""What a client's report needs from the ledger, and what is kept of the reports that were issued."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.alerts import Gap, RunFact
from chm_dagster.domain.maintenance import times_of
from chm_dagster.domain.periods import Period, ReportPeriod
from chm_dagster.domain.pipelines import PUSHED
from chm_dagster.domain.reports import Issued, bounded
from chm_dagster.domain.service import Watched
from chm_dagster.warehouse.alerts import Evaluation, coverage_of, expectations_of, fact_of
from chm_dagster.warehouse.api_uptime import api_gaps
from chm_dagster.warehouse.engine import Engine, database_errors
from chm_dagster.warehouse.inventory.references import Ref, select_client, unknown_client
from chm_dagster.warehouse.tables import clients

BATCH = 200
"""Pipelines whose runs are in memory at a time."""
_SENDING = "hashtextextended('chm/reports/sending', 0)"

_PIPELINES = sa.text("""
SELECT p.*, p.is_active AND c.is_active AS is_watched, c.maintenance AS of_client, first.effective_at AS first_run_at
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
LEFT JOIN LATERAL (
    SELECT r.effective_at FROM runs AS r WHERE r.pipeline_id = p.id ORDER BY r.effective_at LIMIT 1
) AS first ON true
WHERE p.client_id = :client AND p.environment = 'prod'
ORDER BY p.slug
""")
_OTHERS = sa.text("""
SELECT count(*) FROM pipelines WHERE client_id = :client AND environment <> 'prod' AND is_active
""")

_RUN = "r.pipeline_id, r.external_run_id, r.status, r.effective_at, r.started_at, r.finished_at, r.kind, r.will_retry"
_OLDEST = "ORDER BY r.effective_at, r.finished_at NULLS FIRST, r.id"
_NEWEST = "ORDER BY r.effective_at DESC, r.finished_at DESC NULLS LAST, r.id DESC"
# The runs of the time span; and of the time before what was open then: the last settled runs, the last success, the
# first failure after it, and what is running.
_RUNS = sa.text(f"""
SELECT r.* FROM unnest(CAST(:ids AS uuid[])) AS p(id)
LEFT JOIN LATERAL (
    SELECT * FROM health_runs AS r
    WHERE r.pipeline_id = p.id AND r.status = 'success' AND r.effective_at < :since {_NEWEST} LIMIT 1
) AS good ON true
CROSS JOIN LATERAL (
    SELECT {_RUN} FROM runs AS r WHERE r.pipeline_id = p.id AND r.effective_at >= :since AND r.effective_at < :until
    UNION
    (SELECT {_RUN} FROM health_runs AS r WHERE r.pipeline_id = p.id AND r.effective_at < :since {_NEWEST} LIMIT 30)
    UNION
    (SELECT {_RUN} FROM runs AS r WHERE r.pipeline_id = p.id AND r.effective_at < :since
         AND r.kind IS DISTINCT FROM 'backfill' {_NEWEST} LIMIT 1)
    UNION
    SELECT {_RUN} FROM health_runs AS r WHERE r.id = good.id
    UNION
    (SELECT {_RUN} FROM health_runs AS r
     WHERE r.pipeline_id = p.id AND r.status = 'failed' AND r.effective_at < :since
       AND r.effective_at >= coalesce(good.effective_at, '-infinity') AND r.id IS DISTINCT FROM good.id
       AND (good.id IS NULL OR (r.effective_at, coalesce(r.finished_at, '-infinity'), r.id)
           > (good.effective_at, coalesce(good.finished_at, '-infinity'), good.id))
     {_OLDEST} LIMIT 1)
    UNION
    SELECT {_RUN} FROM runs AS r WHERE r.pipeline_id = p.id AND r.status = 'running' AND r.effective_at < :since
) AS r
""")  # noqa: S608 - built from constants

_KEPT = sa.text("SELECT reports FROM clients WHERE id = :client")
_KEEP = sa.text("UPDATE clients SET reports = :reports WHERE id = :client").bindparams(
    sa.bindparam("reports", type_=pg.JSONB)
)
_COLUMNS = tuple(
    clients.c[name]
    for name in ("id", "slug", "name", "timezone", "report_email", "report_period", "created_at", "reports")
)
_RECEIVERS = sa.select(*_COLUMNS).where(clients.c.is_active).order_by(clients.c.slug)


@dataclasses.dataclass(frozen=True, slots=True)
class Receiver:
    """A client as reports see it: of which periods it gets reports. `email` is None if they are not sent.

    `issues` are by period.
    """

    id: UUID
    slug: str
    name: str
    timezone: str
    email: str | None
    period: ReportPeriod
    created_at: datetime
    issues: Mapping[str, Issued]

    @property
    def issued(self) -> list[Period]:
        """The periods whose reports were issued, the last one first."""
        return sorted(map(Period.read, self.issues), key=lambda one: (one.after, one.first), reverse=True)


class ReportSource:
    """One state of the ledger: everything that is read through it is as of the same moment."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def client(self, ref: Ref) -> Receiver:
        """The client with this id or slug, active or disabled. Raises NotFound."""
        row = self.connection.execute(select_client(ref, *_COLUMNS)).one_or_none()
        if row is None:
            raise unknown_client(ref)
        return _receiver(row)

    def pipelines(self, client: UUID, start: datetime, end: datetime, now: datetime) -> list[tuple[UUID, Watched]]:
        """The client's pipelines in production, with their windows of maintenance in a time span."""
        gaps = tuple(api_gaps(self.connection, now, start))
        return [
            (row.id, _watched(row, now, gaps, times_of([*row.maintenance, *row.of_client], start, end)))
            for row in self.connection.execute(_PIPELINES, {"client": client})
        ]

    def others(self, client: UUID) -> int:
        """How many active pipelines the client has outside of production."""
        return int(self.connection.scalar(_OTHERS, {"client": client}) or 0)

    def runs(self, ids: Sequence[UUID], since: datetime, until: datetime) -> dict[UUID, list[RunFact]]:
        """The runs of these pipelines in a time span, and those before it that say what was open at its start."""
        found: dict[UUID, list[RunFact]] = {id_: [] for id_ in ids}
        wanted = {"ids": list(ids), "since": since, "until": until}
        for pipeline, *run in self.connection.execute(_RUNS, wanted):
            found[pipeline].append(fact_of(*run))
        return found

    def errors(self, runs: Iterable[tuple[UUID, str]], now: datetime) -> dict[tuple[UUID, str], tuple[str, str | None]]:
        """Of each run the telling line of its error, and the link to it."""
        return Evaluation(self.connection, now).errors(list(runs))


@contextmanager
def report_source(engine: Engine) -> Iterator[ReportSource]:
    """The ledger as it is now, for reading. Raises DatabaseUnavailable."""
    with (
        database_errors(),
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        connection.begin(),
    ):
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql("SELECT set_config('jit', 'off', true)")
        yield ReportSource(connection)


def receivers(engine: Engine) -> list[Receiver]:
    """The active clients by slug. Raises DatabaseUnavailable."""
    with database_errors(), engine.connect() as connection:
        return [_receiver(row) for row in connection.execute(_RECEIVERS)]


def keep_issue(engine: Engine, client: UUID, period: str, issued: Issued) -> None:
    """Replace what is kept of a period's report. Raises DatabaseUnavailable."""
    with database_errors(), engine.begin() as connection:
        row = connection.execute(sa.text(f"{_KEPT.text} FOR UPDATE"), {"client": client}).one()
        issues = bounded({**_issues(row.reports), period: issued})
        connection.execute(_KEEP, {"client": client, "reports": msgspec.to_builtins(issues)})


@contextmanager
def sending(engine: Engine) -> Iterator[bool]:
    """Whether this process is the one that issues and sends reports at this time. Raises DatabaseUnavailable."""
    with database_errors(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        is_mine = bool(connection.scalar(sa.text(f"SELECT pg_try_advisory_lock({_SENDING})")))
        try:
            yield is_mine
        finally:
            if is_mine:
                connection.execute(sa.text(f"SELECT pg_advisory_unlock({_SENDING})"))


def _receiver(row: Any) -> Receiver:
    return Receiver(
        row.id,
        row.slug,
        row.name,
        row.timezone or "UTC",
        row.report_email,
        ReportPeriod(row.report_period),
        row.created_at,
        _issues(row.reports),
    )


def _issues(reports: Mapping[str, Any]) -> dict[str, Issued]:
    return {period: msgspec.convert(kept, Issued) for period, kept in reports.items()}


def _watched(row: Any, now: datetime, gaps: tuple[Gap, ...], maintenance: tuple[Gap, ...]) -> Watched:
    coverage = coverage_of(row, now, gaps)
    return Watched(
        row.slug,
        row.name,
        row.platform,
        expectations_of(row),
        # The first sync reads all the history that a partner has.
        row.created_at if row.first_run_at is None else min(row.created_at, row.first_run_at),
        coverage,
        row.is_watched,
        row.external_id is None or (row.connection or "").startswith(PUSHED),
        row.doubt_since is not None and coverage.known_through == row.doubt_since,
        row.owner,
        maintenance,
    )
