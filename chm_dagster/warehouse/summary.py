"""A client at a glance: how its runs ended in a window, and how each of its pipelines stands."""

import dataclasses
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.fields import bound
from chm_dagster.domain.inventory import Platform
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import InputError
from chm_dagster.warehouse.references import Ref, as_id, as_slug, unknown_client

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


# Each pipeline is a short range of the index of latest runs, which alone is read for the counts.
_SUMMARY = sa.text(f"""
SELECT c.id AS client_id, c.slug AS client_slug, p.id AS pipeline_id, p.slug AS pipeline_slug, p.name AS pipeline_name,
    p.platform, p.is_active, latest.status AS latest_status, latest.at AS latest_run_at, counts.*
FROM (
    SELECT id, slug FROM clients WHERE id = :id OR slug = :slug ORDER BY id = :id DESC NULLS LAST LIMIT 1
) AS c
LEFT JOIN pipelines AS p ON p.client_id = c.id
LEFT JOIN LATERAL (
    SELECT runs.status, coalesce(runs.started_at, runs.finished_at) AS at FROM runs WHERE runs.pipeline_id = p.id
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC LIMIT 1
) AS latest ON true
LEFT JOIN LATERAL (
    SELECT {", ".join(f"count(*) FILTER (WHERE runs.status = '{status}') AS {status}" for status in RunStatus)}
    FROM runs WHERE runs.pipeline_id = p.id AND runs.started_at >= :since AND runs.started_at < :until
) AS counts ON true
ORDER BY p.slug
""")  # noqa: S608 - built from constants


def client_summary(connection: sa.Connection, ref: Ref, since: datetime, until: datetime) -> ClientSummary:
    """One statement, whatever the number of pipelines. Raises NotFound."""
    named = {"id": as_id(ref), "slug": as_slug(ref)}
    rows = connection.execute(_SUMMARY, {**named, "since": since, "until": until}).all()
    if not rows:
        raise unknown_client(ref)
    counts = {str(status): sum(getattr(row, status) for row in rows) for status in RunStatus}
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
