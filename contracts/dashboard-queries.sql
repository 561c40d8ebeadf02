-- The health questions of CHM, by name: the one home that the API, the CLI, Dagster and dashboards share.
--
-- A block runs from its `-- name:` line to the next one. The comment on top of it is read by programs too: first what the
-- block answers; then its parameters, as `name type = default: meaning`, with the accepted values in parentheses where
-- there are few; then the columns of its answer, as `name type: meaning`. contracts/README.md says how to run a block.
--
-- Words that hold in all blocks:
-- - A parameter stands in the statement as `:name`. All of them may be null, and null means the default.
-- - A run is settled once it is a success or failed. Running, canceled and skipped runs settle nothing: they neither
--   break a pipeline nor mend it.
-- - The latest of a pipeline's runs is the first by started_at, finished_at and id, each descending, nulls last.
-- - What is true now leaves disabled clients and pipelines out. What was (over time, by client, by platform, durations)
--   counts their runs too, from `since` up to but without `until`, by the start of a run.
-- - Times are timestamptz; days, weeks and months begin in UTC. Rates are from 0 to 1, and null where nothing settled.

-- name: latest_status_by_pipeline
-- How each active pipeline did last; also those that never ran, with a null status.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   status text: running, success, failed, canceled or skipped
--   settled_status text: success or failed, as the latest settled run left it
--   external_run_id text: the latest run's id at the partner
--   started_at timestamptz
--   finished_at timestamptz
--   duration_seconds float8
--   error_message text
--   status_reason text: the partner's own word where it says more than the status
--   source_url text: a link to the run at the partner
--   synced_through timestamptz: the pipeline's runs are known up to here
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    p.id AS pipeline_id,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    p.environment,
    r.status,
    CASE WHEN r.status IN ('success', 'failed') THEN r.status ELSE (
        SELECT runs.status FROM runs
        WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
        ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
        LIMIT 1
    ) END AS settled_status,
    r.external_run_id,
    r.started_at,
    r.finished_at,
    r.duration_seconds,
    r.error_message,
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
  AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
ORDER BY c.slug, p.slug;

-- name: latest_status_by_client
-- How each active client stands: how many of its active pipelines are in which latest status, and how many fail.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only pipelines of this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   health text: failing if any pipeline fails, else healthy; unknown while nothing has settled
--   pipelines int8: active ones
--   failing int8: pipelines whose latest settled run failed, as in failing_now
--   success int8: pipelines whose latest run is a success; the next five add up to pipelines with it
--   failed int8
--   running int8
--   canceled int8
--   skipped int8
--   never_ran int8
--   latest_run_at timestamptz: start of the client's latest run
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    CASE
        WHEN count(*) FILTER (WHERE r.settled_status = 'failed') > 0 THEN 'failing'
        WHEN count(r.settled_status) > 0 THEN 'healthy'
        ELSE 'unknown'
    END AS health,
    count(r.pipeline_id) AS pipelines,
    count(*) FILTER (WHERE r.settled_status = 'failed') AS failing,
    count(*) FILTER (WHERE r.status = 'success') AS success,
    count(*) FILTER (WHERE r.status = 'failed') AS failed,
    count(*) FILTER (WHERE r.status = 'running') AS running,
    count(*) FILTER (WHERE r.status = 'canceled') AS canceled,
    count(*) FILTER (WHERE r.status = 'skipped') AS skipped,
    count(r.pipeline_id) FILTER (WHERE r.status IS NULL) AS never_ran,
    max(r.started_at) AS latest_run_at
FROM clients AS c
LEFT JOIN (
    SELECT
        p.client_id,
        p.id AS pipeline_id,
        latest.status,
        latest.started_at,
        CASE WHEN latest.status IN ('success', 'failed') THEN latest.status ELSE (
            SELECT runs.status FROM runs
            WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
            ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
            LIMIT 1
        ) END AS settled_status
    FROM pipelines AS p
    LEFT JOIN LATERAL (
        SELECT runs.status, runs.started_at FROM runs
        WHERE runs.pipeline_id = p.id
        ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
        LIMIT 1
    ) AS latest ON true
    WHERE p.is_active
      AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
) AS r ON r.client_id = c.id
WHERE c.is_active
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
GROUP BY c.id
ORDER BY c.slug;

-- name: failing_now
-- What is failing at this minute: active pipelines whose latest settled run failed, and since when.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   failing_since timestamptz: start of the first failure after the last success
--   failing_seconds float8: from failing_since up to now
--   failures int8: settled runs that failed in a row; counted up to 1,000
--   broken bool: it failed in all of its last 30 settled runs, or in all there are if there are 10 or more
--   last_success_at timestamptz: start of the last success, or its finish where no start is known
--   external_run_id text: this and the next five tell of the latest failure
--   started_at timestamptz
--   finished_at timestamptz
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    p.id AS pipeline_id,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    p.environment,
    streak.since AS failing_since,
    CAST(extract(epoch FROM now() - streak.since) AS float8) AS failing_seconds,
    streak.failures,
    streak.failures >= 30 OR (streak.failures >= 10 AND good.id IS NULL) AS broken,
    coalesce(good.started_at, good.finished_at) AS last_success_at,
    bad.external_run_id,
    bad.started_at,
    bad.finished_at,
    bad.error_message,
    bad.status_reason,
    bad.source_url
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
JOIN LATERAL (
    SELECT runs.id, runs.status FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS settled ON settled.status = 'failed'
CROSS JOIN LATERAL (
    SELECT * FROM runs WHERE runs.id = settled.id LIMIT 1
) AS bad
LEFT JOIN LATERAL (
    SELECT runs.id, runs.started_at, runs.finished_at FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status = 'success'
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS good ON true
CROSS JOIN LATERAL (
    SELECT
        count(*) AS failures,
        -- The earliest start of them all, also of those that were not counted.
        coalesce((
            SELECT min(runs.started_at) FROM runs
            WHERE good.started_at IS NOT NULL
              AND runs.pipeline_id = p.id AND runs.status = 'failed' AND runs.started_at >= good.started_at
              AND (runs.started_at, coalesce(runs.finished_at, '-infinity'), runs.id)
                > (good.started_at, coalesce(good.finished_at, '-infinity'), good.id)
        ), (
            SELECT min(runs.started_at) FROM runs
            WHERE good.started_at IS NULL
              AND runs.pipeline_id = p.id AND runs.status = 'failed'
        ), bad.finished_at) AS since
    FROM (
        SELECT 1 FROM runs
        WHERE good.started_at IS NOT NULL
          AND runs.pipeline_id = p.id AND runs.status = 'failed' AND runs.started_at >= good.started_at
          AND (runs.started_at, coalesce(runs.finished_at, '-infinity'), runs.id)
            > (good.started_at, coalesce(good.finished_at, '-infinity'), good.id)
        UNION ALL
        -- Without a success whose start is known, every failure with a known start is of the streak.
        SELECT 1 FROM runs
        WHERE good.started_at IS NULL
          AND runs.pipeline_id = p.id AND runs.status = 'failed'
          AND (good.id IS NULL OR runs.started_at IS NOT NULL
               OR (coalesce(runs.finished_at, '-infinity'), runs.id)
                > (coalesce(good.finished_at, '-infinity'), good.id))
        LIMIT 1000
    ) AS failed
) AS streak
WHERE p.is_active AND c.is_active
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
  AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
ORDER BY c.slug, p.slug;

-- name: changed_since
-- What is another than it was: active pipelines by their latest settled run now, against the latest that had settled by
-- a time. A run that was in progress then had not settled, nor had one that was started again since.
-- Parameters:
--   since timestamptz = now() - interval '1 day': the time to compare with
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   change text: regression (a success then), still failing, fixed, or new (nothing had settled then); in this order
--   status_then text: success or failed, null for new
--   status_now text: success or failed
--   external_run_id text: this and the next five tell of the latest settled run now
--   started_at timestamptz
--   finished_at timestamptz
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    p.id AS pipeline_id,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    p.environment,
    CASE
        WHEN past.status IS NULL THEN 'new'
        WHEN present.status = 'success' THEN 'fixed'
        WHEN past.status = 'success' THEN 'regression'
        ELSE 'still failing'
    END AS change,
    past.status AS status_then,
    present.status AS status_now,
    r.external_run_id,
    r.started_at,
    r.finished_at,
    r.error_message,
    r.status_reason,
    r.source_url
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
JOIN LATERAL (
    SELECT runs.id, runs.status FROM runs
    WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
    ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
    LIMIT 1
) AS present ON true
CROSS JOIN LATERAL (
    SELECT coalesce((
        SELECT runs.status FROM runs
        WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
          AND runs.started_at <= coalesce(CAST(:since AS timestamptz), now() - interval '1 day')
          AND coalesce(runs.finished_at, runs.started_at)
            <= coalesce(CAST(:since AS timestamptz), now() - interval '1 day')
        ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
        LIMIT 1
    ), (
        SELECT runs.status FROM runs
        WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
          AND runs.started_at IS NULL
          AND runs.finished_at <= coalesce(CAST(:since AS timestamptz), now() - interval '1 day')
        ORDER BY runs.finished_at DESC NULLS LAST, runs.id DESC
        LIMIT 1
    )) AS status
) AS past
CROSS JOIN LATERAL (
    SELECT * FROM runs WHERE runs.id = present.id LIMIT 1
) AS r
WHERE p.is_active AND c.is_active
  AND (past.status IS DISTINCT FROM present.status OR present.status = 'failed')
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
  AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
ORDER BY
    CASE
        WHEN past.status IS NULL THEN 4
        WHEN present.status = 'success' THEN 3
        WHEN past.status = 'success' THEN 1
        ELSE 2
    END,
    c.slug,
    p.slug;

-- name: recent_runs_by_pipeline
-- The last runs of each active pipeline as a strip of letters, for a status grid; empty for one that never ran.
-- Parameters:
--   runs int4 = 30: how many runs of each pipeline, at most 200
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   statuses text: one letter for each run, the oldest first: S success, F failed, R running, C canceled, - skipped
--   latest_run_at timestamptz: start of the latest run
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    p.id AS pipeline_id,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    p.environment,
    coalesce(reverse(strip.letters), '') AS statuses,
    strip.latest_run_at
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
CROSS JOIN LATERAL (
    SELECT
        -- In the order of the rows below it: the latest first.
        string_agg(
            CASE recent.status
                WHEN 'success' THEN 'S' WHEN 'failed' THEN 'F' WHEN 'running' THEN 'R' WHEN 'canceled' THEN 'C' ELSE '-'
            END,
            ''
        ) AS letters,
        max(recent.started_at) AS latest_run_at
    FROM (
        SELECT runs.status, runs.started_at FROM runs
        WHERE runs.pipeline_id = p.id
        ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
        LIMIT least(greatest(coalesce(CAST(:runs AS int4), 30), 1), 200)
    ) AS recent
) AS strip
WHERE p.is_active AND c.is_active
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
  AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
ORDER BY c.slug, p.slug;

-- name: flaky_pipelines
-- Which active pipelines come and go: over the last 30 settled runs, flips between success and failure as a share of the
-- runs that could flip (all but the first). It takes at least 10 settled runs and 2 recoveries. A pipeline that always
-- fails is broken, not flaky; one whose present failures have lasted 7 days from the first to the latest is down; one
-- that has not failed for 30 days up to its latest run is cured. A label that must not flicker is given at the default
-- threshold and taken away once the pipeline is no longer listed at half of it.
-- Parameters:
--   threshold float8 = 0.2: the flip rate from which on a pipeline is flaky
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   flip_rate float8: flips / (settled_runs - 1); the highest come first
--   flips int8: changes from success to failure or back
--   recoveries int8: changes from failure to success
--   failures int8
--   settled_runs int8: how many were judged, at most 30
--   history text: one letter for each of them, the oldest first: S success, F failed
--   latest_run_at timestamptz: start of the latest of them
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    p.id AS pipeline_id,
    p.slug AS pipeline_slug,
    p.name AS pipeline_name,
    p.platform,
    p.environment,
    flaky.flip_rate,
    flaky.flips,
    flaky.recoveries,
    flaky.failures,
    flaky.settled_runs,
    flaky.history,
    flaky.starts[1] AS latest_run_at
FROM pipelines AS p
JOIN clients AS c ON c.id = p.client_id
CROSS JOIN LATERAL (
    -- In the order of the rows below them: the latest first.
    SELECT string_agg(upper(left(recent.status, 1)), '') AS letters, array_agg(recent.started_at) AS starts
    FROM (
        SELECT runs.status, runs.started_at FROM runs
        WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
        ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
        LIMIT 30
    ) AS recent
) AS settled
CROSS JOIN LATERAL (
    SELECT
        reverse(settled.letters) AS history,
        settled.starts,
        CAST(length(settled.letters) AS int8) AS settled_runs,
        CAST(length(replace(settled.letters, 'S', '')) AS int8) AS failures,
        CAST((length(settled.letters) - length(replace(settled.letters, 'SF', ''))) / 2 AS int8) AS recoveries,
        CAST((2 * length(settled.letters) - length(replace(settled.letters, 'SF', ''))
            - length(replace(settled.letters, 'FS', ''))) / 2 AS int8) AS flips,
        length(settled.letters) - length(ltrim(settled.letters, 'F')) AS streak
) AS counted
CROSS JOIN LATERAL (
    SELECT counted.*, CAST(counted.flips AS float8) / (counted.settled_runs - 1) AS flip_rate
    WHERE counted.settled_runs >= 10 AND counted.recoveries >= 2
) AS flaky
WHERE p.is_active AND c.is_active
  AND flaky.flip_rate >= coalesce(CAST(:threshold AS float8), 0.2)
  AND (flaky.starts[1] - flaky.starts[flaky.streak] < interval '7 days') IS NOT FALSE
  AND (flaky.starts[1] - flaky.starts[position('F' IN settled.letters)] < interval '30 days') IS NOT FALSE
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
  AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
ORDER BY flaky.flip_rate DESC, flaky.recoveries DESC, c.slug, p.slug;

-- name: flakiness_over_time
-- How often outcomes flip, over time: of the settled runs whose pipeline also settled a run before, in the same time span,
-- how many came out the other way.
-- Parameters:
--   since timestamptz = now() - interval '30 days'
--   until timestamptz = now()
--   bucket text = 'day' (hour, day, week, month): at most the last 10,000 of them are shown
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   bucket timestamptz: its beginning; a bucket without runs is there, too
--   settled_runs int8
--   flips int8: changes from success to failure or back
--   recoveries int8: changes from failure to success
--   flip_rate float8: flips as a share of the runs that could flip
SELECT
    b.starts AT TIME ZONE 'UTC' AS bucket,
    coalesce(n.settled_runs, 0) AS settled_runs,
    coalesce(n.flips, 0) AS flips,
    coalesce(n.recoveries, 0) AS recoveries,
    CAST(n.flips AS float8) / nullif(n.could_flip, 0) AS flip_rate
FROM generate_series(
    greatest(
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:since AS timestamptz), now() - interval '30 days') AT TIME ZONE 'UTC'
        ),
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE 'UTC' - interval '1 microsecond'
        ) - 9999 * CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
    ),
    coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE 'UTC' - interval '1 microsecond',
    CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
) AS b(starts)
LEFT JOIN (
    SELECT
        -- For hundreds of thousands of rows: date_trunc takes several times as long, and only months need it.
        CASE coalesce(CAST(:bucket AS text), 'day')
            WHEN 'hour' THEN date_bin('1 hour', r.started_at, CAST('2000-01-03 00:00:00+00' AS timestamptz))
            WHEN 'day' THEN date_bin('1 day', r.started_at, CAST('2000-01-03 00:00:00+00' AS timestamptz))
            WHEN 'week' THEN date_bin('7 days', r.started_at, CAST('2000-01-03 00:00:00+00' AS timestamptz))
            ELSE date_trunc(coalesce(CAST(:bucket AS text), 'day'), r.started_at, 'UTC')
        END AS starts,
        count(*) AS settled_runs,
        count(r.status_before) AS could_flip,
        count(*) FILTER (WHERE r.status <> r.status_before) AS flips,
        count(*) FILTER (WHERE r.status = 'success' AND r.status_before = 'failed') AS recoveries
    FROM pipelines AS p
    JOIN clients AS c ON c.id = p.client_id
    CROSS JOIN LATERAL (
        SELECT
            runs.started_at,
            runs.status,
            lead(runs.status) OVER (
                ORDER BY runs.started_at DESC NULLS LAST, runs.finished_at DESC NULLS LAST, runs.id DESC
            ) AS status_before
        FROM runs
        WHERE runs.pipeline_id = p.id AND runs.status IN ('success', 'failed')
          AND runs.started_at >= coalesce(CAST(:since AS timestamptz), now() - interval '30 days')
          AND runs.started_at < coalesce(CAST(:until AS timestamptz), now())
    ) AS r
    WHERE (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
      AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
    GROUP BY 1
) AS n ON n.starts = b.starts AT TIME ZONE 'UTC'
ORDER BY b.starts;

-- name: failures_over_time
-- How many runs failed, over time, and how many pipelines and clients they hit.
-- Parameters:
--   since timestamptz = now() - interval '30 days'
--   until timestamptz = now()
--   bucket text = 'day' (hour, day, week, month): at most the last 10,000 of them are shown
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   bucket timestamptz: its beginning; a bucket without failures is there, too
--   failures int8
--   failed_pipelines int8: pipelines with a failure
--   failed_clients int8: clients with a failure
SELECT
    b.starts AT TIME ZONE 'UTC' AS bucket,
    coalesce(n.failures, 0) AS failures,
    coalesce(n.failed_pipelines, 0) AS failed_pipelines,
    coalesce(n.failed_clients, 0) AS failed_clients
FROM generate_series(
    greatest(
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:since AS timestamptz), now() - interval '30 days') AT TIME ZONE 'UTC'
        ),
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE 'UTC' - interval '1 microsecond'
        ) - 9999 * CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
    ),
    coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE 'UTC' - interval '1 microsecond',
    CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
) AS b(starts)
LEFT JOIN (
    SELECT
        date_trunc(coalesce(CAST(:bucket AS text), 'day'), runs.started_at AT TIME ZONE 'UTC') AS starts,
        count(*) AS failures,
        count(DISTINCT p.id) AS failed_pipelines,
        count(DISTINCT p.client_id) AS failed_clients
    FROM runs
    JOIN pipelines AS p ON p.id = runs.pipeline_id
    JOIN clients AS c ON c.id = p.client_id
    WHERE runs.status = 'failed'
      AND runs.started_at >= coalesce(CAST(:since AS timestamptz), now() - interval '30 days')
      AND runs.started_at < coalesce(CAST(:until AS timestamptz), now())
      AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
      AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
    GROUP BY 1
) AS n ON n.starts = b.starts
ORDER BY b.starts;

-- name: failure_counts_by_client
-- How many runs failed, client by client: all active clients, and disabled ones that had a failure.
-- Parameters:
--   since timestamptz = now() - interval '7 days'
--   until timestamptz = now()
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only runs of this environment
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   client_is_active bool
--   failures int8: the most come first
--   failed_pipelines int8: pipelines with a failure
--   settled_runs int8
--   failure_rate float8: failures / settled_runs
--   last_failure_at timestamptz: start of the last failure
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    c.is_active AS client_is_active,
    coalesce(n.failures, 0) AS failures,
    coalesce(n.failed_pipelines, 0) AS failed_pipelines,
    coalesce(n.settled_runs, 0) AS settled_runs,
    CAST(n.failures AS float8) / n.settled_runs AS failure_rate,
    n.last_failure_at
FROM clients AS c
LEFT JOIN (
    SELECT
        p.client_id,
        count(*) AS settled_runs,
        count(*) FILTER (WHERE runs.status = 'failed') AS failures,
        count(DISTINCT p.id) FILTER (WHERE runs.status = 'failed') AS failed_pipelines,
        max(runs.started_at) FILTER (WHERE runs.status = 'failed') AS last_failure_at
    FROM runs
    JOIN pipelines AS p ON p.id = runs.pipeline_id
    JOIN clients ON clients.id = p.client_id
    WHERE runs.status IN ('success', 'failed')
      AND runs.started_at >= coalesce(CAST(:since AS timestamptz), now() - interval '7 days')
      AND runs.started_at < coalesce(CAST(:until AS timestamptz), now())
      AND (CAST(:client_slug AS text) IS NULL OR clients.slug = :client_slug)
      AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
    GROUP BY p.client_id
) AS n ON n.client_id = c.id
WHERE (c.is_active OR n.failures > 0)
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
ORDER BY coalesce(n.failures, 0) DESC, c.slug;

-- name: failure_rate_by_platform
-- Which platforms fail most: settled runs and failures of each platform that settled a run.
-- Parameters:
--   since timestamptz = now() - interval '30 days'
--   until timestamptz = now()
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   platform text
--   pipelines int8: that settled a run
--   settled_runs int8
--   failures int8
--   failure_rate float8: failures / settled_runs; the highest come first
SELECT
    p.platform,
    count(*) AS pipelines,
    CAST(sum(n.settled_runs) AS int8) AS settled_runs,
    CAST(sum(n.failures) AS int8) AS failures,
    CAST(sum(n.failures) / sum(n.settled_runs) AS float8) AS failure_rate
FROM (
    SELECT
        runs.pipeline_id,
        count(*) AS settled_runs,
        count(*) FILTER (WHERE runs.status = 'failed') AS failures
    FROM runs
    LEFT JOIN pipelines ON pipelines.id = runs.pipeline_id
    LEFT JOIN clients ON clients.id = pipelines.client_id
    WHERE runs.status IN ('success', 'failed')
      AND runs.started_at >= coalesce(CAST(:since AS timestamptz), now() - interval '30 days')
      AND runs.started_at < coalesce(CAST(:until AS timestamptz), now())
      AND (CAST(:client_slug AS text) IS NULL OR clients.slug = :client_slug)
      AND (CAST(:environment AS text) IS NULL OR pipelines.environment = :environment)
    GROUP BY runs.pipeline_id
) AS n
JOIN pipelines AS p ON p.id = n.pipeline_id
GROUP BY p.platform
ORDER BY failure_rate DESC, p.platform;

-- name: duration_distribution
-- How long settled runs take: a histogram of fixed buckets, all of them, also the empty ones.
-- Parameters:
--   since timestamptz = now() - interval '30 days'
--   until timestamptz = now()
--   client_slug text = null: only this client
--   pipeline_slug text = null: only pipelines of this slug; slugs are unique within a client
--   platform text = null: only this platform
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   bucket int4: from 0, the shortest
--   label text
--   from_seconds float8
--   to_seconds float8: exclusive; null for the last bucket
--   success int8: runs that succeeded
--   failed int8: runs that failed
--   share float8: both of them, as a share of the runs in all buckets
SELECT
    b.bucket,
    b.label,
    CAST(b.from_seconds AS float8) AS from_seconds,
    CAST(lead(b.from_seconds) OVER (ORDER BY b.bucket) AS float8) AS to_seconds,
    coalesce(n.success, 0) AS success,
    coalesce(n.failed, 0) AS failed,
    CAST(coalesce(n.success + n.failed, 0) / nullif(sum(n.success + n.failed) OVER (), 0) AS float8) AS share
FROM (
    VALUES
        (0, 0, 'under 1 s'),
        (1, 1, '1 to 5 s'),
        (2, 5, '5 to 15 s'),
        (3, 15, '15 to 30 s'),
        (4, 30, '30 to 60 s'),
        (5, 60, '1 to 2 min'),
        (6, 120, '2 to 5 min'),
        (7, 300, '5 to 15 min'),
        (8, 900, '15 to 30 min'),
        (9, 1800, '30 to 60 min'),
        (10, 3600, '1 to 2 h'),
        (11, 7200, '2 to 6 h'),
        (12, 21600, '6 to 12 h'),
        (13, 43200, '12 to 24 h'),
        (14, 86400, '24 h and over')
) AS b(bucket, from_seconds, label)
LEFT JOIN (
    SELECT
        width_bucket(
            runs.duration_seconds,
            CAST(ARRAY[1, 5, 15, 30, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 43200, 86400] AS float8[])
        ) AS bucket,
        count(*) FILTER (WHERE runs.status = 'success') AS success,
        count(*) FILTER (WHERE runs.status = 'failed') AS failed
    FROM runs
    LEFT JOIN pipelines AS p ON p.id = runs.pipeline_id
    LEFT JOIN clients AS c ON c.id = p.client_id
    WHERE runs.status IN ('success', 'failed')
      AND runs.started_at >= coalesce(CAST(:since AS timestamptz), now() - interval '30 days')
      AND runs.started_at < coalesce(CAST(:until AS timestamptz), now())
      AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
      AND (CAST(:pipeline_slug AS text) IS NULL OR p.slug = :pipeline_slug)
      AND (CAST(:platform AS text) IS NULL OR p.platform = :platform)
      AND (CAST(:environment AS text) IS NULL OR p.environment = :environment)
    GROUP BY 1
) AS n ON n.bucket = b.bucket
ORDER BY b.bucket;
