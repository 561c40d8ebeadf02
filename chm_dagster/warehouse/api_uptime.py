"""When CHM's API could hear jobs that report themselves. A report that was sent while it could not is lost.

Every process that serves the API notes now and then that it is up, with each client that has such jobs; whoever notes
it after a longer silence adds the silence to the client's gaps. By the clock of the database.
"""

from datetime import datetime, timedelta

import sqlalchemy as sa

from chm_dagster.domain.alerts import Gap
from chm_dagster.domain.blindness import ConnectionState
from chm_dagster.domain.pipelines import PUSHED
from chm_dagster.warehouse.engine import Engine, database_errors

MARK_SECONDS = 15.0
"""How often a process that serves the API notes that it is up."""
LONGEST_SILENCE = timedelta(seconds=45)
"""How long nobody may note it before that counts as an outage; `health_of()` knows this figure, too."""
_KEPT_FOR = timedelta(days=90)
"""How long outages are kept, and how far back whoever judges runs looks for one that explains what is missing."""

# Rows that somebody else is writing are left for the next time: this must neither wait for them nor have them wait.
_MARK = sa.text(f"""
WITH heard AS (
    SELECT c.id FROM clients AS c
    WHERE EXISTS (
        SELECT FROM pipelines AS p
        WHERE p.client_id = c.id AND (p.external_id IS NULL OR starts_with(p.connection, '{PUSHED}'))
    )
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE clients AS c SET
    heard_through = statement_timestamp(),
    api_gaps = CASE
        WHEN c.heard_through < statement_timestamp() - :longest THEN (
            SELECT coalesce(jsonb_agg(x.gap ORDER BY x.place), '[]')
            FROM jsonb_array_elements(c.api_gaps) WITH ORDINALITY AS x(gap, place)
            WHERE CAST(x.gap ->> 'heard' AS timestamptz) > now() - :kept_for
        ) || jsonb_build_object('lost', c.heard_through, 'heard', statement_timestamp())
        ELSE c.api_gaps
    END
FROM heard WHERE c.id = heard.id
""")  # noqa: S608 - built from a constant

# A client that no longer has such jobs is not marked; when it has some again, the time between is no outage.
_FORGET = sa.text(f"""
UPDATE clients AS c SET heard_through = NULL
WHERE c.heard_through IS NOT NULL AND NOT EXISTS (
    SELECT FROM pipelines AS p
    WHERE p.client_id = c.id AND (p.external_id IS NULL OR starts_with(p.connection, '{PUSHED}'))
)
""")  # noqa: S608 - built from a constant

# Gaps that touch or overlap are one.
_GAPS = sa.text("""
SELECT min(lost) AS lost, max(heard) AS heard
FROM (
    SELECT lost, heard, count(*) FILTER (WHERE is_first) OVER (ORDER BY lost, heard) AS span
    FROM (
        SELECT lost, heard, coalesce(
            lost > max(heard) OVER (ORDER BY lost, heard ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), true
        ) AS is_first
        FROM (
            SELECT CAST(x ->> 'lost' AS timestamptz) AS lost, CAST(x ->> 'heard' AS timestamptz) AS heard
            FROM clients AS c CROSS JOIN jsonb_array_elements(c.api_gaps) AS x
            UNION
            SELECT c.heard_through, now() FROM clients AS c WHERE c.heard_through < now() - :longest
        ) AS gap
        WHERE heard > :since
    ) AS numbered
) AS grouped
GROUP BY span
ORDER BY lost
""")


_HEARD = sa.text(f"""
SELECT max(c.heard_through) AS heard, count(*) AS pipelines, now() - max(c.heard_through) > :longest AS is_down
FROM pipelines AS p JOIN clients AS c ON c.id = p.client_id
WHERE p.is_active AND c.is_active AND (p.external_id IS NULL OR starts_with(p.connection, '{PUSHED}'))
HAVING max(c.heard_through) IS NOT NULL
""")  # noqa: S608 - built from a constant


def api_state(engine: Engine) -> ConnectionState | None:
    """Whether the API is up, for the pipelines that report their own runs; None if it never was. Raises
    DatabaseUnavailable.
    """
    with database_errors(), engine.connect() as connection:
        row = connection.execute(_HEARD, {"longest": LONGEST_SILENCE}).one_or_none()
    if row is None:
        return None
    return ConnectionState("CHM's API", row.pipelines, row.heard, row.heard if row.is_down else None, "", is_api=True)


def mark_api_up(engine: Engine) -> None:
    """Note that the API is up, and how long it was not before. Raises DatabaseUnavailable."""
    with database_errors(), engine.begin() as connection:
        connection.execute(_MARK, {"longest": LONGEST_SILENCE, "kept_for": _KEPT_FOR})
        connection.execute(_FORGET)


def api_gaps(connection: sa.Connection, now: datetime, since: datetime | None = None) -> list[Gap]:
    """The times, in order, in which the API could not hear jobs, for judging them at `now`, or the time from `since`.

    Those of the last 90 days in any case: an older outage explains what is still running, or missed, at `since`. Each
    from the last time that the API was up to the first time that it was again, or now. Empty if it never was up.
    """
    reach = now - _KEPT_FOR if since is None else min(since, now - _KEPT_FOR)
    return [(row.lost, row.heard) for row in connection.execute(_GAPS, {"since": reach, "longest": LONGEST_SILENCE})]
