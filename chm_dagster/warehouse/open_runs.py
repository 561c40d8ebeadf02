"""What a sweep should know of the ledger: which runs are unfinished, and what needs no second question."""

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.runs import OWN_IDS, OpenRun, RunStatus, ToldRun
from chm_dagster.warehouse.engine import database_errors
from chm_dagster.warehouse.tables import runs


def open_runs(engine: sa.Engine, pipeline_ids: Collection[UUID]) -> dict[UUID, tuple[OpenRun, ...]]:
    """The unfinished runs of these pipelines, those that started last first; pipelines without one are left out.

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
        )
        # The literal lets Postgres use the index of unfinished runs.
        .where(runs.c.status == sa.literal_column(f"'{RunStatus.RUNNING}'"))
        .where(runs.c.pipeline_id == sa.any_(sa.cast(list(pipeline_ids), pg.ARRAY(pg.UUID(as_uuid=True)))))
        .where(runs.c.external_run_id.op("!~")(sa.literal_column(f"'^({'|'.join(OWN_IDS)})'")))
        .order_by(runs.c.pipeline_id, runs.c.started_at.desc().nulls_last(), runs.c.external_run_id)
    )
    found: dict[UUID, list[OpenRun]] = defaultdict(list)
    with database_errors(), engine.connect() as connection:
        for pipeline_id, *fields in connection.execute(query):
            found[pipeline_id].append(OpenRun(*fields))
    return {pipeline_id: tuple(list_) for pipeline_id, list_ in found.items()}


def told_runs(engine: sa.Engine, pipeline_ids: Collection[UUID], since: datetime) -> dict[UUID, dict[str, ToldRun]]:
    """What these pipelines' runs that started after `since` said of their errors and rows, by run id.

    Raises DatabaseUnavailable.
    """
    query = (
        sa.select(
            runs.c.pipeline_id,
            runs.c.external_run_id,
            runs.c.finished_at,
            runs.c.error_message,
            runs.c.rows_processed,
        )
        .where(runs.c.started_at >= since)
        .where(runs.c.pipeline_id == sa.any_(sa.cast(list(pipeline_ids), pg.ARRAY(pg.UUID(as_uuid=True)))))
        .where(sa.or_(runs.c.error_message.is_not(None), runs.c.rows_processed.is_not(None)))
    )
    found: dict[UUID, dict[str, ToldRun]] = defaultdict(dict)
    with database_errors(), engine.connect() as connection:
        for pipeline_id, run_id, *told in connection.execute(query):
            found[pipeline_id][run_id] = ToldRun(*told)
    return dict(found)
