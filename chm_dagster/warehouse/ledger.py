"""The runs in the ledger: record one, find one, list them, sum them up."""

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.fields import bound, shown, word
from chm_dagster.domain.runs import MAX_RUN_ID_CHARS, Run, RunStatus
from chm_dagster.domain.values import clean_text
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import reading, writing
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.recording import COLUMNS, Outcome, as_run, find, record
from chm_dagster.warehouse.references import Ref, pipeline_condition, pipeline_id, unknown_pipeline
from chm_dagster.warehouse.summary import ClientSummary, client_summary, window
from chm_dagster.warehouse.tables import runs

Order = Literal["asc", "desc"]
Position = tuple[datetime | None, datetime | None, UUID]
"""Where a page of runs ends: start, finish and id of its last run."""


class Runs:
    """Record and read runs. All of it raises DatabaseUnavailable where the server is at fault."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(
        self, pipeline_ref: Ref, fields: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> tuple[Run, Outcome]:
        """Take a run into the ledger that no partner tells of. `status` is required; whoever names no time means now.

        Recording a run again says more of it, or the same: what is not said stays. The outcome is that of the merge
        rule: `stale` means that the ledger knows better, and the run is handed back as it stands. Without
        `external_run_id` the run gets one. The same `idempotency_key` finds the same run again, `unchanged`, whatever
        became of it since; with another body it raises Conflict.

        A disabled pipeline takes runs, too: whoever completes its history does so on purpose, and nothing of it shows
        before the pipeline is enabled again. Raises NotFound for the pipeline, InputError, Conflict.
        """
        with writing(self._engine) as connection:
            return record(connection, pipeline_ref, fields, idempotency_key)

    def get(self, pipeline_ref: Ref, external_run_id: str) -> Run:
        """The run of this id. Raises NotFound for the pipeline or the run."""
        with reading(self._engine) as connection:
            owner = pipeline_id(connection, pipeline_ref)
            row = find(connection, owner, external_run_id) if _may_be_run_id(external_run_id) else None
        if row is None:
            raise NotFound(f"no run '{shown(external_run_id)}' of pipeline '{shown(pipeline_ref)}'")
        return as_run(row)

    def list(
        self,
        pipeline_ref: Ref,
        *,
        status: RunStatus | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        order: Order = "desc",
        cursor: str | None = None,
    ) -> paging.Page[Run]:
        """Runs of a pipeline, the latest first (`asc`: last), also of a disabled one.

        `since` (inclusive) and `until` (exclusive) are about the start: with one of them, runs without a start are
        left out. Raises NotFound for the pipeline, InputError.
        """
        conditions = _conditions(status, bound(since, "since"), bound(until, "until"))
        paging.check_limit(limit)
        if order not in ("asc", "desc"):
            raise InputError("order", "not one of asc, desc")
        position = None if cursor is None else paging.decode(cursor, [paging.time, paging.time, paging.uuid])
        with reading(self._engine) as connection:
            owner = pipeline_id(connection, pipeline_ref)
            query = _list_query([runs.c.pipeline_id == owner, *conditions], position, order, limit + 1)
            items = [as_run(row) for row in connection.execute(query)]
        return paging.page(items, limit, lambda run: [run.started_at, run.finished_at, run.id])

    def latest(self, pipeline_ref: Ref) -> Run | None:
        """The latest run of a pipeline, None if it never ran. Raises NotFound."""
        condition, parameters = pipeline_condition(pipeline_ref)
        with reading(self._engine) as connection:
            row = connection.execute(_latest(condition), parameters).one_or_none()
        if row is None:
            raise unknown_pipeline(pipeline_ref)
        return None if row.id is None else as_run(row)

    def summary(self, client_ref: Ref, since: datetime | None = None, until: datetime | None = None) -> ClientSummary:
        """How a client's runs ended in a window, by default the last 30 days, and how its pipelines stand.

        Raises NotFound, InputError.
        """
        start, end = window(since, until, datetime.now(UTC))
        with reading(self._engine) as connection:
            return client_summary(connection, client_ref, start, end)


@functools.cache
def _latest(condition: str) -> sa.TextClause:
    # Text: putting this statement together and into SQL would take several times as long as running it.
    columns = ", ".join(f"r.{column.name}" for column in COLUMNS)
    return sa.text(f"""
        SELECT {columns} FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
        LEFT JOIN LATERAL (
            SELECT * FROM runs WHERE runs.pipeline_id = p.id
            ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC LIMIT 1
        ) AS r ON true
        WHERE {condition}
    """)  # noqa: S608 - built from constants


def _may_be_run_id(text: str) -> bool:
    return 1 <= len(text) <= MAX_RUN_ID_CHARS and clean_text(text) == text


def _conditions(
    status: RunStatus | str | None, since: datetime | None, until: datetime | None
) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if status is not None:
        conditions.append(runs.c.status == str(word(RunStatus)(status, "status")))
    if since is not None:
        conditions.append(runs.c.started_at >= since)
    if until is not None:
        conditions.append(runs.c.started_at < until)
    if since is not None and until is not None and since >= until:
        raise InputError("since", "not before until; send an earlier time")
    return conditions


def _list_query(
    conditions: list[sa.ColumnElement[bool]], position: Position | None, order: Order, count: int
) -> sa.Select[Any]:
    """A page is one range of the index of latest runs, or two where it may cross to the runs without a start."""
    if position is None:
        return sa.select(*COLUMNS).where(*conditions).order_by(*_sorting(runs, order)).limit(count)
    ranges = [
        sa.select(*COLUMNS).where(*conditions, after).order_by(*_sorting(runs, order)).limit(count).subquery()
        for after in _after(position, order)
    ]
    rows = sa.union_all(*(sa.select(part) for part in ranges)).subquery()
    return sa.select(rows).order_by(*_sorting(rows, order)).limit(count)


def _sorting(rows: sa.FromClause, order: Order) -> tuple[sa.ColumnElement[Any], ...]:
    started, finished, run = rows.c.started_at, rows.c.finished_at, rows.c.id
    if order == "desc":
        return started.desc().nulls_last(), finished.desc().nulls_last(), run.desc()
    return started.asc().nulls_first(), finished.asc().nulls_first(), run.asc()


def _after(position: Position, order: Order) -> list[sa.ColumnElement[bool]]:
    """What comes after a position, as conditions that each are a range of the index."""
    started, finished, run = position
    column = runs.c.started_at
    rest = _after_finish(finished, run, order)
    if started is None:
        unknown = sa.and_(column.is_(None), rest)
        return [unknown] if order == "desc" else [unknown, column.is_not(None)]
    if order == "desc":
        # The first of the two is what the index can jump to.
        return [sa.and_(column <= started, sa.or_(column < started, rest)), column.is_(None)]
    return [sa.and_(column >= started, sa.or_(column > started, rest))]


def _after_finish(finished: datetime | None, run: UUID, order: Order) -> sa.ColumnElement[bool]:
    column = runs.c.finished_at
    if order == "desc":
        tie = sa.and_(column.is_not_distinct_from(finished), runs.c.id < run)
        return tie if finished is None else sa.or_(column < finished, column.is_(None), tie)
    tie = sa.and_(column.is_not_distinct_from(finished), runs.c.id > run)
    return sa.or_(column.is_not(None), tie) if finished is None else sa.or_(column > finished, tie)
