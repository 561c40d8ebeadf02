"""Asset checks. The blocking ones are gates: if they fail, health assets are not materialized."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from chm_dagster.defs.automation import RUNS, STEPS, Partners
from chm_dagster.defs.ingestion import unreadable, words_only
from chm_dagster.defs.partition_events import PlainFailure, beside, failed_partitions
from chm_dagster.domain.sync import IngestReport
from chm_dagster.ingestion.ingest import remap
from chm_dagster.ingestion.landing import Landing, LandingZone
from chm_dagster.presentation.columns import by_reason, count, listed
from chm_dagster.warehouse.constraints import duplicate_runs, impossible_runs, pipelines_behind
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.ledger.due_times import due_differences
from chm_dagster.warehouse.warehouse import Warehouse

REJECTED_ERROR_SHARE = 0.05
"""Above this share of rejected records, the partner's format has changed; below it, single records are bad."""
SHOWN = 50
"""Pipelines that a check's metadata names."""


@dg.asset_check(asset=RUNS, blocking=True, description="No run is in the ledger twice.")
def unique_external_run_ids(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    landing: dg.ResourceParam[LandingZone],
) -> dg.AssetCheckResult:
    """Counts the ledger's rows of the pipelines that had news, without trusting the unique index."""
    return _nothing_of(duplicate_runs(warehouse.engine, _ids_with_news(context, warehouse.engine, landing)))


@dg.asset_check(asset=RUNS, blocking=True, description="No run is in an impossible state.")
def status_progression(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    landing: dg.ResourceParam[LandingZone],
) -> dg.AssetCheckResult:
    """Looks for impossible states, such as a run that is both running and finished."""
    return _nothing_of(impossible_runs(warehouse.engine, _ids_with_news(context, warehouse.engine, landing)))


@dg.asset_check(
    asset=RUNS,
    blocking=True,
    description="Every record that a partner sent was inserted, updated, unchanged, stale or rejected.",
)
def every_record_accounted_for(
    context: dg.AssetCheckExecutionContext, landing: dg.ResourceParam[LandingZone]
) -> dg.AssetCheckResult:
    """Compares the records in the landed files with the outcomes that the database reported."""
    folder, report = _last(context, landing)
    differing = {p.key: f"{p.fetched} fetched" for p in report.pipelines.values() if not p.accounted_for}
    landed, mapped = folder.count_records(report.unwritten) if folder else 0, report.fetched
    # Two clients' pipelines may share one record; a record may belong to nobody only if the feed says so.
    passed = not differing and mapped >= landed
    metadata: dict[str, Any] = {"landed": landed, "accounted for": mapped, "pipelines": _some(differing)}
    return dg.AssetCheckResult(passed=passed, metadata=metadata)


@dg.asset_check(asset=RUNS, description="Ingesting the newest landing again would change nothing.")
def replay_writes_nothing(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    partners: dg.ResourceParam[Partners],
    landing: dg.ResourceParam[LandingZone],
) -> dg.AssetCheckResult:
    """Ingest the last landed records again as a dry run: a check that wrote would repair what other checks look for."""
    folder, last = _last(context, landing)
    if folder is None:
        return dg.AssetCheckResult(passed=True, description="nothing has landed yet")
    keys = [key for key, p in last.pipelines.items() if p.fetched]
    with words_only():
        replay = remap(warehouse.engine, partners(), ingested_pipelines(warehouse.engine, keys), folder, dry_run=True)
    written = {p.key: p.counts.written for p in replay.pipelines.values() if p.counts.written}
    busy = {p.key for p in replay.failed} - {p.key for p in last.failed}
    return dg.AssetCheckResult(
        passed=not written,
        metadata={"written": _some(written), "records": replay.fetched, "not replayed": len(busy)},
    )


@dg.asset_check(asset=RUNS, description="CHM knows every status word that partners use.")
def no_unknown_statuses(
    context: dg.AssetCheckExecutionContext, landing: dg.ResourceParam[LandingZone]
) -> dg.AssetCheckResult:
    """An unknown word counts as running until it is mapped."""
    _, report = _last(context, landing)
    words: Counter[str] = Counter()
    for pipeline in report.pipelines.values():
        words.update(pipeline.unknown_statuses)
    offenders = [p.key for p in report.pipelines.values() if p.unknown_statuses]
    return dg.AssetCheckResult(
        passed=not words,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"words": _some(dict(words.most_common())), "pipelines": offenders[:SHOWN]},
    )


@dg.asset_check(asset=RUNS, description="Every record that partners send is a valid run.")
def no_rejected_records(
    context: dg.AssetCheckExecutionContext, landing: dg.ResourceParam[LandingZone]
) -> dg.AssetCheckResult:
    """Single bad records are a warning, many are an error. All of them are kept in the landing folder."""
    _, report = _last(context, landing)
    rejected, fetched = report.counts.rejected, report.fetched
    drifted = rejected > REJECTED_ERROR_SHARE * fetched
    return dg.AssetCheckResult(
        passed=not rejected,
        severity=dg.AssetCheckSeverity.ERROR if drifted else dg.AssetCheckSeverity.WARN,
        metadata={
            "rejected": rejected,
            "fetched": fetched,
            "pipelines": _some({p.key: p.rejections for p in report.pipelines.values() if p.counts.rejected}),
        },
    )


@dg.asset_check(asset=RUNS, description="Partners' clocks agree with CHM's.")
def clocks_agree(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """A clock that is wrong loses no run, but makes times of runs wrong, so that nobody can say which one is late."""
    wrong = {p.key: p.clock_warning for p in ingested_pipelines(warehouse.engine) if p.clock_warning}
    return dg.AssetCheckResult(
        passed=not wrong, severity=dg.AssetCheckSeverity.WARN, metadata={"pipelines": _some(wrong)}
    )


@dg.asset_check(asset=RUNS, description="No ingested pipeline is behind: scheduled syncs have read all of them.")
def inventory_is_synced(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """Freshness, whatever the cause, and watermarks that no clock can have shown."""
    now = datetime.now(UTC)
    behind = pipelines_behind(warehouse.engine, now)
    return _nothing_of(behind, severity=dg.AssetCheckSeverity.WARN)


@dg.asset_check(asset=RUNS, description="When each pipeline is due follows from its schedule and its runs.")
def due_times_are_current(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """By a due time that is out of date a pipeline is late too late or never; `chm migrate` works all of them out."""
    return _nothing_of(due_differences(warehouse.engine), severity=dg.AssetCheckSeverity.WARN)


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            "every_partner_answered",
            asset=STEPS[0],
            description="Every pipeline could be read completely. The check stays red while one cannot be read; the"
            " Dagster run fails only if that is new. The metadata names the connection and the fix.",
        )
    ]
)
def every_partner_answered(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    landing: dg.ResourceParam[LandingZone],
) -> Iterator[dg.AssetCheckResult]:
    """Fails the run on a change for the worse, so that partitions turn red; it holds nothing else up.

    Most syncs read a part of the pipelines. What the others could not read still counts, so the ledger is asked.
    """
    folder, report = _last(context, landing)
    own = folder is not None and folder.folder.name == context.run.run_id
    failed = {p.key: p.unreadable for p in ingested_pipelines(warehouse.engine) if p.unreadable}
    failed |= {p.key: p.error or "" for p in report.failed if own}
    reasons = by_reason(failed.items())
    shown = {reason: f"{count(len(names), 'pipeline')}: {listed(names)}" for reason, names in reasons.items()}
    (check,) = context.selected_asset_check_keys
    yield dg.AssetCheckResult(passed=not reasons, metadata={"could not be read": len(failed), "reasons": _some(shown)})
    if own and report.failed:
        red = failed_partitions(context.instance, beside(check.asset_key, RUNS))
        if any(outcome.key not in red for outcome in report.failed):
            raise PlainFailure(unreadable(report))


def _last(context: dg.AssetCheckExecutionContext, zone: LandingZone) -> tuple[Landing | None, IngestReport]:
    """This Dagster run's landing, or the newest where the check runs by itself."""
    own = zone.open(context.run.run_id)
    folder = own if own.report() is not None else zone.newest()
    data = folder.report() if folder else None
    return folder, IngestReport.from_dict(data) if data else IngestReport(datetime.now(UTC))


def _ids_with_news(context: dg.AssetCheckExecutionContext, engine: Engine, zone: LandingZone) -> list[str]:
    _, report = _last(context, zone)
    keys = [p.key for p in report.pipelines.values() if p.counts.has_news] or list(report.pipelines)
    return [str(p.id) for p in ingested_pipelines(engine, keys)]


def _some(found: Mapping[str, Any]) -> dict[str, Any]:
    """The first of many: an event should be short, and Dagster keeps all of them."""
    more = {"and more": len(found) - SHOWN} if len(found) > SHOWN else {}
    return {**dict(itertools.islice(found.items(), SHOWN)), **more}


def _nothing_of(
    offenders: list[dict[str, Any]], severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> dg.AssetCheckResult:
    rows = [{name: str(value) for name, value in row.items()} for row in offenders]
    pipelines = sorted({row["pipeline"] for row in rows})
    return dg.AssetCheckResult(
        passed=not rows,
        severity=severity,
        metadata={"pipelines": pipelines[:SHOWN], "offenders": rows[:SHOWN], "count": len(rows)},
    )
