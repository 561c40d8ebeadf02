"""Sweep -> land -> map -> merge. Each partner connection succeeds or fails on its own."""

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from uuid import UUID

from chm_dagster.domain.inventory import IngestedPipeline
from chm_dagster.domain.runs import Observation, Rejection
from chm_dagster.errors import Busy, ConfigError, InputError
from chm_dagster.ingestion.landing import Landing
from chm_dagster.ingestion.report import SAMPLES, IngestReport, PipelineReport
from chm_dagster.partners.connections import partner_of
from chm_dagster.partners.port import Done, Failed, Gone, Page, Partner, Target
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.open_runs import open_runs, told_runs
from chm_dagster.warehouse.runs import PART, Watermark
from chm_dagster.warehouse.session import PATIENCE_SECONDS, LedgerWriter, ledger_writer

CONNECTIONS_AT_ONCE = 16
"""Partner instances that are asked at the same time; each bounds its own requests."""

_LONG_RUN = timedelta(days=2)
"""A run that ended since the watermark hardly started longer before it; if it did, it is asked about once more."""

Progress = Callable[[int, int], None]
"""Told, as answers come in, for how many more pipelines a partner has answered and how many more records it sent."""


def silent(pipelines: int, records: int) -> None:
    """A Progress that tells nobody."""


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """One connection's part of an ingestion."""

    partner: Partner
    by_external_id: Mapping[str, Sequence[IngestedPipeline]]

    @property
    def pipeline_ids(self) -> list[UUID]:
        """Ids of all its pipelines."""
        return [p.id for pipelines in self.by_external_id.values() for p in pipelines]

    def targets(self, engine: Engine, since: datetime | None) -> list[Target]:
        """What to ask the partner for, with what the ledger knows that saves questions or raises them.

        Pipelines that share an external id are asked for once. Raises DatabaseUnavailable.
        """
        can, ids = self.partner.capabilities, self.pipeline_ids
        starts = {i: _start(since, [p.synced_through for p in ps]) for i, ps in self.by_external_id.items()}
        earliest = min((start for start in starts.values() if start is not None), default=None)
        unfinished = open_runs(engine, ids) if can.finds_deletions else {}
        told = told_runs(engine, ids, earliest - _LONG_RUN) if can.looks_further and earliest else {}
        return [
            Target(
                external_id,
                starts[external_id],
                tuple(run for p in pipelines for run in unfinished.get(p.id, ())),
                {run_id: run for p in pipelines for run_id, run in told.get(p.id, {}).items()},
            )
            for external_id, pipelines in self.by_external_id.items()
        ]


def ingest(
    engine: Engine,
    partners: Mapping[str, Partner],
    pipelines: Sequence[IngestedPipeline],
    landing: Landing,
    *,
    since: datetime | None = None,
    progress: Progress = silent,
    patience: float = PATIENCE_SECONDS,
) -> IngestReport:
    """Bring the runs of these pipelines up to date, from their watermarks or an earlier `since` (partner's time).

    A partner that cannot be read, or that another process is still ingesting after `patience` seconds, shows as `error`
    of its pipelines; the others go on. Raises InputError for a `since` in the future, and DatabaseUnavailable; the
    ledger then holds all of a connection's news or nothing of it.
    """
    report = IngestReport(datetime.now(UTC))
    if since is not None and since > report.started_at:
        raise InputError("since", "in the future; name a time from which on to read the partners again")
    shares = _shares(partners, pipelines, report)
    with ledger_writer(engine) as writer:
        claimed = [share for share in shares if _claim(writer, share, report, patience)]
        # Read only now: until the claims, somebody else may have changed some of it.
        sweeps = [(share, share.targets(engine, since)) for share in claimed]
        asyncio.run(_extract_all(sweeps, landing, progress, writer))
        for share in claimed:
            _merge_share(writer, share, landing, report)
    landing.save_report(report.as_dict())
    return report


def remap(
    engine: Engine,
    partners: Mapping[str, Partner],
    pipelines: Sequence[IngestedPipeline],
    landing: Landing,
    *,
    rehearsal: bool = False,
) -> IngestReport:
    """Map and merge again what landed before, without asking any partner. Same report and errors as `ingest`.

    A rehearsal tells what would be written, and leaves the ledger as it is.
    """
    report = IngestReport(datetime.now(UTC))
    with ledger_writer(engine) as writer:
        landed = set(landing.connections())
        for share in _shares(partners, pipelines, report):
            if share.partner.name in landed and _claim(writer, share, report, PATIENCE_SECONDS):
                _merge_share(writer, share, landing, report, rehearsal=rehearsal)
    return report


def _shares(
    partners: Mapping[str, Partner], pipelines: Sequence[IngestedPipeline], report: IngestReport
) -> list[Share]:
    """Split the pipelines by connection. Those without one are reported and left out."""
    by_partner: dict[str, dict[str, list[IngestedPipeline]]] = defaultdict(lambda: defaultdict(list))
    used: dict[str, Partner] = {}
    for pipeline in pipelines:
        try:
            partner = partner_of(pipeline, partners)
        except ConfigError as error:
            report.pipelines[pipeline.key] = PipelineReport(pipeline.key, pipeline.connection or "", error=str(error))
            continue
        used[partner.name] = partner
        by_partner[partner.name][pipeline.external_id].append(pipeline)
        report.pipelines[pipeline.key] = PipelineReport(pipeline.key, partner.name)
    return [Share(used[name], by_partner[name]) for name in sorted(used)]


def _claim(writer: LedgerWriter, share: Share, report: IngestReport, patience: float) -> bool:
    try:
        writer.claim(share.partner.name, patience)
    except Busy as error:
        for pipelines in share.by_external_id.values():
            for pipeline in pipelines:
                report.pipelines[pipeline.key].error = str(error)
        return False
    return True


async def _extract_all(
    sweeps: Sequence[tuple[Share, Sequence[Target]]], landing: Landing, progress: Progress, writer: LedgerWriter
) -> None:
    places = asyncio.Semaphore(CONNECTIONS_AT_ONCE)

    async def extract(share: Share, targets: Sequence[Target]) -> None:
        async with places:
            await _extract(share, targets, landing, progress, writer)

    async with asyncio.TaskGroup() as group:
        for share, targets in sweeps:
            group.create_task(extract(share, targets))


async def _extract(
    share: Share, targets: Sequence[Target], landing: Landing, progress: Progress, writer: LedgerWriter
) -> None:
    """Land all that one connection says."""
    feed = share.partner.open_feed()
    try:
        with landing.writer(share.partner.name) as file:
            async with aclosing(feed.sweep(targets)) as events:
                async for event in events:
                    file.add(event)
                    writer.keep_alive()
                    if isinstance(event, Page):
                        progress(0, len(event.records))
                    elif isinstance(event, Gone):
                        progress(0, len(event.runs))
                    else:
                        progress(sum(len(share.by_external_id[i]) for i in event.external_ids), 0)
    finally:
        await feed.aclose()


def _merge_share(
    writer: LedgerWriter, share: Share, landing: Landing, report: IngestReport, *, rehearsal: bool = False
) -> None:
    """Map what landed and write it, with the watermarks, in one transaction."""
    reports = {p.id: report.pipelines[p.key] for pipelines in share.by_external_id.values() for p in pipelines}
    watermarks: list[Watermark] = []
    rejections: list[tuple[str, Rejection]] = []
    batches = _batches(_mapped(share, landing, reports, watermarks, rejections))
    for pipeline_id, tally in writer.write(batches, watermarks, rehearsal=rehearsal).items():
        row = reports[pipeline_id]
        row.inserted, row.updated = tally.inserted, tally.updated
        row.unchanged, row.stale = tally.unchanged, tally.stale
    if rejections and not rehearsal:
        landing.save_rejections(rejections)


def _mapped(
    share: Share,
    landing: Landing,
    reports: Mapping[UUID, PipelineReport],
    watermarks: list[Watermark],
    rejections: list[tuple[str, Rejection]],
) -> Iterator[Observation]:
    """The observations that landed; everything else of what landed goes to the reports, watermarks and rejections."""
    for event in landing.events(share.partner.name):
        if isinstance(event, Page | Gone):
            for row, mapped in _mapped_records(share, event, reports):
                row.fetched += 1
                if isinstance(mapped, Rejection):
                    rejections.append((row.key, mapped))
                    _note_rejection(row, mapped)
                else:
                    _note(row, mapped)
                    yield mapped
        elif isinstance(event, Failed):
            for pipeline in _of(share, event):
                reports[pipeline.id].error = str(event.error)
        else:
            for pipeline in _of(share, event):
                reports[pipeline.id].synced_through = event.synced_through
                watermarks.append(Watermark(pipeline.id, event.synced_through, event.observed_at))


def _mapped_records(
    share: Share, event: Page | Gone, reports: Mapping[UUID, PipelineReport]
) -> Iterator[tuple[PipelineReport, Observation | Rejection]]:
    """What each of these records says of each pipeline that it belongs to."""
    if isinstance(event, Gone):
        for pipeline in share.by_external_id.get(event.external_id, ()):
            yield from ((reports[pipeline.id], run.gone(pipeline.id, event.observed_at)) for run in event.runs)
        return
    map_record, observed_at = share.partner.map_record, event.observed_at
    # Neighbours are mostly of the same pipelines; looking these up for every record would cost as much as parsing it.
    owner, places = "", list[tuple[UUID, PipelineReport]]()
    for external_id, record in event.records:
        if external_id != owner:
            owner = external_id
            places = [(p.id, reports[p.id]) for p in share.by_external_id.get(external_id, ())]
        for pipeline_id, row in places:
            yield row, map_record(pipeline_id, record, observed_at)


def _of(share: Share, event: Done | Failed) -> Iterator[IngestedPipeline]:
    return (p for external_id in event.external_ids for p in share.by_external_id.get(external_id, ()))


def _note(row: PipelineReport, observation: Observation) -> None:
    if observation.unknown_status:
        word = observation.status_reason or ""
        row.unknown_statuses[word] = row.unknown_statuses.get(word, 0) + 1
    if observation.started_at is not None and (row.newest_run is None or observation.started_at > row.newest_run):
        row.newest_run = observation.started_at


def _note_rejection(row: PipelineReport, rejection: Rejection) -> None:
    row.rejected += 1
    if len(row.rejections) < SAMPLES:
        row.rejections.append(rejection.reason)


def _batches(observations: Iterator[Observation]) -> Iterator[list[Observation]]:
    batch: list[Observation] = []
    for observation in observations:
        batch.append(observation)
        if len(batch) == PART:
            yield batch
            batch = []
    if batch:
        yield batch


def _start(since: datetime | None, watermarks: Sequence[datetime | None]) -> datetime | None:
    """From when on to ask; None: from the beginning."""
    known = [w for w in watermarks if w is not None]
    if since is not None:
        # Never from after a watermark: it moves on all the same, and what lies between would be asked for by nobody.
        return min([since, *known])
    return min(known) if len(known) == len(watermarks) else None
