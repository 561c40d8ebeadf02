"""A client at a glance: how its runs ended in a window, and how each of its pipelines stands."""

import dataclasses
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.fields import bound
from chm_dagster.domain.inventory import Platform
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import InputError
from chm_dagster.warehouse.references import Ref, select_client, unknown_client
from chm_dagster.warehouse.tables import clients, pipelines, runs

WINDOW = timedelta(days=30)


@dataclasses.dataclass(frozen=True, slots=True)
class LatestRun:
    """How a pipeline stands: its latest run, whenever that was; None twice if it never ran.

    `latest_run_at` is when that run started, or finished if its start is not known.
    """

    pipeline_id: UUID
    pipeline_slug: str
    pipeline_name: str
    platform: Platform
    latest_status: RunStatus | None
    latest_run_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ClientSummary:
    """`status_counts` has all five statuses: runs that started from `since` up to, not including, `until`.

    The counts include disabled pipelines, whose history stays; `latest_by_pipeline` lists the active ones, by slug.
    """

    client_id: UUID
    client_slug: str
    since: datetime
    until: datetime
    status_counts: dict[str, int]
    latest_by_pipeline: list[LatestRun]


def window(since: datetime | None, until: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """The window's limits in UTC: up to now and 30 days long where nothing else is said. Raises InputError."""
    end = bound(until, "until") or now.astimezone(UTC)
    try:
        start = bound(since, "since") or end - WINDOW
    except OverflowError:
        raise InputError("until", "out of range; send a later time") from None
    if start >= end:
        raise InputError("since", "not before until; send an earlier time")
    return start, end


def client_summary(connection: sa.Connection, ref: Ref, since: datetime, until: datetime) -> ClientSummary:
    """One statement: each pipeline is a short range of the index of latest runs. Raises NotFound."""
    rows = connection.execute(_query(ref, since, until)).all()
    if not rows:
        raise unknown_client(ref)
    counts = {str(status): sum(getattr(row, status) or 0 for row in rows) for status in RunStatus}
    latest = [
        LatestRun(
            row.pipeline_id,
            row.pipeline_slug,
            row.pipeline_name,
            Platform(row.platform),
            RunStatus(row.latest_status) if row.latest_status else None,
            row.latest_run_at,
        )
        for row in rows
        if row.is_active
    ]
    return ClientSummary(rows[0].client_id, rows[0].client_slug, since, until, counts, latest)


def _query(ref: Ref, since: datetime, until: datetime) -> sa.Select[tuple[object, ...]]:
    client = select_client(ref, clients.c.id, clients.c.slug).subquery("client")
    latest = (
        sa.select(runs.c.status, sa.func.coalesce(runs.c.started_at, runs.c.finished_at).label("at"))
        .where(runs.c.pipeline_id == pipelines.c.id)
        .order_by(runs.c.started_at.desc().nulls_last(), runs.c.finished_at.desc().nulls_last(), runs.c.id.desc())
        .limit(1)
        .lateral("latest")
    )
    counts = (
        sa.select(*(sa.func.count().filter(runs.c.status == status).label(status) for status in RunStatus))
        .where(runs.c.pipeline_id == pipelines.c.id, runs.c.started_at >= since, runs.c.started_at < until)
        .lateral("counts")
    )
    tables = (
        client.outerjoin(pipelines, pipelines.c.client_id == client.c.id)
        .outerjoin(latest, sa.true())
        .outerjoin(counts, sa.true())
    )
    return (
        sa.select(
            client.c.id.label("client_id"),
            client.c.slug.label("client_slug"),
            pipelines.c.id.label("pipeline_id"),
            pipelines.c.slug.label("pipeline_slug"),
            pipelines.c.name.label("pipeline_name"),
            pipelines.c.platform,
            pipelines.c.is_active,
            latest.c.status.label("latest_status"),
            latest.c.at.label("latest_run_at"),
            *counts.c,
        )
        .select_from(tables)
        .order_by(pipelines.c.slug)
    )
