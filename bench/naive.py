"""The same questions as most people would first write them: rank all runs with a window function, keep what is needed.

Each returns the same rows as the named query, for the columns that it has. The benchmark verifies this.
"""

_LATEST = "ORDER BY started_at DESC NULLS LAST, finished_at DESC NULLS LAST, id DESC"

QUERIES: dict[str, str] = {
    "latest_status_by_pipeline": f"""
        SELECT p.id AS pipeline_id, r.status, r.external_run_id
        FROM pipelines AS p
        JOIN clients AS c ON c.id = p.client_id
        LEFT JOIN (SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place FROM runs) AS r
            ON r.pipeline_id = p.id AND r.place = 1
        WHERE p.is_active AND c.is_active
        ORDER BY c.slug, p.slug
    """,
    "latest_status_by_client": f"""
        SELECT c.slug AS client_slug, count(*) AS pipelines, count(*) FILTER (WHERE r.status = 'failed') AS failed
        FROM pipelines AS p
        JOIN clients AS c ON c.id = p.client_id
        LEFT JOIN (SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place FROM runs) AS r
            ON r.pipeline_id = p.id AND r.place = 1
        WHERE p.is_active AND c.is_active
        GROUP BY c.slug
        ORDER BY c.slug
    """,
    "failing_now": f"""
        SELECT p.id AS pipeline_id, min(r.started_at) AS failing_since, count(*) AS failures,
            max(r.external_run_id) FILTER (WHERE r.place = 1) AS external_run_id,
            max(r.error_message) FILTER (WHERE r.place = 1) AS error_message
        FROM (
            SELECT *,
                row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place,
                count(*) FILTER (WHERE status = 'success') OVER (PARTITION BY pipeline_id {_LATEST}) AS successes
            FROM runs WHERE status IN ('success', 'failed')
        ) AS r
        JOIN pipelines AS p ON p.id = r.pipeline_id
        JOIN clients AS c ON c.id = p.client_id
        WHERE r.successes = 0 AND p.is_active AND c.is_active
        GROUP BY c.slug, p.slug, p.id
        ORDER BY c.slug, p.slug
    """,
    "changed_since": f"""
        WITH settled AS (
            SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place
            FROM runs WHERE status IN ('success', 'failed')
        ), then_ AS (
            SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place
            FROM runs WHERE status IN ('success', 'failed')
              AND finished_at <= CAST(:now AS timestamptz) - interval '1 day'
        )
        SELECT p.id AS pipeline_id, t.status AS status_then, s.status AS status_now, s.external_run_id, s.error_message
        FROM settled AS s
        JOIN pipelines AS p ON p.id = s.pipeline_id
        JOIN clients AS c ON c.id = p.client_id
        LEFT JOIN then_ AS t ON t.pipeline_id = s.pipeline_id AND t.place = 1
        WHERE s.place = 1 AND p.is_active AND c.is_active
          AND (t.status IS DISTINCT FROM s.status OR s.status = 'failed')
        ORDER BY
            CASE WHEN t.status IS NULL THEN 4 WHEN s.status = 'success' THEN 3
                WHEN t.status = 'success' THEN 1 ELSE 2 END,
            c.slug,
            p.slug
    """,
    "recent_runs_by_pipeline": f"""
        SELECT p.id AS pipeline_id, max(r.started_at) AS latest_run_at
        FROM pipelines AS p
        JOIN clients AS c ON c.id = p.client_id
        LEFT JOIN (SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place FROM runs) AS r
            ON r.pipeline_id = p.id AND r.place <= 30
        WHERE p.is_active AND c.is_active
        GROUP BY c.slug, p.slug, p.id
        ORDER BY c.slug, p.slug
    """,
    "flaky_pipelines": f"""
        WITH last AS (
            SELECT pipeline_id, status, lead(status) OVER (PARTITION BY pipeline_id ORDER BY place) AS status_before
            FROM (
                SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place
                FROM runs WHERE status IN ('success', 'failed')
            ) AS ranked
            WHERE place <= 30
        )
        SELECT pipeline_id
        FROM last
        GROUP BY pipeline_id
        HAVING count(*) >= 10 AND count(*) FILTER (WHERE status = 'success' AND status_before = 'failed') >= 2
           AND count(*) FILTER (WHERE status <> status_before) >= 0.2 * (count(*) - 1)
    """,
    "flakiness_over_time": f"""
        SELECT date_trunc('day', started_at, 'UTC') AS bucket, count(*) AS settled_runs,
            count(*) FILTER (WHERE status <> status_before) AS flips
        FROM (
            SELECT started_at, status, lead(status) OVER (PARTITION BY pipeline_id {_LATEST}) AS status_before
            FROM runs
            WHERE status IN ('success', 'failed')
              AND started_at >= CAST(:now AS timestamptz) - interval '30 days' AND started_at < :now
        ) AS r
        GROUP BY 1
        ORDER BY 1
    """,
    "latest run of a pipeline": f"""
        SELECT *
        FROM (SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place FROM runs
              WHERE pipeline_id = :pipeline) AS r
        WHERE place = 1
    """,
    "client summary, 30 days": f"""
        SELECT status, place = 1 AS latest,
            count(*) FILTER (WHERE started_at >= CAST(:now AS timestamptz) - interval '30 days') AS runs
        FROM (
            SELECT *, row_number() OVER (PARTITION BY pipeline_id {_LATEST}) AS place
            FROM runs WHERE pipeline_id IN (SELECT id FROM pipelines WHERE client_id = :client)
        ) AS ranked
        GROUP BY 1, 2
    """,
    "run list, first 100": f"""
        SELECT *
        FROM (SELECT *, row_number() OVER ({_LATEST}) AS place FROM runs WHERE pipeline_id = :pipeline) AS r
        WHERE place <= 100
        ORDER BY place
    """,
}
