"""Asset checks. The blocking ones are gates: health assets do not materialize past them."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from chm_dagster.defs.ingestion.events import RUNS
from chm_dagster.ingestion.ingest import remap
from chm_dagster.ingestion.landing import Landing, LandingZone
from chm_dagster.ingestion.report import IngestReport
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.invariants import duplicate_runs, impossible_runs, pipelines_behind
from chm_dagster.warehouse.inventory import ingested_pipelines
from chm_dagster.warehouse.warehouse import Warehouse

REJECTED_ERROR_SHARE = 0.05
"""Above this share of rejected records the partner's format has changed; below it some records are just bad."""
BEHIND = timedelta(minutes=30)


@dg.asset_check(asset=RUNS, blocking=True, description="No run stands in the ledger twice.")
def unique_external_run_ids(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    landing: dg.ResourceParam[LandingZone],
) -> dg.AssetCheckResult:
    """Counts the ledger's rows of the pipelines that had news, without trusting the unique index."""
    return _nothing_of(duplicate_runs(warehouse.engine, _ids_with_news(context, warehouse.engine, landing)))


@dg.asset_check(asset=RUNS, blocking=True, description="No run is in a state that its lifecycle cannot lead to.")
def status_progression(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    landing: dg.ResourceParam[LandingZone],
) -> dg.AssetCheckResult:
    """Looks for finished runs that went back to running, and the like."""
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
    off = {p.key: f"{p.fetched} fetched" for p in report.pipelines.values() if not p.accounted_for}
    landed, mapped = folder.count_records() if folder else 0, report.total("fetched")
    # Two clients' pipelines may share one record; a record may belong to nobody only if the feed says so.
    passed = not off and mapped >= landed
    return dg.AssetCheckResult(passed=passed, metadata={"landed": landed, "accounted for": mapped, "pipelines": off})


@dg.asset_check(asset=RUNS, description="Ingesting what landed once more would change nothing.")
def replay_writes_nothing(
    context: dg.AssetCheckExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    partners: dg.ResourceParam[Mapping[str, Partner]],
    landing: dg.ResourceParam[LandingZone],
) -> dg.AssetCheckResult:
    """Rehearses the last landed records: a check that wrote would repair what the other checks look for."""
    folder, last = _last(context, landing)
    if folder is None:
        return dg.AssetCheckResult(passed=True, description="nothing has landed yet")
    keys = [key for key, p in last.pipelines.items() if p.fetched]
    replay = remap(warehouse.engine, partners, ingested_pipelines(warehouse.engine, keys), folder, rehearsal=True)
    written = {p.key: p.inserted + p.updated for p in replay.pipelines.values() if p.inserted or p.updated}
    busy = {p.key for p in replay.failed} - {p.key for p in last.failed}
    return dg.AssetCheckResult(
        passed=not written, metadata={"written": written, "records": replay.total("fetched"), "not replayed": len(busy)}
    )


@dg.asset_check(asset=RUNS, description="Every status word that partners use is one that CHM knows.")
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
        metadata={"words": dict(words), "pipelines": offenders},
    )


@dg.asset_check(asset=RUNS, description="Partners send no records that are not runs.")
def no_rejected_records(
    context: dg.AssetCheckExecutionContext, landing: dg.ResourceParam[LandingZone]
) -> dg.AssetCheckResult:
    """Single bad records are a warning, many are an error. All of them are kept in the landing folder."""
    _, report = _last(context, landing)
    rejected, fetched = report.total("rejected"), report.total("fetched")
    drifted = rejected > REJECTED_ERROR_SHARE * fetched
    return dg.AssetCheckResult(
        passed=not rejected,
        severity=dg.AssetCheckSeverity.ERROR if drifted else dg.AssetCheckSeverity.WARN,
        metadata={
            "rejected": rejected,
            "fetched": fetched,
            "pipelines": {p.key: p.rejections for p in report.pipelines.values() if p.rejected},
        },
    )


@dg.asset_check(asset=RUNS, description="Every ingested pipeline's runs are known up to half an hour ago.")
def inventory_is_synced(warehouse: dg.ResourceParam[Warehouse]) -> dg.AssetCheckResult:
    """Freshness of the watermarks, whoever is to blame."""
    behind = pipelines_behind(warehouse.engine, datetime.now(UTC) - BEHIND)
    return _nothing_of(behind, severity=dg.AssetCheckSeverity.WARN)


@dg.asset_check(
    asset="partner_runs", blocking=True, description="Every partner could be read to the end, for every pipeline."
)
def every_partner_answered(
    context: dg.AssetCheckExecutionContext, landing: dg.ResourceParam[LandingZone]
) -> dg.AssetCheckResult:
    """Blocking, so that a sweep with an unreachable partner does not look green; it holds nothing else up."""
    _, report = _last(context, landing)
    errors = {p.key: p.error or "" for p in report.failed}
    return dg.AssetCheckResult(passed=not errors, metadata={"pipelines": errors})


def _last(context: dg.AssetCheckExecutionContext, zone: LandingZone) -> tuple[Landing | None, IngestReport]:
    """This Dagster run's landing, or the newest where the check runs by itself."""
    own = zone.open(context.run.run_id)
    folder = own if own.report() is not None else zone.newest()
    data = folder.report() if folder else None
    return folder, IngestReport.from_dict(data) if data else IngestReport(datetime.now(UTC))


def _ids_with_news(context: dg.AssetCheckExecutionContext, engine: Engine, zone: LandingZone) -> list[str]:
    _, report = _last(context, zone)
    keys = [p.key for p in report.pipelines.values() if p.has_news] or list(report.pipelines)
    return [str(p.id) for p in ingested_pipelines(engine, keys)]


def _nothing_of(
    offenders: list[dict[str, Any]], severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> dg.AssetCheckResult:
    rows = [{name: str(value) for name, value in row.items()} for row in offenders]
    pipelines = sorted({row["pipeline"] for row in rows})
    return dg.AssetCheckResult(
        passed=not rows, severity=severity, metadata={"pipelines": pipelines, "offenders": rows, "count": len(rows)}
    )
