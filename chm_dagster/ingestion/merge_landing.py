"""From a landed connection to the ledger: groups pipelines by connection, determines what to request, maps what landed,
and writes runs and watermarks in one transaction.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID

from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.runs import KnownDetails, Observation, Rejection
from chm_dagster.domain.sync import (
    SAMPLES,
    IngestReport,
    PipelineReport,
    StreamFacts,
    SyncErrorCode,
    clocks,
    doubt_about,
    error_code,
    held_back,
    next_attempt,
    one_doubt,
    watermark,
)
from chm_dagster.errors import ConfigError
from chm_dagster.ingestion.landing import Landing
from chm_dagster.partners.connections import partner_of
from chm_dagster.partners.port import Partner, PipelinesFailed, PipelinesSynced, RecordBatch, RunsNotFound, SyncTarget
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger.merge import PART
from chm_dagster.warehouse.ledger.runs import failing_runs, known_details, open_runs
from chm_dagster.warehouse.ledger.syncs import CompletedSync, FailedSync, heal_watermarks, ledger_writer

_LONG_RUN = timedelta(days=2)
"""A run that ended since the watermark hardly started longer before it; if it did, its details are asked for again."""
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """One connection's part of an ingestion; `rows` are the reports of its pipelines."""

    partner: Partner
    by_external_id: Mapping[str, Sequence[IngestedPipeline]]
    rows: Mapping[UUID, PipelineReport]

    @property
    def name(self) -> str:
        """The connection's name."""
        return self.partner.name

    @property
    def pipelines(self) -> list[IngestedPipeline]:
        """All its pipelines."""
        return [pipeline for same in self.by_external_id.values() for pipeline in same]

    @property
    def is_failing(self) -> bool:
        """Whether none of its pipelines could be read last time."""
        return all(pipeline.sync_failing_since is not None for pipeline in self.pipelines)

    def of(self, external_ids: Sequence[str]) -> list[IngestedPipeline]:
        """Its pipelines of these external ids."""
        return [pipeline for external_id in external_ids for pipeline in self.by_external_id.get(external_id, ())]

    def targets(self, engine: Engine, since: datetime | None, now: datetime) -> list[SyncTarget]:
        """The targets of the sync, with the details from the ledger that save requests or need more of them.

        Pipelines that share an external id are asked for once. Those that wait longest come first, so that each has its
        turn where a deadline ends the sync. A watermark in the future is pulled back. Raises DatabaseUnavailable.
        """
        can, ids = self.partner.capabilities, [pipeline.id for pipeline in self.pipelines]
        watermarks = self._watermarks(engine, now)
        starts = {i: _start(since, [watermarks[p.id] for p in same]) for i, same in self.by_external_id.items()}
        earliest = min((start for start in starts.values() if start is not None), default=None)
        unfinished = open_runs(engine, ids) if can.finds_deletions or can.follows_open else {}
        failing = failing_runs(engine, ids) if can.follows_failing else {}
        known: dict[UUID, dict[str, KnownDetails]] = {}
        if can.looks_further and earliest:
            known = known_details(engine, ids, earliest - _LONG_RUN, ends=can.looks_up_ends)
        waiting = sorted(
            self.by_external_id.items(), key=lambda item: min(p.sync_attempted_at or _NEVER for p in item[1])
        )
        return [
            SyncTarget(
                external_id,
                starts[external_id],
                tuple(run for p in same for run in unfinished.get(p.id, ())),
                {run_id: run for p in same for run_id, run in known.get(p.id, {}).items()},
                tuple(failing[p.id] for p in same if p.id in failing),
            )
            for external_id, same in waiting
        ]

    def _watermarks(self, engine: Engine, now: datetime) -> dict[UUID, datetime | None]:
        watermarks = {pipeline.id: pipeline.synced_through for pipeline in self.pipelines}
        future = [pipeline_id for pipeline_id, through in watermarks.items() if through is not None and through > now]
        if future:
            for pipeline_id, healed in heal_watermarks(engine, future, now, self.partner.overlap).items():
                wrong, watermarks[pipeline_id] = watermarks[pipeline_id], healed
                read_from = "the beginning" if healed is None else healed.isoformat()
                self.rows[pipeline_id].warning = f"synced through {wrong}, in the future; read again from {read_from}"
        return watermarks

    def proven(self, now: datetime) -> datetime | None:
        """The latest watermark that an earlier sync of this connection reached; see `domain.sync.watermark`."""
        known = [p.synced_through for p in self.pipelines if p.synced_through is not None and p.synced_through <= now]
        return max(known, default=None)


def shares_of(
    partners: Mapping[str, Partner],
    pipelines: Sequence[IngestedPipeline],
    report: IngestReport,
    *,
    scheduled: bool = False,
) -> tuple[list[Share], list[FailedSync]]:
    """Split the pipelines by connection, those that cannot be read at all last, and report all of them.

    Pipelines without a connection are failures. A scheduled sync leaves those that failed lately for a while.
    """
    by_partner: dict[str, dict[str, list[IngestedPipeline]]] = defaultdict(lambda: defaultdict(list))
    rows: dict[str, dict[UUID, PipelineReport]] = defaultdict(dict)
    used: dict[str, Partner] = {}
    failures = []
    for pipeline in pipelines:
        row = report.pipelines[pipeline.key] = PipelineReport(pipeline.key, pipeline.connection or "")
        try:
            partner = partner_of(pipeline, partners)
        except ConfigError as error:
            row.fail(str(error), SyncErrorCode.CONFIGURATION)
            failures.append(FailedSync(pipeline, report.started_at, str(error), SyncErrorCode.CONFIGURATION))
            continue
        row.connection = partner.name
        if scheduled and _defer(pipeline, row, report.started_at):
            continue
        used[partner.name] = partner
        by_partner[partner.name][pipeline.external_id].append(pipeline)
        rows[partner.name][pipeline.id] = row
    shares = [Share(used[name], by_partner[name], rows[name]) for name in sorted(used)]
    return sorted(shares, key=lambda share: share.is_failing), failures


def _defer(pipeline: IngestedPipeline, row: PipelineReport, now: datetime) -> bool:
    since, last = pipeline.sync_failing_since, pipeline.sync_attempted_at
    if since is None or last is None or (due := next_attempt(since, last)) <= now:
        return False
    row.deferred = True
    row.error = f"{pipeline.sync_error} (failing since {since:%Y-%m-%d %H:%M} UTC, tried again after {due:%H:%M})"
    return True


def _start(since: datetime | None, watermarks: Sequence[datetime | None]) -> datetime | None:
    """The time to read from; None: from the beginning."""
    known = [w for w in watermarks if w is not None]
    if since is not None:
        # Never later than the watermark: the watermark moves on anyway, and the time in between would never be read.
        return min([since, *known])
    return min(known) if len(known) == len(watermarks) else None


_REPOINTED = "changed in the inventory while it was being read; the next sync reads it"


@dataclasses.dataclass(slots=True)
class _Seen:
    """What the records of one external id showed. `ahead`: how far behind their end CHM's clock was at most."""

    last_request: datetime
    newest: datetime | None = None
    ahead: timedelta | None = None
    records: int = 0


@dataclasses.dataclass(slots=True)
class _Reader:
    """Reads a share's landed events once, front to back. What is no observation is collected on the way."""

    share: Share
    started_at: datetime
    repointed: frozenset[UUID]
    keep_rejection: Callable[[str, Rejection], None]
    seen: dict[str, _Seen] = dataclasses.field(default_factory=dict)
    completed: list[CompletedSync] = dataclasses.field(default_factory=list)
    failed: list[FailedSync] = dataclasses.field(default_factory=list)

    def observations(self, landing: Landing) -> Iterator[list[Observation]]:
        """The landed observations, in small parts."""
        part: list[Observation] = []
        for event in landing.events(self.share.name):
            if isinstance(event, PipelinesSynced):
                self._note_done(event)
            elif isinstance(event, PipelinesFailed):
                self._note_failed(event)
            else:
                for observation in self._page(event) if isinstance(event, RecordBatch) else self._gone(event):
                    part.append(observation)
                    if len(part) == PART:
                        yield part
                        part = []
        yield part

    def _page(self, page: RecordBatch) -> Iterator[Observation]:
        map_record, observed_at = self.share.partner.map_record, page.observed_at
        # Neighbours are mostly of the same pipeline; to look it up for every record would cost as much as parsing it.
        owner, owners, seen = "", list[tuple[UUID, PipelineReport]](), _Seen(observed_at)
        for external_id, record in page.records:
            if external_id != owner:
                owner = external_id
                owners = [(p.id, self.share.rows[p.id]) for p in self.share.by_external_id.get(owner, ())]
                seen = self.seen.setdefault(owner, _Seen(observed_at))
                seen.last_request = max(seen.last_request, observed_at)
            seen.records += 1
            for pipeline_id, row in owners:
                row.fetched += 1
                mapped = map_record(pipeline_id, record, observed_at)
                if isinstance(mapped, Rejection):
                    self._reject(row, mapped)
                    continue
                _note_times(seen, mapped)
                _note(row, mapped)
                if pipeline_id in self.repointed:
                    row.counts.stale += 1
                else:
                    yield mapped

    def _gone(self, event: RunsNotFound) -> Iterator[Observation]:
        for pipeline in self.share.of([event.external_id]):
            row = self.share.rows[pipeline.id]
            row.fetched += len(event.runs)
            if pipeline.id in self.repointed:
                row.counts.stale += len(event.runs)
            else:
                yield from (run.gone(pipeline.id, event.observed_at) for run in event.runs)

    def _reject(self, row: PipelineReport, rejection: Rejection) -> None:
        row.counts.rejected += 1
        if len(row.rejections) < SAMPLES:
            row.rejections.append(rejection.reason)
        self.keep_rejection(row.key, rejection)

    def _note_done(self, done: PipelinesSynced) -> None:
        seen = [self.seen[external_id] for external_id in done.external_ids if external_id in self.seen]
        facts = StreamFacts(
            server_time=done.synced_through + done.overlap,
            first_request=done.observed_at,
            last_request=max([done.observed_at, *(one.last_request for one in seen)]),
            newest_version=max((one.newest for one in seen if one.newest is not None), default=None),
            has_untimed=any(one.records for one in seen),
        )
        through = watermark(facts, done.overlap, self.share.proven(self.started_at))
        found = clocks(done.server_time, done.observed_at, [one.ahead for one in seen if one.ahead is not None])
        for pipeline in self.share.of(done.external_ids):
            row = self.share.rows[pipeline.id]
            if pipeline.id in self.repointed:
                row.error = _REPOINTED
                continue
            unread = done.unread.get(pipeline.external_id)
            row.warning, row.unread = row.warning or found.warning, row.unread or unread
            self.completed.append(self._complete(pipeline, row, through, done, one_doubt(unread, found.doubt)))

    def _complete(
        self,
        pipeline: IngestedPipeline,
        row: PipelineReport,
        through: datetime | None,
        done: PipelinesSynced,
        other_doubt: str | None,
    ) -> CompletedSync:
        doubt = doubt_about(row.counts.rejected, row.rejections, row.unknown_statuses)
        needs_run = False
        if doubt is not None:
            through, needs_run = held_back(through, pipeline.synced_through)
        row.synced_through = through
        return CompletedSync(
            pipeline.id,
            through,
            done.observed_at,
            row.warning,
            known_through=done.observed_at - done.overlap,
            stale_at=done.observed_at + self.share.partner.fresh_for,
            doubt=one_doubt(doubt, other_doubt),
            doubt_needs_run=needs_run,
        )

    def _note_failed(self, failed: PipelinesFailed) -> None:
        code = error_code(failed.error)
        for pipeline in self.share.of(failed.external_ids):
            self.share.rows[pipeline.id].fail(str(failed.error), code)
            self.failed.append(FailedSync(pipeline, self.started_at, str(failed.error), code))


def merge_landed(
    engine: Engine, share: Share, landing: Landing, started_at: datetime, *, dry_run: bool = False
) -> list[FailedSync]:
    """Write what the share's connection landed. Fills in the share's reports and returns which pipelines failed.

    Raises Busy at once if another process is writing runs of this connection, DatabaseUnavailable and
    StorageUnavailable; then nothing was written.
    """
    with ExitStack() as stack:
        ledger = stack.enter_context(ledger_writer(engine, share.name, dry_run=dry_run))
        keep = _forget if dry_run else stack.enter_context(landing.rejections())
        reader = _Reader(share, started_at, ledger.repointed(share.pipelines), keep)
        unread = [p.id for p in share.pipelines if p.synced_through is None]
        for pipeline_id, counts in ledger.merge(reader.observations(landing), maybe_new=unread).items():
            share.rows[pipeline_id].counts.add(counts)
        ledger.complete(reader.completed)
    return reader.failed


def _forget(key: str, rejection: Rejection) -> None:
    """Keep nothing of a rejection in a dry run."""


def _note(row: PipelineReport, observation: Observation) -> None:
    if observation.unknown_status:
        word = observation.status_reason or ""
        row.unknown_statuses[word] = row.unknown_statuses.get(word, 0) + 1
    if observation.started_at is not None and (row.newest_run is None or observation.started_at > row.newest_run):
        row.newest_run = observation.started_at


def _note_times(seen: _Seen, observation: Observation) -> None:
    """Keep the newest time that had passed: a planned one says nothing about the clock that stamps records."""
    time = observation.source_version or observation.finished_at or observation.started_at
    if time is None or (seen.newest is not None and time <= seen.newest):
        return
    if time <= observation.observed_at:
        seen.newest = time
    end = observation.finished_at
    if (
        end is not None
        and end > observation.observed_at
        and (seen.ahead is None or end - observation.observed_at > seen.ahead)
    ):
        seen.ahead = end - observation.observed_at
