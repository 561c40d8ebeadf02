"""`maintenance_calendar` of clients and pipelines: their windows as times, because SQL cannot read cron.

Whoever writes windows writes the calendar too. What recurs is spelled out for two weeks, and again every week.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from chm_dagster.domain.maintenance import calendar_of
from chm_dagster.warehouse.tables import clients, pipelines

_RESERVE = timedelta(days=7)


def with_calendar(news: Mapping[str, Any]) -> dict[str, Any]:
    """The fields to write, with the calendar if there are windows among them."""
    if "maintenance" not in news:
        return dict(news)
    return {**news, "maintenance_calendar": calendar_of(news["maintenance"], datetime.now(UTC))}


def refresh_calendars(connection: sa.Connection, now: datetime) -> int:
    """Spell out again what soon runs out, in the caller's transaction. Returns how many calendars were written."""
    written = 0
    for table in (clients, pipelines):
        through = sa.cast(table.c.maintenance_calendar["through"].astext, sa.TIMESTAMP(timezone=True))
        runs_out = sa.or_(table.c.maintenance_calendar.is_(None), through < now + _RESERVE)
        query = sa.select(table.c.id, table.c.maintenance).where(sa.text("maintenance <> '[]'"), runs_out)
        for row in connection.execute(query.order_by(table.c.id).with_for_update(key_share=True)).all():
            calendar = {"maintenance_calendar": calendar_of(row.maintenance, now)}
            connection.execute(sa.update(table).where(table.c.id == row.id).values(calendar))
            written += 1
    return written
