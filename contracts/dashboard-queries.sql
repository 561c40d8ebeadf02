-- Named, read-only questions about the health of clients' pipelines: one home for the CLI, the API, Dagster and
-- dashboards. A block starts with `-- name: <name>`; its comment says what it answers, its parameters and its columns.
-- Disabled clients and pipelines are left out of what is true now. Times are timestamptz.

-- name: latest_status_by_pipeline
-- The latest run of every active pipeline, also of those that never ran (status null).
-- Parameters: client_slug text or null for all.
-- Columns: client_slug text, client_name text, pipeline_slug text, pipeline_name text, platform text, status text,
--   started_at timestamptz, finished_at timestamptz, duration_seconds float8, status_reason text, source_url text,
--   synced_through timestamptz.
SELECT
    c.slug AS client_slug,
    c.name AS client_name,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    r.status,
    r.started_at,
    r.finished_at,
    r.duration_seconds,
    r.status_reason,
    r.source_url,
    p.synced_through
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
LEFT JOIN LATERAL (
    SELECT * FROM runs
    WHERE runs.pipeline_id = p.id
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS r ON true
WHERE p.is_active AND c.is_active
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
ORDER BY c.slug, p.slug;

-- name: latest_status_by_client
-- Each active client with how many of its pipelines are in which latest status.
-- Parameters: none.
-- Columns: client_slug text, client_name text, pipelines int8, success int8, failed int8, running int8, canceled int8,
--   skipped int8, never_ran int8.
SELECT
    c.slug AS client_slug,
    c.name AS client_name,
    count(p.id) AS pipelines,
    count(p.id) FILTER (WHERE r.status = 'success') AS success,
    count(p.id) FILTER (WHERE r.status = 'failed') AS failed,
    count(p.id) FILTER (WHERE r.status = 'running') AS running,
    count(p.id) FILTER (WHERE r.status = 'canceled') AS canceled,
    count(p.id) FILTER (WHERE r.status = 'skipped') AS skipped,
    count(p.id) FILTER (WHERE r.status IS NULL) AS never_ran
FROM clients AS c
LEFT JOIN pipelines AS p ON p.client_id = c.id AND p.is_active
LEFT JOIN LATERAL (
    SELECT runs.status FROM runs
    WHERE runs.pipeline_id = p.id
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS r ON true
WHERE c.is_active
GROUP BY c.id
ORDER BY c.slug;

-- name: failing_now
-- Active pipelines whose latest settled run failed. Running, canceled and skipped runs settle nothing.
-- Parameters: none.
-- Columns: client_slug text, client_name text, pipeline_slug text, pipeline_name text, platform text,
--   failing_since timestamptz (start of the first failure of the streak, null if older than the 1,000 latest settled
--   runs), failures int8 (the streak, at most 1,000), last_success_at timestamptz, error_message text, source_url text.
SELECT
    c.slug AS client_slug,
    c.name AS client_name,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    streak.failing_since,
    streak.failures,
    good.started_at AS last_success_at,
    bad.error_message,
    bad.source_url
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
JOIN LATERAL (
    SELECT * FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS bad ON bad.status = 'failed'
LEFT JOIN LATERAL (
    SELECT runs.started_at FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status = 'success'
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS good ON true
LEFT JOIN LATERAL (
    SELECT min(f.started_at) AS failing_since, count(*) AS failures
    FROM (
        SELECT runs.started_at FROM runs
        WHERE runs.pipeline_id = p.id AND runs.status = 'failed'
          AND (good.started_at IS NULL OR runs.started_at >= good.started_at)
        ORDER BY runs.started_at DESC NULLS LAST
        LIMIT 1000
    ) AS f
) AS streak ON true
WHERE p.is_active AND c.is_active
ORDER BY c.slug, p.slug;

-- name: changed_since
-- Active pipelines whose health is another than it was at a time, judged by runs that had settled by then.
-- Parameters: since timestamptz.
-- Columns: client_slug text, client_name text, pipeline_slug text, pipeline_name text, platform text,
--   change text (regression, fixed, still failing, new), status_then text, status_now text, started_at timestamptz,
--   source_url text.
SELECT
    c.slug AS client_slug,
    c.name AS client_name,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    CASE
        WHEN past.status IS NULL THEN 'new'
        WHEN past.status = 'success' AND present.status = 'failed' THEN 'regression'
        WHEN past.status = 'failed' AND present.status = 'success' THEN 'fixed'
        ELSE 'still failing'
    END AS change,
    past.status AS status_then,
    present.status AS status_now,
    present.started_at,
    present.source_url
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
JOIN LATERAL (
    SELECT * FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS present ON true
LEFT JOIN LATERAL (
    SELECT runs.status FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
      AND runs.started_at <= :since AND coalesce(runs.finished_at, runs.started_at) <= :since
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS past ON true
WHERE p.is_active AND c.is_active
  AND (past.status IS DISTINCT FROM present.status OR present.status = 'failed')
ORDER BY change, c.slug, p.slug;
