"""Read partners, land what they send, map it, and write it: each connection by itself, as soon as it is read."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import ParamSpec, TypeVar

from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.sync import IngestReport, SyncErrorCode, error_code
from chm_dagster.errors import (
    Busy,
    ChmError,
    ConfigError,
    DatabaseUnavailable,
    DeadlineExceeded,
    InputError,
    RemoteError,
)
from chm_dagster.ingestion.landing import Landing, LandingWriter
from chm_dagster.ingestion.merge_landing import Share, merge_landed, shares_of
from chm_dagster.partners.port import Partner, PipelinesFailed, RecordBatch, RunFeed, RunsNotFound, SyncTarget
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger.due_times import refresh_all
from chm_dagster.warehouse.ledger.heartbeats import close_lost_runs
from chm_dagster.warehouse.ledger.syncs import (
    KEEP_ALIVE_SECONDS,
    FailedSync,
    ReadingClaims,
    fail_syncs,
    reading_claims,
)

logger = logging.getLogger(__name__)

CONNECTIONS_AT_ONCE = 256
"""Connections that are read at the same time: one that does not answer must not keep others waiting for its place."""
WRITERS = 4
"""Connections that are written at the same time."""
_LOOK_UPS = 2
_NAME_LOOK_UPS = 64
"""Threads that resolve host names: names that nobody answers for must not keep others waiting either."""
PATIENCE_SECONDS = 120.0
"""How long to wait for another process that reads or writes the same connection."""
DEADLINE_SECONDS = 3_000.0
"""How long reading one connection may take; its Dagster run ends after an hour."""
SCHEDULED_DEADLINE_SECONDS = 900.0
"""The same in a scheduled sync: what is left is read by the next ones."""
_AGAIN_SECONDS = 0.25

Progress = Callable[[int, int], None]
"""Called as responses come in, with how many more pipelines have been read and how many more records arrived."""
_P = ParamSpec("_P")
_T = TypeVar("_T")


def silent(pipelines: int, records: int) -> None:
    """A Progress that reports nothing."""


def ingest(
    engine: Engine,
    partners: Mapping[str, Partner],
    pipelines: Sequence[IngestedPipeline],
    landing: Landing,
    *,
    since: datetime | None = None,
    scheduled: bool = False,
    progress: Progress = silent,
    patience: float = PATIENCE_SECONDS,
    deadline: float | None = None,
    owner: str | None = None,
) -> IngestReport:
    """Bring the runs of these pipelines up to date, from their watermarks or an earlier `since` (partner's time).

    Each connection is read, mapped and committed by itself, as soon as it is read or its `deadline` (seconds) has
    passed. One that cannot be read or written shows as `error` of its pipelines; the others go on. A scheduled sync
    skips pipelines that failed lately and connections that another process is reading; any other waits for those up to
    `patience` seconds. By its `owner` the database knows that it is alive. Raises InputError for a `since` in
    the future, DatabaseUnavailable if nothing could be written for want of the database, and StorageUnavailable if the
    report cannot be saved.
    """
    report = IngestReport(datetime.now(UTC))
    if since is not None and since > report.started_at:
        raise InputError("since", "in the future; name a time from which on to read the partners again")
    if lost := close_lost_runs(engine):
        logger.info("closed %d runs whose end was never reported", lost)
    shares, failures = shares_of(partners, pipelines, report, scheduled=scheduled)
    limits = _Limits(scheduled, patience, deadline or (SCHEDULED_DEADLINE_SECONDS if scheduled else DEADLINE_SECONDS))
    with ExitStack() as stack:
        claims = stack.enter_context(reading_claims(engine, owner))
        writers, look_ups = (stack.enter_context(ThreadPoolExecutor(n)) for n in (WRITERS, _LOOK_UPS))
        work = _Ingestion(engine, landing, report, since, progress, limits, claims, writers, look_ups)
        asyncio.run(work.run(shares, failures))
    if work.lost and len(work.lost) == len(shares):
        raise work.lost[0]
    if work.bugs:
        raise work.bugs[0]
    if scheduled:
        _refresh_due_times(engine)
    landing.save_report(report)
    return report


def _refresh_due_times(engine: Engine) -> None:
    """Due times follow the runs that are written; a run stamped in the future counts only once its time has come."""
    try:
        refresh_all(engine)
    except DatabaseUnavailable as error:
        logger.warning("could not refresh when runs are due: %s", error)


def remap(
    engine: Engine,
    partners: Mapping[str, Partner],
    pipelines: Sequence[IngestedPipeline],
    landing: Landing,
    *,
    dry_run: bool = False,
) -> IngestReport:
    """Map and merge again what landed before, without asking any partner. Same report and errors as `ingest`.

    A dry run reports what would be written and leaves the ledger as it is.
    """
    report = IngestReport(datetime.now(UTC))
    landed = set(landing.connections())
    for share in shares_of(partners, pipelines, report)[0]:
        if share.name not in landed:
            continue
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                merge_landed(engine, share, landing, report.started_at, dry_run=dry_run)
                break
            except Busy as busy:
                if time.monotonic() >= until:
                    _fail(share, str(busy))
                    break
                time.sleep(_AGAIN_SECONDS)
    return report


@dataclasses.dataclass(frozen=True, slots=True)
class _Limits:
    scheduled: bool
    patience: float
    deadline: float


@dataclasses.dataclass(slots=True)
class _Ingestion:
    """One call of `ingest`. What blocks on the database runs in threads: `writers` merge, `look_ups` do the rest."""

    engine: Engine
    landing: Landing
    report: IngestReport
    since: datetime | None
    progress: Progress
    limits: _Limits
    claims: ReadingClaims
    writers: ThreadPoolExecutor
    look_ups: ThreadPoolExecutor
    lost: list[DatabaseUnavailable] = dataclasses.field(default_factory=list)
    bugs: list[Exception] = dataclasses.field(default_factory=list)

    async def run(self, shares: Sequence[Share], failures: Sequence[FailedSync]) -> None:
        """Read and write all shares; never raises because of one of them."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_NAME_LOOK_UPS, thread_name_prefix="names"))
        places = asyncio.Semaphore(CONNECTIONS_AT_ONCE)
        alive = asyncio.create_task(self._keep_alive())
        try:
            await self._note_failures(failures)
            await asyncio.gather(*(self._one(share, places) for share in shares))
        finally:
            alive.cancel()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            await _in(self.look_ups, self.claims.keep_alive)

    async def _one(self, share: Share, places: asyncio.Semaphore) -> None:
        try:
            async with places, self._claimed(share):
                targets = await _in(self.look_ups, share.targets, self.engine, self.since, self.report.started_at)
                await self._read(share, targets)
                await self._note_failures(await self._write(share))
        except Busy as busy:
            if self.limits.scheduled:
                for row in share.rows.values():
                    row.deferred = True
            else:
                _fail(share, str(busy))
        except (ConfigError, RemoteError) as error:
            code = error_code(error)
            _fail(share, str(error), code)
            started_at = self.report.started_at
            await self._note_failures([FailedSync(p, started_at, str(error), code) for p in share.pipelines])
        except ChmError as error:
            _fail(share, str(error))
            if isinstance(error, DatabaseUnavailable):
                self.lost.append(error)
        except Exception as bug:
            # Of CHM or of a platform's code: raised once the other connections are done.
            logger.exception("connection %s", share.name)
            self.bugs.append(bug)

    @asynccontextmanager
    async def _claimed(self, share: Share) -> AsyncIterator[None]:
        """Keep other processes from reading this connection. Raises Busy if one of them does for too long."""
        patience = 0.0 if self.limits.scheduled else self.limits.patience
        until = time.monotonic() + patience
        while not await _in(self.look_ups, self.claims.take, share.name):
            if time.monotonic() >= until:
                raise Busy(f"connection {share.name} is being read by another process")
            await asyncio.sleep(_AGAIN_SECONDS)
        try:
            yield
        finally:
            self.look_ups.submit(self.claims.give_back, share.name)

    async def _read(self, share: Share, targets: Sequence[SyncTarget]) -> None:
        """Land all that one connection sends before its deadline."""
        feed = share.partner.open_feed()
        try:
            with self.landing.writer(share.name) as file:
                left = {target.external_id for target in targets}
                deadline = asyncio.timeout(self.limits.deadline)
                try:
                    async with deadline:
                        await self._land(share, feed, targets, file, left)
                except TimeoutError:
                    if not deadline.expired():
                        raise
                    file.add(PipelinesFailed(sorted(left), _too_slow(share, self.limits.deadline)))
                    self.progress(len(share.of(sorted(left))), 0)
        finally:
            await feed.aclose()

    async def _land(
        self, share: Share, feed: RunFeed, targets: Sequence[SyncTarget], file: LandingWriter, left: set[str]
    ) -> None:
        async with aclosing(feed.sync(targets)) as events:
            async for event in events:
                file.add(event)
                if isinstance(event, RecordBatch):
                    self.progress(0, len(event.records))
                elif isinstance(event, RunsNotFound):
                    self.progress(0, len(event.runs))
                else:
                    left.difference_update(event.external_ids)
                    self.progress(len(share.of(event.external_ids)), 0)

    async def _write(self, share: Share) -> list[FailedSync]:
        """Map and write what landed. Waits for another process that writes runs of this connection."""
        until = time.monotonic() + self.limits.patience
        while True:
            try:
                return await _in(self.writers, merge_landed, self.engine, share, self.landing, self.report.started_at)
            except Busy as busy:
                if time.monotonic() >= until:
                    self.report.unwritten.append(share.name)
                    raise ChmError(str(busy)) from None
                await asyncio.sleep(_AGAIN_SECONDS)
            except ChmError:
                self.report.unwritten.append(share.name)
                raise

    async def _note_failures(self, failures: Sequence[FailedSync]) -> None:
        try:
            await _in(self.look_ups, fail_syncs, self.engine, failures)
        except DatabaseUnavailable as error:
            logger.warning("could not note which pipelines cannot be read: %s", error)


async def _in(threads: ThreadPoolExecutor, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run blocking work in one of these threads."""
    return await asyncio.wrap_future(threads.submit(work, *args, **kwargs))


def _too_slow(share: Share, deadline: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"connection {share.name}: not read to the end within {deadline:g} seconds; what has arrived is kept, and the"
        " next sync goes on from there"
    )


def _fail(share: Share, error: str, code: SyncErrorCode | None = None) -> None:
    for row in share.rows.values():
        row.discard()
        row.fail(error, code)
