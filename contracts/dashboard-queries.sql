-- The health questions of CHM, by name: the API, the CLI, Dagster and dashboards all run these blocks.
--
-- A block runs from its `-- name:` line to the next one. Programs read the comment on top of it too: first what the
-- block answers; then its parameters, as `name type = default: meaning`, with the accepted values in parentheses where
-- there are few; then the columns of its result, as `name type: meaning`. contracts/README.md says how to run a block.
--
-- Terms that hold in all blocks:
-- - A parameter is written as `:name`. Each may be null, which stands for the default.
-- - A run's effective time (`effective_at`) is when it started; if that is not known, when it was queued; else when it
--   finished; else when CHM first saw it. Runs are ordered by it and belong to time spans by it. Of runs with the same
--   effective time, the one that finished last is the latest.
-- - A run is settled once it is a success, or failed and not about to be retried. Running, canceled and skipped runs
--   settle nothing: they neither break a pipeline nor fix it.
-- - Backfills say nothing about health: whether a pipeline fails, changed or is flaky depends on its other runs. Latest
--   runs, counts and rates include backfills.
-- - A pipeline is failing if its latest settled run failed; late if a run was due and none came within the grace time (15
--   minutes unless grace_minutes says otherwise); overrunning if a run takes longer than max_runtime_minutes; healthy if
--   it is none of these and its latest settled run is a success; else unknown. What did not happen is claimed only where
--   it is known: a pipeline that was not read for 30 minutes (longer if syncs are rarer), or whose last two syncs failed,
--   is unknown, and so is one of whose last sync a record was not understood or an unfinished run could not be read, one
--   whose report CHM's API may have missed because it was down, and, whatever its runs say, one that its partner no
--   longer knows. A failure stays a failure until a newer run is known.
-- - Questions about now leave disabled clients and pipelines out. Questions about a time span (over time, by client, by
--   platform, durations) count their runs too, from `since` up to, but not including, `until`.
-- - Times are timestamptz; days, weeks and months begin in UTC unless `timezone` says otherwise. Rates are from 0 to 1,
--   and null if nothing settled.
-- - Questions about now take `at`: they answer for that time in the past, from what is known now. A run that finished
--   later was running then. Clients, pipelines and their settings are those of now. Due times are kept for now only: a
--   pipeline with a schedule that has run since then is never called late, and where it was healthy otherwise, its
--   health_reason says that lateness is not known. Maintenance counts as far as the calendar still has the window.
--   `error_groups` and `failed_runs` take `at` as well: it is where their time span ends, unless `until` says otherwise.
--   `connections`, `open_episodes` and `waiting_messages` have no `at`, because their past states are not kept;
--   `past_episodes` has the past of episodes, and questions about a time span take `until`.
--
-- The views and functions that the blocks use are part of the schema: `pipeline_details`, `ledger_runs`, `settled_runs`,
-- `health_runs`, `open_alert_episodes`, `counts_for_health()`, `pipelines_of()`, `active_pipelines()`, `latest_runs()`,
-- `latest_health_runs()`, `health_runs_at()`, `latest_success()`, `settled_at()` and `health_at()`. A role without rights
-- on what partners sent (the columns payload and lineage) can run every block.

-- name: latest_status_by_pipeline
-- The latest run and the health of each active pipeline. Pipelines that never ran are included, with a null status.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
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
--   settled_status text: success or failed, from the latest settled run that is no backfill
--   health text: failing, late, overrunning, unknown, healthy or, in maintenance, paused
--   health_since timestamptz: since when; null for healthy
--   health_reason text: why, in words; null for healthy
--   due_at timestamptz: when the next run after the latest one is due; null without a schedule
--   read_at timestamptz: when the last complete sync started; null if it was never read, or reports its runs itself
--   external_run_id text: the latest run's id at the partner
--   effective_at timestamptz: when it started, or else was queued, finished or first seen
--   queued_at timestamptz
--   started_at timestamptz
--   finished_at timestamptz
--   duration_seconds float8
--   kind text: scheduled, manual, backfill or retry; null if that is not known
--   error_message text
--   status_reason text: the partner's own word where it says more than the status
--   source_url text: a link to the run at the partner
--   synced_through timestamptz: the pipeline's runs are known up to here
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    r.status,
    settled.status AS settled_status,
    h.health,
    h.health_since,
    h.health_reason,
    h.due_at,
    h.read_at,
    r.external_run_id,
    r.effective_at,
    r.queued_at,
    r.started_at,
    r.finished_at,
    r.duration_seconds,
    r.kind,
    r.error_message,
    r.status_reason,
    r.source_url,
    p.synced_through
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
LEFT JOIN LATERAL latest_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS r ON true
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN counts_for_health(r.status, r.kind, r.will_retry) THEN r.status
        ELSE (SELECT latest.status FROM latest_health_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS latest)
    END AS status
) AS settled
CROSS JOIN LATERAL health_at(p.pipeline_id, settled.status, CAST(:at AS timestamptz)) AS h
ORDER BY p.client_slug, p.pipeline_slug;

-- name: latest_status_by_client
-- The health of each active client, the worst first: that of its worst pipeline, and how many have which health and
-- which latest status. A client without active pipelines is unknown.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only pipelines of this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   health text: failing, late, overrunning, unknown or healthy: the worst of any pipeline; paused: all in maintenance
--   pipelines int8: active ones; the next six add up to it
--   failing int8: pipelines whose latest settled run failed
--   late int8: pipelines without a run since it was due
--   overrunning int8: pipelines with a run that takes longer than it may
--   unknown int8: pipelines that never ran, or were not read recently enough to know
--   healthy int8
--   in_maintenance int8: pipelines in a maintenance window, whatever their runs
--   paused int8: disabled pipelines; the only ones that the other counts leave out
--   success int8: pipelines whose latest run is a success; this and the next five add up to pipelines, too
--   failed int8
--   running int8
--   canceled int8
--   skipped int8
--   never_ran int8
--   latest_run_at timestamptz: effective time of the client's latest run
--   read_at timestamptz: when the pipeline was last read that was read longest ago; null if none was ever read
SELECT
    c.id AS client_id,
    c.slug AS client_slug,
    c.name AS client_name,
    CASE
        WHEN count(*) FILTER (WHERE r.health = 'failing') > 0 THEN 'failing'
        WHEN count(*) FILTER (WHERE r.health = 'late') > 0 THEN 'late'
        WHEN count(*) FILTER (WHERE r.health = 'overrunning') > 0 THEN 'overrunning'
        WHEN count(*) FILTER (WHERE r.health = 'paused') = count(*) THEN 'paused'
        WHEN count(*) FILTER (WHERE r.health IN ('healthy', 'paused')) = count(*) THEN 'healthy'
        ELSE 'unknown'
    END AS health,
    count(r.pipeline_id) AS pipelines,
    count(*) FILTER (WHERE r.health = 'failing') AS failing,
    count(*) FILTER (WHERE r.health = 'late') AS late,
    count(*) FILTER (WHERE r.health = 'overrunning') AS overrunning,
    count(*) FILTER (WHERE r.health = 'unknown') AS unknown,
    count(*) FILTER (WHERE r.health = 'healthy') AS healthy,
    count(*) FILTER (WHERE r.health = 'paused') AS in_maintenance,
    (
        SELECT count(*) FROM pipelines AS d
        WHERE d.client_id = c.id AND NOT d.is_active
          AND (CAST(:environment AS text) IS NULL OR d.environment = :environment)
    ) AS paused,
    count(*) FILTER (WHERE r.status = 'success') AS success,
    count(*) FILTER (WHERE r.status = 'failed') AS failed,
    count(*) FILTER (WHERE r.status = 'running') AS running,
    count(*) FILTER (WHERE r.status = 'canceled') AS canceled,
    count(*) FILTER (WHERE r.status = 'skipped') AS skipped,
    count(r.pipeline_id) FILTER (WHERE r.status IS NULL) AS never_ran,
    max(r.effective_at) AS latest_run_at,
    CASE WHEN bool_and(r.read_at IS NOT NULL) FILTER (WHERE r.pulled) THEN min(r.read_at) END AS read_at
FROM clients AS c
LEFT JOIN (
    SELECT
        p.client_id, p.pipeline_id, latest.status, latest.effective_at, h.health, h.read_at,
        d.external_id IS NOT NULL AND coalesce(d.connection, '') NOT LIKE 'openlineage:%' AS pulled
    FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
    JOIN pipelines AS d ON d.id = p.pipeline_id
    LEFT JOIN LATERAL latest_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS latest ON true
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN counts_for_health(latest.status, latest.kind, latest.will_retry) THEN latest.status
            ELSE (SELECT l.status FROM latest_health_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS l)
        END AS status
    ) AS settled
    CROSS JOIN LATERAL health_at(p.pipeline_id, settled.status, CAST(:at AS timestamptz)) AS h
) AS r ON r.client_id = c.id
WHERE c.is_active
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
GROUP BY c.id
ORDER BY
    CASE
        WHEN count(*) FILTER (WHERE r.health = 'failing') > 0 THEN 1
        WHEN count(*) FILTER (WHERE r.health = 'late') > 0 THEN 2
        WHEN count(*) FILTER (WHERE r.health = 'overrunning') > 0 THEN 3
        WHEN count(*) FILTER (WHERE r.health = 'paused') = count(*) THEN 6
        WHEN count(*) FILTER (WHERE r.health IN ('healthy', 'paused')) = count(*) THEN 5
        ELSE 4
    END,
    c.slug;

-- name: needs_attention
-- What needs somebody's attention now: active pipelines that are neither healthy nor in maintenance,
-- the worst first, then the longest.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   health text: failing, late, overrunning or unknown
--   health_since timestamptz: since when
--   health_reason text: why, in words
--   due_at timestamptz: when the next run after the latest one is due; null without a schedule
--   read_at timestamptz: when the last complete sync started; null if it was never read, or reports its runs itself
--   external_run_id text: of the latest failure, if it is failing; so are the next four
--   effective_at timestamptz: when it started, or else was queued, finished or first seen
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    h.health,
    h.health_since,
    h.health_reason,
    h.due_at,
    h.read_at,
    bad.external_run_id,
    bad.effective_at,
    bad.error_message,
    bad.status_reason,
    bad.source_url
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
LEFT JOIN LATERAL latest_health_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS settled ON true
CROSS JOIN LATERAL health_at(p.pipeline_id, settled.status, CAST(:at AS timestamptz)) AS h
LEFT JOIN LATERAL (
    SELECT * FROM ledger_runs AS run WHERE run.id = settled.id LIMIT 1
) AS bad ON h.health = 'failing'
WHERE h.health NOT IN ('healthy', 'paused')
ORDER BY
    CASE h.health WHEN 'failing' THEN 1 WHEN 'late' THEN 2 WHEN 'overrunning' THEN 3 ELSE 4 END,
    h.health_since,
    p.client_slug,
    p.pipeline_slug;

-- name: connections
-- How reading each connection goes: how many active pipelines are read from it, how recently, and why it fails.
-- Parameters:
--   client_slug text = null: only pipelines of this client
--   environment text = null (dev, staging, prod): only pipelines of this environment
-- Columns:
--   platform text
--   connection text: its name; null for the platform's default
--   pipelines int8: active ones that are read from it
--   unreadable int8: pipelines whose last sync failed
--   read_at timestamptz: when the last complete sync of any of them started; null if there was none
--   oldest_read_at timestamptz: of the pipeline that was read longest ago; null if one was never read
--   stale_at timestamptz: until when the newest of these syncs says how its pipeline is; null if there was none
--   oldest_stale_at timestamptz: the earliest such time of its pipelines; null if one was never read
--   failing_since timestamptz: since when none of them can be read; null if the partner answers for one
--   error_code text: the kind of the latest error, such as credentials_refused, or else warning (clock_skew)
--   error text: the latest error, or else warning; null if nothing is wrong
SELECT
    t.platform,
    t.connection,
    count(*) AS pipelines,
    count(t.sync_failing_since) AS unreadable,
    max(t.observed_through) AS read_at,
    -- min() ignores nulls.
    CASE WHEN count(t.observed_through) = count(*) THEN min(t.observed_through) END AS oldest_read_at,
    max(reads.stale_at) AS stale_at,
    CASE WHEN count(reads.stale_at) = count(*) THEN min(reads.stale_at) END AS oldest_stale_at,
    -- A partner that no longer knows a pipeline answers all the same. One that was not tried yet shows nothing.
    CASE
        WHEN count(*) FILTER (
            WHERE t.sync_attempted_at IS NOT NULL
              AND (t.sync_failing_since IS NULL OR t.sync_error_code = 'not_at_partner')
        ) = 0 THEN max(t.sync_failing_since)
    END AS failing_since,
    (array_agg(t.sync_error_code ORDER BY t.sync_failing_since IS NULL, t.sync_attempted_at DESC, t.id)
        FILTER (WHERE t.sync_error IS NOT NULL))[1] AS error_code,
    (array_agg(t.sync_error ORDER BY t.sync_failing_since IS NULL, t.sync_attempted_at DESC, t.id)
        FILTER (WHERE t.sync_error IS NOT NULL))[1] AS error
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
JOIN pipelines AS t ON t.id = p.pipeline_id
-- As in health_of(): a sync that did not say how long it counts, counts for half an hour.
CROSS JOIN LATERAL (SELECT coalesce(t.stale_at, t.observed_through + interval '30 minutes') AS stale_at) AS reads
WHERE t.external_id IS NOT NULL AND coalesce(t.connection, '') NOT LIKE 'openlineage:%'
GROUP BY t.platform, t.connection
ORDER BY t.platform, t.connection NULLS FIRST;

-- name: failing_now
-- What is failing right now: active pipelines whose latest settled run failed, and since when. Backfills do not count.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   failing_since timestamptz: effective time of the first failure after the last success
--   failing_seconds float8: from failing_since up to now, or at
--   failures int8: settled runs that failed in a row; counted up to 1,000
--   broken bool: it failed in all of its last 30 settled runs, or in all there are if there are 10 or more
--   last_success_at timestamptz: effective time of the last success
--   external_run_id text: this and the next six describe the latest failure
--   effective_at timestamptz: when it started, or else was queued, finished or first seen
--   started_at timestamptz
--   finished_at timestamptz
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    streak.since AS failing_since,
    CAST(extract(epoch FROM coalesce(CAST(:at AS timestamptz), now()) - streak.since) AS float8) AS failing_seconds,
    streak.failures,
    streak.failures >= 30 OR (streak.failures >= 10 AND good.id IS NULL) AS broken,
    good.effective_at AS last_success_at,
    bad.external_run_id,
    bad.effective_at,
    bad.started_at,
    bad.finished_at,
    bad.error_message,
    bad.status_reason,
    bad.source_url
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
JOIN LATERAL latest_health_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS settled ON settled.status = 'failed'
CROSS JOIN LATERAL (
    SELECT * FROM ledger_runs AS run WHERE run.id = settled.id LIMIT 1
) AS bad
LEFT JOIN LATERAL latest_success(p.pipeline_id, CAST(:at AS timestamptz)) AS good ON true
CROSS JOIN LATERAL (
    -- The place in the order of runs after which the failures are one streak; without a success, before all runs.
    SELECT
        coalesce(good.effective_at, '-infinity') AS effective_at,
        coalesce(good.finished_at, '-infinity') AS finished_at,
        coalesce(good.id, '00000000-0000-0000-0000-000000000000') AS id
) AS mark
CROSS JOIN LATERAL (
    SELECT
        count(*) AS failures,
        -- The first failure of the streak, even if it is too long to be counted.
        (
            SELECT min(r.effective_at) FROM health_runs_at(p.pipeline_id, CAST(:at AS timestamptz)) AS r
            WHERE r.status = 'failed' AND r.effective_at >= mark.effective_at
              AND (r.effective_at, coalesce(r.finished_at, '-infinity'), r.id)
                > (mark.effective_at, mark.finished_at, mark.id)
        ) AS since
    FROM (
        SELECT 1 FROM health_runs_at(p.pipeline_id, CAST(:at AS timestamptz)) AS r
        WHERE r.status = 'failed' AND r.effective_at >= mark.effective_at
          AND (r.effective_at, coalesce(r.finished_at, '-infinity'), r.id)
            > (mark.effective_at, mark.finished_at, mark.id)
        LIMIT 1000
    ) AS failed
) AS streak
ORDER BY p.client_slug, p.pipeline_slug;

-- name: changed_since
-- What changed since a time: the latest settled run of each active pipeline now, compared with the latest one that had
-- settled by then. A run that was in progress then had not settled, nor had one that was started again since. Backfills
-- do not count.
-- Parameters:
--   since timestamptz = now() - interval '24 hours': the time to compare with; with at, 24 hours before it
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
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
--   external_run_id text: this and the next six describe the latest settled run now
--   effective_at timestamptz: when it started, or else was queued, finished or first seen
--   started_at timestamptz
--   finished_at timestamptz
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
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
    r.effective_at,
    r.started_at,
    r.finished_at,
    r.error_message,
    r.status_reason,
    r.source_url
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
JOIN LATERAL latest_health_runs(p.pipeline_id, 1, CAST(:at AS timestamptz)) AS present ON true
LEFT JOIN LATERAL settled_at(
    p.pipeline_id,
    coalesce(CAST(:since AS timestamptz), CAST(:at AS timestamptz) - interval '24 hours', now() - interval '24 hours')
) AS past ON true
CROSS JOIN LATERAL (
    SELECT * FROM ledger_runs AS run WHERE run.id = present.id LIMIT 1
) AS r
WHERE past.status IS DISTINCT FROM present.status OR present.status = 'failed'
ORDER BY
    CASE
        WHEN past.status IS NULL THEN 4
        WHEN present.status = 'success' THEN 3
        WHEN past.status = 'success' THEN 1
        ELSE 2
    END,
    p.client_slug,
    p.pipeline_slug;

-- name: recent_runs_by_pipeline
-- The last runs of each active pipeline as a strip of letters, for a status grid; empty for one that never ran.
-- Parameters:
--   runs int4 = 30: how many runs of each pipeline, at most 200
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
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
--   latest_run_at timestamptz: effective time of the latest run
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    coalesce(reverse(strip.letters), '') AS statuses,
    strip.latest_run_at
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
CROSS JOIN LATERAL (
    SELECT
        -- In the order of the rows below it: the latest first.
        string_agg(
            CASE recent.status
                WHEN 'success' THEN 'S' WHEN 'failed' THEN 'F' WHEN 'running' THEN 'R' WHEN 'canceled' THEN 'C' ELSE '-'
            END,
            ''
        ) AS letters,
        max(recent.effective_at) AS latest_run_at
    FROM latest_runs(
        p.pipeline_id, least(greatest(coalesce(CAST(:runs AS int4), 30), 1), 200), CAST(:at AS timestamptz)
    ) AS recent
) AS strip
ORDER BY p.client_slug, p.pipeline_slug;

-- name: flaky_pipelines
-- Which active pipelines are flaky: over the last 30 settled runs, flips between success and failure as a share of the
-- runs that could flip (all but the first). It takes at least 10 settled runs and 2 recoveries; backfills do not count. A
-- pipeline that always fails is broken, not flaky; one whose current failures have lasted 7 days from the first to the
-- latest is down; one that has not failed for 30 days up to its latest run is cured. To keep a label from flickering, set
-- it at the default threshold and remove it once the pipeline is no longer listed at half of it.
-- Parameters:
--   threshold float8 = 0.2: the flip rate from which on a pipeline is flaky
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now
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
--   latest_run_at timestamptz: effective time of the latest of them
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    flaky.flip_rate,
    flaky.flips,
    flaky.recoveries,
    flaky.failures,
    flaky.settled_runs,
    flaky.history,
    flaky.times[1] AS latest_run_at
FROM active_pipelines(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
CROSS JOIN LATERAL (
    -- In the order of the rows below them: the latest first.
    SELECT string_agg(upper(left(recent.status, 1)), '') AS letters, array_agg(recent.effective_at) AS times
    FROM latest_health_runs(p.pipeline_id, 30, CAST(:at AS timestamptz)) AS recent
) AS settled
CROSS JOIN LATERAL (
    SELECT
        reverse(settled.letters) AS history,
        settled.times,
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
WHERE flaky.flip_rate >= coalesce(CAST(:threshold AS float8), 0.2)
  -- Without a failure at the end there is no streak, and no time of its first failure.
  AND (flaky.times[1] - flaky.times[flaky.streak] < interval '7 days') IS NOT FALSE
  AND flaky.times[1] - flaky.times[position('F' IN settled.letters)] < interval '30 days'
ORDER BY flaky.flip_rate DESC, flaky.recoveries DESC, p.client_slug, p.pipeline_slug;

-- name: flakiness_over_time
-- How often outcomes flip, over time: of the settled runs that follow another settled run of their pipeline in the same
-- time span, how many ended the other way. Backfills do not count.
-- Parameters:
--   since timestamptz = now() - interval '720 hours'
--   until timestamptz = now()
--   bucket text = 'day' (hour, day, week, month): at most the last 10,000 of them are shown
--   timezone text = 'UTC': an IANA name; days, weeks and months begin at midnight there, hours are those of UTC
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   bucket timestamptz: its beginning; buckets without runs are included
--   settled_runs int8
--   flips int8: changes from success to failure or back
--   recoveries int8: changes from failure to success
--   flip_rate float8: flips as a share of the runs that could flip
SELECT
    b.starts AT TIME ZONE z.zone AS bucket,
    coalesce(n.settled_runs, 0) AS settled_runs,
    coalesce(n.flips, 0) AS flips,
    coalesce(n.recoveries, 0) AS recoveries,
    CAST(n.flips AS float8) / nullif(n.could_flip, 0) AS flip_rate
FROM (
    SELECT CASE WHEN CAST(:bucket AS text) = 'hour' THEN 'UTC' ELSE coalesce(CAST(:timezone AS text), 'UTC') END AS zone
) AS z
CROSS JOIN generate_series(
    greatest(
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:since AS timestamptz), now() - interval '720 hours') AT TIME ZONE z.zone
        ),
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE z.zone - interval '1 microsecond'
        ) - 9999 * CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
    ),
    coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE z.zone - interval '1 microsecond',
    CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
) AS b(starts)
LEFT JOIN (
    SELECT
        -- date_trunc takes several times as long, which shows over many rows; only months and other zones need it.
        CASE
            WHEN CAST(:bucket AS text) = 'hour'
            THEN date_bin('1 hour', r.effective_at, CAST('2000-01-03 00:00:00+00' AS timestamptz))
            WHEN coalesce(CAST(:timezone AS text), 'UTC') = 'UTC' AND coalesce(CAST(:bucket AS text), 'day') = 'day'
            THEN date_bin('1 day', r.effective_at, CAST('2000-01-03 00:00:00+00' AS timestamptz))
            WHEN coalesce(CAST(:timezone AS text), 'UTC') = 'UTC' AND CAST(:bucket AS text) = 'week'
            THEN date_bin('7 days', r.effective_at, CAST('2000-01-03 00:00:00+00' AS timestamptz))
            ELSE date_trunc(
                coalesce(CAST(:bucket AS text), 'day'), r.effective_at, coalesce(CAST(:timezone AS text), 'UTC')
            )
        END AS starts,
        count(*) AS settled_runs,
        count(r.status_before) AS could_flip,
        count(*) FILTER (WHERE r.status <> r.status_before) AS flips,
        count(*) FILTER (WHERE r.status = 'success' AND r.status_before = 'failed') AS recoveries
    FROM pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
    CROSS JOIN LATERAL (
        SELECT
            h.effective_at,
            h.status,
            lead(h.status) OVER (
                ORDER BY h.effective_at DESC, h.finished_at DESC NULLS LAST, h.id DESC
            ) AS status_before
        FROM health_runs AS h
        WHERE h.pipeline_id = p.pipeline_id
          AND h.effective_at >= coalesce(CAST(:since AS timestamptz), now() - interval '720 hours')
          AND h.effective_at < coalesce(CAST(:until AS timestamptz), now())
    ) AS r
    GROUP BY 1
) AS n ON n.starts = b.starts AT TIME ZONE z.zone
ORDER BY b.starts;

-- name: failures_over_time
-- How many settled runs failed, over time, and how many pipelines and clients that affected.
-- Parameters:
--   since timestamptz = now() - interval '720 hours'
--   until timestamptz = now()
--   bucket text = 'day' (hour, day, week, month): at most the last 10,000 of them are shown
--   timezone text = 'UTC': an IANA name; days, weeks and months begin at midnight there, hours are those of UTC
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   bucket timestamptz: its beginning; buckets without failures are included
--   failures int8
--   failed_pipelines int8: pipelines with a failure
--   failed_clients int8: clients with a failure
SELECT
    b.starts AT TIME ZONE z.zone AS bucket,
    coalesce(n.failures, 0) AS failures,
    coalesce(n.failed_pipelines, 0) AS failed_pipelines,
    coalesce(n.failed_clients, 0) AS failed_clients
FROM (
    SELECT CASE WHEN CAST(:bucket AS text) = 'hour' THEN 'UTC' ELSE coalesce(CAST(:timezone AS text), 'UTC') END AS zone
) AS z
CROSS JOIN generate_series(
    greatest(
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:since AS timestamptz), now() - interval '720 hours') AT TIME ZONE z.zone
        ),
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE z.zone - interval '1 microsecond'
        ) - 9999 * CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
    ),
    coalesce(CAST(:until AS timestamptz), now()) AT TIME ZONE z.zone - interval '1 microsecond',
    CAST('1 ' || coalesce(CAST(:bucket AS text), 'day') AS interval)
) AS b(starts)
LEFT JOIN (
    SELECT
        date_trunc(
            coalesce(CAST(:bucket AS text), 'day'),
            r.effective_at,
            CASE WHEN CAST(:bucket AS text) = 'hour' THEN 'UTC' ELSE coalesce(CAST(:timezone AS text), 'UTC') END
        ) AS starts,
        count(*) AS failures,
        count(DISTINCT p.pipeline_id) AS failed_pipelines,
        count(DISTINCT p.client_id) AS failed_clients
    FROM settled_runs AS r
    JOIN pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p ON p.pipeline_id = r.pipeline_id
    WHERE r.status = 'failed'
      AND r.effective_at >= coalesce(CAST(:since AS timestamptz), now() - interval '720 hours')
      AND r.effective_at < coalesce(CAST(:until AS timestamptz), now())
    GROUP BY 1
) AS n ON n.starts = b.starts AT TIME ZONE z.zone
ORDER BY b.starts;

-- name: failure_counts_by_client
-- How many settled runs failed, by client: all active clients, and disabled ones that had a failure.
-- Parameters:
--   since timestamptz = now() - interval '168 hours'
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
--   last_failure_at timestamptz: effective time of the last failure
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
        count(*) FILTER (WHERE r.status = 'failed') AS failures,
        count(DISTINCT p.pipeline_id) FILTER (WHERE r.status = 'failed') AS failed_pipelines,
        max(r.effective_at) FILTER (WHERE r.status = 'failed') AS last_failure_at
    FROM settled_runs AS r
    JOIN pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p ON p.pipeline_id = r.pipeline_id
    WHERE r.effective_at >= coalesce(CAST(:since AS timestamptz), now() - interval '168 hours')
      AND r.effective_at < coalesce(CAST(:until AS timestamptz), now())
    GROUP BY p.client_id
) AS n ON n.client_id = c.id
WHERE (c.is_active OR n.failures > 0)
  AND (CAST(:client_slug AS text) IS NULL OR c.slug = :client_slug)
ORDER BY coalesce(n.failures, 0) DESC, c.slug;

-- name: error_groups
-- Which errors made runs fail, those at the most clients first: settled runs that failed, grouped by the fingerprint of
-- their message, in which ids, numbers, times, hosts, addresses and paths do not count. What a failed run said without a
-- message is its status reason.
-- Parameters:
--   since timestamptz = now() - interval '168 hours'
--   until timestamptz = now()
--   groups int4 = 100: how many errors, at most 1,000
--   error_id text = null: only this error
--   client_slug text = null: only this client
--   platform text = null: only this platform
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now; the time span ends there
-- Columns:
--   error_id text: short for the fingerprint
--   fingerprint text: what the messages have in common; empty if there was none, null if CHM has not computed it
--   failures int8: settled runs that failed with this error; clients and pipelines are theirs, too
--   clients int8
--   client_slugs text: the first 10 of them by name, separated by commas
--   pipelines int8
--   pipeline_keys text: client/pipeline of the 10 with the most failures, separated by commas
--   platforms text: separated by commas
--   still_failing int8: active ones of the pipelines whose latest settled run that is no backfill failed with this error
--   first_seen_at timestamptz: effective time of the first of the failures in the time span
--   last_seen_at timestamptz: effective time of the last one
--   client_slug text: this and the next seven describe the last one
--   client_name text
--   pipeline_slug text
--   pipeline_name text
--   environment text
--   external_run_id text
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
--   all_groups int8: how many errors there are, with those that `groups` leaves out
SELECT
    coalesce(md5(g.fingerprint), 'none') AS error_id,
    g.fingerprint,
    g.failures,
    g.clients,
    array_to_string(g.client_slugs, ', ') AS client_slugs,
    g.pipelines,
    array_to_string(g.pipeline_keys, ', ') AS pipeline_keys,
    g.platforms,
    g.still_failing,
    g.first_seen_at,
    g.last_seen_at,
    d.client_slug,
    d.client_name,
    d.pipeline_slug,
    d.pipeline_name,
    d.environment,
    r.external_run_id,
    r.error_message,
    r.status_reason,
    r.source_url,
    g.all_groups
FROM (
    SELECT
        n.fingerprint,
        CAST(sum(n.failures) AS int8) AS failures,
        count(DISTINCT p.client_id) AS clients,
        (array_agg(DISTINCT p.client_slug))[1:10] AS client_slugs,
        count(*) AS pipelines,
        (array_agg(
            p.client_slug || '/' || p.pipeline_slug ORDER BY n.failures DESC, p.client_slug, p.pipeline_slug
        ))[1:10] AS pipeline_keys,
        string_agg(DISTINCT p.platform, ', ') AS platforms,
        count(*) FILTER (
            WHERE p.is_active AND latest.status = 'failed'
              AND latest.error_fingerprint IS NOT DISTINCT FROM n.fingerprint
        ) AS still_failing,
        min(n.first_seen_at) AS first_seen_at,
        max(n.last_seen_at) AS last_seen_at,
        (array_agg(n.last_id ORDER BY n.last_seen_at DESC, n.last_id DESC))[1] AS last_id,
        count(*) OVER () AS all_groups
    FROM (
        SELECT
            f.error_fingerprint AS fingerprint,
            f.pipeline_id,
            count(*) AS failures,
            min(f.effective_at) AS first_seen_at,
            max(f.effective_at) AS last_seen_at,
            (array_agg(f.id ORDER BY f.effective_at DESC, f.finished_at DESC NULLS LAST, f.id DESC))[1] AS last_id
        FROM settled_runs AS f
        WHERE f.status = 'failed'
          AND f.effective_at >= coalesce(
              CAST(:since AS timestamptz), CAST(:at AS timestamptz) - interval '168 hours', now() - interval '168 hours'
          )
          AND f.effective_at < coalesce(CAST(:until AS timestamptz), CAST(:at AS timestamptz), now())
          AND (CAST(:at AS timestamptz) IS NULL OR coalesce(f.finished_at, f.effective_at) <= CAST(:at AS timestamptz))
          AND (CAST(:error_id AS text) IS NULL OR coalesce(md5(f.error_fingerprint), 'none') = :error_id)
        GROUP BY 1, 2
    ) AS n
    JOIN pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p ON p.pipeline_id = n.pipeline_id
    LEFT JOIN LATERAL latest_health_runs(n.pipeline_id, 1, CAST(:at AS timestamptz)) AS latest ON true
    WHERE (CAST(:platform AS text) IS NULL OR p.platform = :platform)
    GROUP BY n.fingerprint
    ORDER BY clients DESC, failures DESC, last_seen_at DESC, n.fingerprint
    LIMIT least(greatest(coalesce(CAST(:groups AS int4), 100), 1), 1000)
) AS g
JOIN ledger_runs AS r ON r.id = g.last_id
JOIN pipeline_details AS d ON d.pipeline_id = r.pipeline_id
ORDER BY g.clients DESC, g.failures DESC, g.last_seen_at DESC, g.fingerprint;

-- name: failed_runs
-- Which runs failed: settled runs of a time span, the latest first.
-- Parameters:
--   since timestamptz = now() - interval '168 hours'
--   until timestamptz = now()
--   runs int4 = 30: how many, at most 200
--   error_id text = null: only failures with this error
--   client_slug text = null: only this client
--   platform text = null: only this platform
--   environment text = null (dev, staging, prod): only this environment
--   at timestamptz = now(): as it was at this time in the past, from what is known now; the time span ends there
-- Columns:
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   error_id text: short for what its message has in common with others of the same error
--   external_run_id text
--   effective_at timestamptz: when it started, or else was queued, finished or first seen
--   started_at timestamptz
--   finished_at timestamptz
--   duration_seconds float8
--   kind text: scheduled, manual, backfill or retry; null if that is not known
--   error_message text
--   status_reason text
--   source_url text: a link to the run at the partner
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    coalesce(md5(r.error_fingerprint), 'none') AS error_id,
    r.external_run_id,
    r.effective_at,
    r.started_at,
    r.finished_at,
    r.duration_seconds,
    r.kind,
    r.error_message,
    r.status_reason,
    r.source_url
FROM settled_runs AS r
JOIN pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p ON p.pipeline_id = r.pipeline_id
WHERE r.status = 'failed'
  AND r.effective_at >= coalesce(
      CAST(:since AS timestamptz), CAST(:at AS timestamptz) - interval '168 hours', now() - interval '168 hours'
  )
  AND r.effective_at < coalesce(CAST(:until AS timestamptz), CAST(:at AS timestamptz), now())
  AND (CAST(:at AS timestamptz) IS NULL OR coalesce(r.finished_at, r.effective_at) <= CAST(:at AS timestamptz))
  AND (CAST(:error_id AS text) IS NULL OR coalesce(md5(r.error_fingerprint), 'none') = :error_id)
  AND (CAST(:platform AS text) IS NULL OR p.platform = :platform)
ORDER BY r.effective_at DESC, r.id DESC
LIMIT least(greatest(coalesce(CAST(:runs AS int4), 30), 1), 200);

-- name: failure_rate_by_platform
-- Which platforms fail most: settled runs and failures of each platform with settled runs.
-- Parameters:
--   since timestamptz = now() - interval '720 hours'
--   until timestamptz = now()
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
-- Columns:
--   platform text
--   pipelines int8: those with settled runs
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
        r.pipeline_id,
        count(*) AS settled_runs,
        count(*) FILTER (WHERE r.status = 'failed') AS failures
    FROM settled_runs AS r
    WHERE r.effective_at >= coalesce(CAST(:since AS timestamptz), now() - interval '720 hours')
      AND r.effective_at < coalesce(CAST(:until AS timestamptz), now())
      AND (
          coalesce(CAST(:client_slug AS text), CAST(:environment AS text)) IS NULL
          OR r.pipeline_id IN (
              SELECT p.pipeline_id
              FROM pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
          )
      )
    GROUP BY r.pipeline_id
) AS n
JOIN pipelines AS p ON p.id = n.pipeline_id
GROUP BY p.platform
ORDER BY failure_rate DESC, p.platform;

-- name: duration_distribution
-- How long settled runs take: a histogram of fixed buckets, empty ones included.
-- Parameters:
--   since timestamptz = now() - interval '720 hours'
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
            r.duration_seconds,
            CAST(ARRAY[1, 5, 15, 30, 60, 120, 300, 900, 1800, 3600, 7200, 21600, 43200, 86400] AS float8[])
        ) AS bucket,
        count(*) FILTER (WHERE r.status = 'success') AS success,
        count(*) FILTER (WHERE r.status = 'failed') AS failed
    FROM settled_runs AS r
    WHERE r.effective_at >= coalesce(CAST(:since AS timestamptz), now() - interval '720 hours')
      AND r.effective_at < coalesce(CAST(:until AS timestamptz), now())
      -- Without a filter the pipelines need not be read at all, which halves the time.
      AND (
          coalesce(
              CAST(:client_slug AS text), CAST(:environment AS text), CAST(:pipeline_slug AS text),
              CAST(:platform AS text)
          ) IS NULL
          OR r.pipeline_id IN (
              SELECT p.pipeline_id
              FROM pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
              WHERE (CAST(:pipeline_slug AS text) IS NULL OR p.pipeline_slug = :pipeline_slug)
                AND (CAST(:platform AS text) IS NULL OR p.platform = :platform)
          )
      )
    GROUP BY 1
) AS n ON n.bucket = b.bucket
ORDER BY b.bucket;

-- name: client_summary
-- How the runs of each pipeline ended in a time span, and what its latest run is: one row for each pipeline. Disabled
-- pipelines are included, because their history counts.
-- Parameters:
--   since timestamptz = now() - interval '720 hours'
--   until timestamptz = now()
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
--   is_active bool: false if the pipeline or its client is disabled
--   latest_status text: running, success, failed, canceled or skipped; null if it never ran
--   latest_run_at timestamptz: effective time of its latest run, whenever that was
--   running int8: runs of the time span, by their status; this and the next four
--   success int8
--   failed int8
--   canceled int8
--   skipped int8
SELECT
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    p.is_active,
    latest.status AS latest_status,
    latest.effective_at AS latest_run_at,
    n.running AS running,
    n.success AS success,
    n.failed AS failed,
    n.canceled AS canceled,
    n.skipped AS skipped
FROM pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
LEFT JOIN LATERAL latest_runs(p.pipeline_id, 1) AS latest ON true
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE r.status = 'running') AS running,
        count(*) FILTER (WHERE r.status = 'success') AS success,
        count(*) FILTER (WHERE r.status = 'failed') AS failed,
        count(*) FILTER (WHERE r.status = 'canceled') AS canceled,
        count(*) FILTER (WHERE r.status = 'skipped') AS skipped
    FROM runs AS r
    WHERE r.pipeline_id = p.pipeline_id
      AND r.effective_at >= coalesce(CAST(:since AS timestamptz), now() - interval '720 hours')
      AND r.effective_at < coalesce(CAST(:until AS timestamptz), now())
) AS n
ORDER BY p.client_slug, p.pipeline_slug;

-- name: open_episodes
-- What alert rules have found wrong and is not over, the longest first.
-- Parameters:
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   pipeline_slug text = null: only pipelines of this slug; slugs are unique within a client
-- Columns:
--   episode_id uuid
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   rule_id uuid
--   rule_type text: what is watched, such as on_failure
--   threshold int4: how many failures it takes; null for types without it
--   window_minutes int4: the length of the window; null for types without it
--   channel text
--   destination text: who is notified
--   muted_until timestamptz: the rule sends nothing new before this time
--   state text: acknowledged, announced, or unannounced while the rule is muted or a maintenance window is open
--   since timestamptz: since when, by the source's clock
--   opened_at timestamptz: when CHM found it
--   announced_at timestamptz: when it was announced; null if it was not
--   reminders int4: how many reminders there were
--   acknowledged_at timestamptz
--   acknowledged_by text: who takes care of it; null if nobody said so
--   failures int4: failed runs that count, up to 1,000 (10,000 in a window); 0 for what did not happen
--   external_run_id text: the latest run that counts; null for what did not happen
SELECT
    e.episode_id,
    e.client_id,
    e.client_slug,
    e.client_name,
    e.pipeline_id,
    e.pipeline_slug,
    e.pipeline_name,
    e.platform,
    e.environment,
    e.rule_id,
    e.rule_type,
    e.threshold,
    e.window_minutes,
    e.channel,
    e.destination,
    e.muted_until,
    e.state,
    e.since,
    e.opened_at,
    e.announced_at,
    e.reminders,
    e.acknowledged_at,
    e.acknowledged_by,
    e.failures,
    e.external_run_id
FROM open_alert_episodes AS e
JOIN pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p ON p.pipeline_id = e.pipeline_id
WHERE (CAST(:pipeline_slug AS text) IS NULL OR e.pipeline_slug = :pipeline_slug)
ORDER BY e.since, e.client_slug, e.pipeline_slug, e.rule_id;

-- name: past_episodes
-- What alert rules had found wrong and is over, the latest first. A rule keeps its last 200 episodes, for 90 days.
-- Parameters:
--   since timestamptz = now() - interval '720 hours': only what CHM found to be over since then
--   client_slug text = null: only this client
--   environment text = null (dev, staging, prod): only this environment
--   pipeline_slug text = null: only pipelines of this slug; slugs are unique within a client
-- Columns:
--   episode_id uuid
--   client_id uuid
--   client_slug text
--   client_name text
--   pipeline_id uuid
--   pipeline_slug text
--   pipeline_name text
--   platform text
--   environment text
--   rule_id uuid
--   rule_type text: what is watched now
--   channel text
--   destination text: who is notified now
--   outcome text: recovered, corrected (it never happened) or ended (nobody watches any longer)
--   since timestamptz: since when, by the source's clock
--   until timestamptz: when it was over, by the source's clock; null unless it recovered
--   duration_seconds float8: from since up to until
--   opened_at timestamptz: when CHM found it
--   announced_at timestamptz: when it was announced; null if it never was
--   over_at timestamptz: when CHM found that it is over
--   reminders int4: how many reminders there were
--   acknowledged_by text: who took care of it; null if nobody said so
--   failures int4: failed runs that counted, up to 1,000 (10,000 in a window); 0 for what did not happen
--   reason text: why nobody watches any longer; null unless it ended
SELECT
    CAST(e.episode ->> 'id' AS uuid) AS episode_id,
    p.client_id,
    p.client_slug,
    p.client_name,
    p.pipeline_id,
    p.pipeline_slug,
    p.pipeline_name,
    p.platform,
    p.environment,
    r.id AS rule_id,
    r.rule_type,
    r.channel,
    r.destination,
    x.past ->> 'outcome' AS outcome,
    CAST(e.episode ->> 'since' AS timestamptz) AS since,
    CAST(x.past ->> 'until' AS timestamptz) AS until,
    CAST(extract(epoch FROM
        CAST(x.past ->> 'until' AS timestamptz) - CAST(e.episode ->> 'since' AS timestamptz)
    ) AS float8) AS duration_seconds,
    CAST(e.episode ->> 'opened_at' AS timestamptz) AS opened_at,
    CAST(e.episode ->> 'announced_at' AS timestamptz) AS announced_at,
    CAST(x.past ->> 'over_at' AS timestamptz) AS over_at,
    CAST(e.episode ->> 'reminders' AS integer) AS reminders,
    nullif(e.episode ->> 'acknowledged_by', '') AS acknowledged_by,
    CASE
        WHEN r.rule_type IN ('on_failure', 'consecutive_failures', 'failures_in_window')
        THEN CAST(e.episode -> 'evidence' ->> 'count' AS integer) ELSE 0
    END AS failures,
    nullif(x.past ->> 'reason', '') AS reason
FROM alert_rules AS r
CROSS JOIN LATERAL jsonb_array_elements(r.history) AS x(past)
CROSS JOIN LATERAL (SELECT x.past -> 'episode') AS e(episode)
JOIN pipelines_of(CAST(:client_slug AS text), CAST(:environment AS text)) AS p
    ON p.pipeline_id = CAST(e.episode ->> 'pipeline_id' AS uuid)
WHERE r.history <> '[]'
  AND CAST(x.past ->> 'over_at' AS timestamptz)
      >= coalesce(CAST(:since AS timestamptz), now() - interval '720 hours')
  AND (CAST(:pipeline_slug AS text) IS NULL OR p.pipeline_slug = :pipeline_slug)
ORDER BY over_at DESC, p.client_slug, p.pipeline_slug, r.id;

-- name: waiting_messages
-- Messages of alert rules that no receiver has accepted, the oldest first. An undeliverable one is not tried any more.
-- Parameters:
--   client_slug text = null: only messages about this client
--   environment text = null (dev, staging, prod): only messages about this environment
--   message_state text = null (waiting, undeliverable): only messages in this state
-- Columns:
--   message_id uuid: the same for every attempt
--   channel text
--   destination text: who is to be notified
--   state text: waiting or undeliverable
--   created_at timestamptz
--   next_at timestamptz: when it is tried next; null if it is undeliverable
--   attempts int4: how many have failed
--   error text: why the last attempt failed; null before the first one
--   notices int8: how many it has
--   clients text: whom it is about, separated by commas
SELECT
    CAST(m.message ->> 'id' AS uuid) AS message_id,
    m.message ->> 'channel' AS channel,
    m.message ->> 'destination' AS destination,
    CASE WHEN bool_and(m.message ->> 'next_at' IS NULL) THEN 'undeliverable' ELSE 'waiting' END AS state,
    CAST(min(m.message ->> 'created_at') AS timestamptz) AS created_at,
    CAST(min(m.message ->> 'next_at') AS timestamptz) AS next_at,
    coalesce(max(CAST(m.message ->> 'attempts' AS integer)), 0) AS attempts,
    max(m.message ->> 'error') AS error,
    count(*) AS notices,
    string_agg(DISTINCT i.item ->> 'client_slug', ', ' ORDER BY i.item ->> 'client_slug') AS clients
FROM alert_rules AS r
CROSS JOIN LATERAL jsonb_array_elements(r.outbox) AS m(message)
CROSS JOIN LATERAL jsonb_array_elements(m.message -> 'items') AS i(item)
WHERE r.outbox <> '[]'
GROUP BY 1, 2, 3
HAVING (CAST(:client_slug AS text) IS NULL OR bool_or(i.item ->> 'client_slug' = :client_slug))
   AND (CAST(:environment AS text) IS NULL OR bool_or(i.item ->> 'environment' = :environment))
   AND (CAST(:message_state AS text) IS NULL OR :message_state = CASE
        WHEN bool_and(m.message ->> 'next_at' IS NULL) THEN 'undeliverable' ELSE 'waiting' END)
ORDER BY created_at, message_id, channel, destination;
