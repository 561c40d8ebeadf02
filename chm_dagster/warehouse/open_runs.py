"""The runs that the ledger believes unfinished: each sweep asks its partner what became of them."""

from collections import defaultdict
from collections.abc import Collection
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.runs import OpenRun, RunStatus
from chm_dagster.warehouse.engine import database_errors
from chm_dagster.warehouse.tables import runs


def open_runs(engine: sa.Engine, pipeline_ids: Collection[UUID]) -> dict[UUID, tuple[OpenRun, ...]]:
    """The unfinished runs of these pipelines, those that started last first; pipelines without one are left out.

    Raises DatabaseUnavailable.
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
        .order_by(runs.c.pipeline_id, runs.c.started_at.desc().nulls_last(), runs.c.external_run_id)
    )
    found: dict[UUID, list[OpenRun]] = defaultdict(list)
    with database_errors(), engine.connect() as connection:
        for pipeline_id, *fields in connection.execute(query):
            found[pipeline_id].append(OpenRun(*fields))
    return {pipeline_id: tuple(list_) for pipeline_id, list_ in found.items()}
