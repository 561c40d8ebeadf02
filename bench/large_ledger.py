"""A large ledger, generated inside the database: 200 clients, 10,000 pipelines, 500 runs per pipeline over a year."""

import dataclasses

import sqlalchemy as sa

from chm_dagster.domain.error_text import fingerprint
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.tables import runs

SEED = 7
_CHUNK = 50
"""Run numbers per transaction. Small transactions limit the server's memory for foreign keys and let it recycle WAL."""


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerSize:
    """The number of clients, of pipelines per client and of runs per pipeline, and the days that the runs cover."""

    clients: int = 200
    pipelines_per_client: int = 50
    runs_per_pipeline: int = 500
    days: int = 365

    @property
    def pipelines(self) -> int:
        """The total number of pipelines."""
        return self.clients * self.pipelines_per_client

    @property
    def runs(self) -> int:
        """The total number of runs."""
        return self.pipelines * self.runs_per_pipeline


_CLIENTS = """
INSERT INTO clients (name, slug)
SELECT 'Client ' || n, 'client-' || lpad(CAST(n AS text), 3, '0') FROM generate_series(1, :clients) AS n
"""

_PIPELINES = """
INSERT INTO pipelines (client_id, name, slug, platform, pipeline_type, environment, external_id, synced_through)
SELECT
    c.id,
    'Pipeline ' || n,
    'pipeline-' || lpad(CAST(n AS text), greatest(3, length(CAST(n AS text))), '0'),
    (ARRAY['airflow', 'airflow', 'airflow', 'dbt', 'dbt', 'prefect', 'dagster', 'airbyte', 'fivetran', 'cron',
           'databricks', 'github_actions', 'vendor_api', 'custom'])[1 + mod(n, 14)],
    (ARRAY['ingestion', 'transform', 'quality', 'export', 'healthcheck'])[1 + mod(n, 5)],
    CASE WHEN mod(n, 10) < 8 THEN 'prod' WHEN mod(n, 10) = 8 THEN 'staging' ELSE 'dev' END,
    c.slug || '-' || n,
    now()
FROM clients AS c CROSS JOIN generate_series(1, :pipelines_per_client) AS n
"""

# Runs of a pipeline are `days / runs_per_pipeline` apart, with an offset per pipeline. Rows are written in order of
# time with pipelines mixed, as syncs write them. Each run has two numbers from 0 to 999 (`dice` and `other`), and each
# pipeline has a `habit` from 0 to 99: most fail one run in fifty; some are flaky, had an outage of 20 runs, alternate,
# broke for good, never worked, or are often skipped.
_RUNS = """
INSERT INTO runs (pipeline_id, external_run_id, status, started_at, finished_at, duration_seconds, rows_processed,
                  error_message, error_fingerprint, source_url, payload, progress, source_version, observed_at)
SELECT
    r.id, r.external_run_id, r.status, r.started_at, r.finished_at,
    CASE WHEN r.finished_at IS NOT NULL THEN r.seconds END,
    CASE WHEN r.status = 'success' THEN 1000 * r.dice END,
    CASE WHEN r.status = 'failed' THEN 'TimeoutError: the warehouse did not answer within 300 seconds while loading'
        || ' batch ' || r.dice || ' of orders_' || chr(CAST(97 + r.other % 20 AS int))
        || '; 3 attempts were made, the last one at ' || r.finished_at END,
    CASE WHEN r.status = 'failed' THEN 'timeouterror: the warehouse did not answer within <n> seconds while loading'
        || ' batch <n> of orders_' || chr(CAST(97 + r.other % 20 AS int))
        || '; <n> attempts were made, the last one at <time>' END,
    'https://partner.example/runs/' || r.external_run_id,
    jsonb_build_object('id', r.external_run_id, 'state', r.status, 'trigger', 'schedule', 'started', r.started_at,
                       'ended', r.finished_at, 'worker', 'worker-' || mod(r.dice, 16), 'queue', 'default', 'try', 1),
    CASE WHEN r.finished_at IS NOT NULL THEN 1 ELSE 0 END,
    coalesce(r.finished_at, r.started_at),
    coalesce(r.finished_at, r.started_at) + interval '1 minute'
FROM (
    SELECT s.*, CASE WHEN s.status <> 'running' THEN s.started_at + s.seconds * interval '1 second' END AS finished_at
    FROM (
        SELECT
            p.id,
            'run-' || p.number || '-' || k AS external_run_id,
            d.dice,
            d.other,
            p.base_seconds * (0.7 + d.other / 1666.0) AS seconds,
            now() - :days * interval '1 day' / :runs_per_pipeline
                * (:runs_per_pipeline - k - p.number / CAST(:pipelines AS float8)) - interval '4 hours' AS started_at,
            CASE
                WHEN k = :runs_per_pipeline - 1 AND d.other < 30 THEN 'running'
                WHEN d.dice < 10 THEN 'canceled'
                WHEN d.dice < (CASE WHEN p.habit = 99 THEN 300 ELSE 20 END) THEN 'skipped'
                WHEN p.habit < 8 AND d.other < 300 THEN 'failed'
                WHEN p.habit IN (8, 9, 10, 11) AND k / 20 = p.number % (:runs_per_pipeline / 20) THEN 'failed'
                WHEN p.habit = 12 AND k % 2 = 0 THEN 'failed'
                WHEN p.habit IN (13, 14) AND k > :runs_per_pipeline - p.number % 120 THEN 'failed'
                WHEN p.habit = 15 THEN 'failed'
                WHEN d.other < 20 THEN 'failed'
                ELSE 'success'
            END AS status
        FROM generate_series(CAST(:first AS int), :last) AS k
        CROSS JOIN (
            SELECT n.id, n.number,
                mod(abs(hashint8extended(n.number, :seed)), 100) AS habit,
                exp(mod(abs(hashint8extended(n.number, :seed + 1)), 1000) / 125.0) * 3 AS base_seconds
            FROM (SELECT id, row_number() OVER (ORDER BY client_id, slug) AS number FROM pipelines) AS n
        ) AS p
        CROSS JOIN LATERAL (
            SELECT mod(abs(h.h), 1000) AS dice, mod(abs(h.h) / 1000, 1000) AS other
            FROM (SELECT hashint8extended(p.number * 1000000 + k, :seed + 2) AS h) AS h
        ) AS d
    ) AS s
) AS r
"""


def make(engine: Engine, size: LedgerSize) -> None:
    """Fill an empty database. Indexes are created last, and the tables are vacuumed and analyzed."""
    schema.migrate(engine)
    _require_empty(engine)
    unique = next(c for c in runs.constraints if isinstance(c, sa.UniqueConstraint))
    with engine.begin() as connection:
        for index in runs.indexes:
            index.drop(connection)
        connection.execute(sa.schema.DropConstraint(unique))
        connection.execute(sa.text(_CLIENTS), {"clients": size.clients})
        connection.execute(sa.text(_PIPELINES), {"pipelines_per_client": size.pipelines_per_client})
    for first in range(0, size.runs_per_pipeline, _CHUNK):
        _add_runs(engine, size, first, min(first + _CHUNK, size.runs_per_pipeline) - 1)
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL maintenance_work_mem = '512MB'"))
        connection.execute(sa.schema.AddConstraint(unique))
        for index in runs.indexes:
            index.create(connection)
    _require_true_fingerprints(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE) clients, pipelines, runs"))


def _add_runs(engine: Engine, size: LedgerSize, first: int, last: int) -> None:
    parameters = {
        "first": first,
        "last": last,
        "seed": SEED,
        "days": size.days,
        "pipelines": size.pipelines,
        "runs_per_pipeline": size.runs_per_pipeline,
    }
    with engine.begin() as connection:
        connection.execute(sa.text(_RUNS), parameters)


def _require_true_fingerprints(engine: Engine) -> None:
    """Fingerprints are made in SQL here; they must be those that the ledger would have."""
    sample = sa.select(runs.c.error_message, runs.c.error_fingerprint).where(runs.c.status == "failed").limit(200)
    with engine.connect() as connection:
        for message, stored in connection.execute(sample):
            if fingerprint(message) != stored:
                raise AssertionError(f"the fingerprint of {message!r} is not {stored!r}")


def _require_empty(engine: Engine) -> None:
    with engine.connect() as connection:
        if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM clients)")):
            raise SystemExit("the benchmark needs an empty database of its own")
