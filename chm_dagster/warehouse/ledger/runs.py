"""The runs in the ledger: find, list and summarize them, and what a sync needs to know of them."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.fields import bound
from chm_dagster.domain.limits import MAX_RUN_ID_CHARS
from chm_dagster.domain.nouns import Input
from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.runs import OWN_IDS, KnownDetails, MergeOutcome, Observation, OpenRun, Run, RunKind, RunStatus
from chm_dagster.domain.validation import read_value, shown
from chm_dagster.domain.values import clean_text
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import reading, writing
from chm_dagster.warehouse.engine import Engine, database_errors
from chm_dagster.warehouse.inventory.references import (
    PIPELINE_KEY,
    Ref,
    pipeline_condition,
    pipeline_id,
    select_client,
    select_pipeline,
    unknown_client,
    unknown_pipeline,
)
from chm_dagster.warehouse.ledger.record import COLUMNS, as_run, find, record
from chm_dagster.warehouse.named_queries import ask
from chm_dagster.warehouse.tables import clients, runs

WINDOW = timedelta(days=30)
"""How far a summary looks back by default."""
Order = Literal["asc", "desc"]
Position = tuple[datetime, datetime | None, UUID]
"""Where a page of runs ends: effective time, finish and id of its last run."""


@dataclasses.dataclass(frozen=True, slots=True)
class LatestRun:
    """The status of a pipeline: its latest run, whenever that was; None and None if it never ran.

    `latest_run_at` is its effective time.
    """

    pipeline_id: UUID
    pipeline_slug: str
    pipeline_name: str
    platform: Platform
    latest_status: RunStatus | None
    latest_run_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ClientSummary:
    """`status_counts` has all five statuses: runs from `since` up to, not including, `until`, by their effective time.

    The counts include disabled pipelines, whose history stays; `latest_by_pipeline` lists the active ones, by slug.
    """

    client_id: UUID
    client_slug: str
    since: datetime
    until: datetime
    status_counts: dict[str, int]
    latest_by_pipeline: list[LatestRun]


class Runs:
    """Record and read runs. Every method raises DatabaseUnavailable if the server fails."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(
        self, pipeline_ref: Ref, fields: Mapping[str, Any] | Input, *, idempotency_key: str | None = None
    ) -> tuple[Run, MergeOutcome]:
        """Record a run that no partner reports. `status` is required; without a time, now is used.

        Recording a run again adds to it: fields that are not given stay. The outcome is that of the merge
        rule: `stale` means that the ledger has newer knowledge, and the run is returned as stored. Without
        `external_run_id` the run gets one. The same `idempotency_key` finds the same run again, `unchanged`, whatever
        became of it since; with another body it raises Conflict.

        A disabled pipeline accepts runs as well, so that its history can be completed; nothing of it shows
        before the pipeline is enabled again. Raises NotFound for the pipeline, InputError, Conflict.
        """
        with writing(self._engine) as connection:
            return record(connection, pipeline_ref, fields, idempotency_key)

    def get(self, pipeline_ref: Ref, external_run_id: str) -> Run:
        """The run of this id. Raises NotFound for the pipeline or the run."""
        with reading(self._engine) as connection:
            owner = pipeline_id(connection, pipeline_ref)
            row = find(connection, owner, external_run_id) if _may_be_run_id(external_run_id) else None
            key = None if row is not None else connection.scalar(select_pipeline(owner, PIPELINE_KEY))
        if row is None:
            raise NotFound(f"{key} has no run '{shown(external_run_id)}'")
        return as_run(row)

    def list(
        self,
        pipeline_ref: Ref,
        *,
        status: RunStatus | str | None = None,
        kind: RunKind | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        order: Order = "desc",
        cursor: str | None = None,
    ) -> paging.Page[Run]:
        """Runs of a pipeline, the latest first (`asc`: last), also of a disabled one.

        `since` (inclusive) and `until` (exclusive) bound the effective time. Raises NotFound for the pipeline,
        InputError.
        """
        conditions = _conditions(status, kind, bound(since, "since"), bound(until, "until"))
        paging.check_limit(limit)
        if order not in ("asc", "desc"):
            raise InputError("order", "must be one of asc, desc")
        if cursor is not None:
            position = paging.decode(cursor, [paging.time, paging.optional_time, paging.uuid])
            conditions.append(_after((position[0], position[1], position[2]), order))
        with reading(self._engine) as connection:
            conditions.append(runs.c.pipeline_id == pipeline_id(connection, pipeline_ref))
            query = sa.select(*COLUMNS).where(*conditions).order_by(*_sorting(order)).limit(limit + 1)
            items = [as_run(row) for row in connection.execute(query)]
        return paging.page(items, limit, lambda run: [run.effective_at, run.finished_at, run.id])

    def latest(self, pipeline_ref: Ref) -> Run | None:
        """The latest run of a pipeline, None if it never ran. Raises NotFound."""
        condition, parameters = pipeline_condition(pipeline_ref)
        with reading(self._engine) as connection:
            row = connection.execute(_latest(condition), parameters).one_or_none()
        if row is None:
            raise unknown_pipeline(pipeline_ref)
        return None if row.id is None else as_run(row)

    def summary(self, client_ref: Ref, since: datetime | None = None, until: datetime | None = None) -> ClientSummary:
        """How a client's runs ended in a window, by default the last 30 days, and the latest run of its pipelines.

        Raises NotFound, InputError.
        """
        start, end = window(since, until, datetime.now(UTC))
        with reading(self._engine) as connection:
            client = connection.execute(select_client(client_ref, clients.c.id, clients.c.slug)).one_or_none()
        if client is None:
            raise unknown_client(client_ref)
        rows = ask(self._engine, "client_summary", client_slug=client.slug, since=start, until=end)
        counts = {str(status): sum(row[status] for row in rows) for status in RunStatus}
        latest = [_latest_of(row) for row in rows if row["is_active"]]
        return ClientSummary(client.id, client.slug, start, end, counts, latest)


def _latest_of(row: Mapping[str, Any]) -> LatestRun:
    return LatestRun(
        row["pipeline_id"],
        row["pipeline_slug"],
        row["pipeline_name"],
        Platform(row["platform"]),
        RunStatus(row["latest_status"]) if row["latest_status"] else None,
        row["latest_run_at"],
    )


@functools.cache
def _latest(condition: str) -> sa.TextClause:
    # Text: SQLAlchemy would take several times as long to compile this statement as Postgres takes to run it.
    columns = ", ".join(f"r.{column.name}" for column in COLUMNS)
    return sa.text(f"""
        SELECT {columns} FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
        LEFT JOIN LATERAL latest_runs(p.id, 1) AS latest ON true
        LEFT JOIN runs AS r ON r.id = latest.id
        WHERE {condition}
    """)  # noqa: S608 - built from constants


def _may_be_run_id(text: str) -> bool:
    return 1 <= len(text) <= MAX_RUN_ID_CHARS and clean_text(text) == text


def _conditions(
    status: RunStatus | str | None, kind: RunKind | str | None, since: datetime | None, until: datetime | None
) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if status is not None:
        conditions.append(runs.c.status == str(read_value(RunStatus, status, "status")))
    if kind is not None:
        conditions.append(runs.c.kind == str(read_value(RunKind, kind, "kind")))
    if since is not None:
        conditions.append(runs.c.effective_at >= since)
    if until is not None:
        conditions.append(runs.c.effective_at < until)
    if since is not None and until is not None and since >= until:
        raise InputError("since", "not before until; send an earlier time")
    return conditions


def _sorting(order: Order) -> tuple[sa.ColumnElement[Any], ...]:
    effective, finished, run = runs.c.effective_at, runs.c.finished_at, runs.c.id
    if order == "desc":
        return effective.desc(), finished.desc().nulls_last(), run.desc()
    return effective.asc(), finished.asc().nulls_first(), run.asc()


def _after(position: Position, order: Order) -> sa.ColumnElement[bool]:
    """The condition for rows after a position. The index can jump to the first comparison."""
    effective, finished, run = position
    column = runs.c.effective_at
    rest = _after_finish(finished, run, order)
    if order == "desc":
        return sa.and_(column <= effective, sa.or_(column < effective, rest))
    return sa.and_(column >= effective, sa.or_(column > effective, rest))


def _after_finish(finished: datetime | None, run: UUID, order: Order) -> sa.ColumnElement[bool]:
    column = runs.c.finished_at
    if order == "desc":
        tie = sa.and_(column.is_not_distinct_from(finished), runs.c.id < run)
        return tie if finished is None else sa.or_(column < finished, column.is_(None), tie)
    tie = sa.and_(column.is_not_distinct_from(finished), runs.c.id > run)
    return sa.or_(column.is_not(None), tie) if finished is None else sa.or_(column > finished, tie)


def window(since: datetime | None, until: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """The window's limits in UTC: by default up to now and 30 days long. Raises InputError."""
    end = bound(until, "until") or now.astimezone(UTC)
    try:
        start = bound(since, "since") or end - WINDOW
    except OverflowError:
        raise InputError("until", "out of range; send a later time") from None
    if start >= end:
        raise InputError("since", "not before until; send an earlier time")
    return start, end


_FAILING = sa.text(f"""
SELECT wanted.id, latest.external_run_id
FROM unnest(CAST(:pipeline_ids AS uuid[])) AS wanted(id)
JOIN LATERAL latest_health_runs(wanted.id, 1) AS latest ON latest.status = 'failed'
WHERE latest.external_run_id !~ '^({"|".join(OWN_IDS)})'
""")  # noqa: S608 - built from constants
_DETAILS = (runs.c.error_message, runs.c.rows_processed)


def open_runs(engine: sa.Engine, pipeline_ids: Collection[UUID]) -> dict[UUID, tuple[OpenRun, ...]]:
    """The unfinished runs of these pipelines, the latest first; pipelines without one are left out.

    Runs whose id CHM itself made, of pings and of recordings by hand, are left out: no partner knows them. Raises
    DatabaseUnavailable.
    """
    query = (
        sa.select(
            runs.c.pipeline_id,
            runs.c.external_run_id,
            runs.c.started_at,
            runs.c.attempt,
            runs.c.source_version,
            runs.c.source_url,
            runs.c.payload,
            runs.c.queued_at,
            runs.c.kind,
        )
        # The literal lets Postgres use the index of unfinished runs.
        .where(runs.c.status == sa.literal_column(f"'{RunStatus.RUNNING}'"))
        .where(runs.c.pipeline_id == sa.any_(sa.cast(list(pipeline_ids), pg.ARRAY(pg.UUID(as_uuid=True)))))
        .where(runs.c.external_run_id.op("!~")(sa.literal_column(f"'^({'|'.join(OWN_IDS)})'")))
        .order_by(runs.c.pipeline_id, runs.c.effective_at.desc(), runs.c.external_run_id)
    )
    found: dict[UUID, list[OpenRun]] = defaultdict(list)
    with database_errors(), engine.connect() as connection:
        for row in connection.execute(query).mappings():
            fields = {**row, "kind": RunKind(row["kind"]) if row["kind"] else None}
            found[fields.pop("pipeline_id")].append(OpenRun(**fields))
    return {pipeline_id: tuple(list_) for pipeline_id, list_ in found.items()}


_UNKNOWN = sa.text("""
SELECT w.pipeline_id, w.external_run_id
FROM unnest(
    CAST(:pipeline_ids AS uuid[]), CAST(:run_ids AS text[]), CAST(:attempts AS int[]), CAST(:progresses AS int[]),
    CAST(:versions AS timestamptz[]), CAST(:statuses AS text[]), CAST(:observed AS timestamptz[])
) AS w(pipeline_id, external_run_id, attempt, progress, source_version, status, observed_at)
LEFT JOIN runs AS r ON r.pipeline_id = w.pipeline_id AND r.external_run_id = w.external_run_id
WHERE r.id IS NULL
   OR (w.attempt, w.progress, coalesce(w.source_version, '-infinity'))
    > (r.attempt, r.progress, coalesce(r.source_version, '-infinity'))
   -- Without a version, the later observation of the same attempt is the newer truth.
   OR ((w.attempt, w.progress, coalesce(w.source_version, '-infinity'))
     = (r.attempt, r.progress, coalesce(r.source_version, '-infinity'))
       AND w.status <> r.status AND w.observed_at > r.observed_at)
""")


def unknown_runs(engine: sa.Engine, observations: Sequence[Observation]) -> set[tuple[str, str]]:
    """The keys of the observations that the ledger lacks, or of which it knows less. Raises DatabaseUnavailable."""
    if not observations:
        return set()
    given = {
        "pipeline_ids": [o.pipeline_id for o in observations],
        "run_ids": [o.external_run_id for o in observations],
        "attempts": [o.attempt for o in observations],
        "progresses": [o.progress for o in observations],
        "versions": [o.source_version for o in observations],
        "statuses": [o.status.value for o in observations],
        "observed": [o.observed_at for o in observations],
    }
    with database_errors(), engine.connect() as connection:
        return {(str(row.pipeline_id), row.external_run_id) for row in connection.execute(_UNKNOWN, given)}


def failing_runs(engine: sa.Engine, pipeline_ids: Collection[UUID]) -> dict[UUID, str]:
    """The id of the run that makes a pipeline fail: its latest settled run, if that failed.

    Backfills do not count, and runs whose id CHM itself made are left out, as in `open_runs`. Raises
    DatabaseUnavailable.
    """
    with database_errors(), engine.connect() as connection:
        found = connection.execute(_FAILING, {"pipeline_ids": list(pipeline_ids)})
        return {row.id: row.external_run_id for row in found}


def known_details(
    engine: sa.Engine, pipeline_ids: Collection[UUID], since: datetime, *, ends: bool = False
) -> dict[UUID, dict[str, KnownDetails]]:
    """The errors and row counts of these pipelines' runs since a time, by run id.

    With `ends`, also of runs of which only the end is known. Raises DatabaseUnavailable.
    """
    query = (
        sa.select(
            runs.c.pipeline_id,
            runs.c.external_run_id,
            runs.c.finished_at,
            runs.c.error_message,
            runs.c.rows_processed,
            runs.c.source_version,
        )
        .where(runs.c.effective_at >= since)
        .where(runs.c.pipeline_id == sa.any_(sa.cast(list(pipeline_ids), pg.ARRAY(pg.UUID(as_uuid=True)))))
        .where(sa.or_(*(column.is_not(None) for column in _DETAILS + ((runs.c.finished_at,) if ends else ()))))
    )
    found: dict[UUID, dict[str, KnownDetails]] = defaultdict(dict)
    with database_errors(), engine.connect() as connection:
        for pipeline_id, run_id, *details in connection.execute(query):
            found[pipeline_id][run_id] = KnownDetails(*details)
    return dict(found)
