"""Syncs the pipelines of one connection: plans groups, reads them in parallel, and reports what each results in."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from chm_dagster.errors import NotAtPartner, RemoteError
from chm_dagster.http.client import HttpClient, Response
from chm_dagster.http.failures import CircuitBreaker
from chm_dagster.partners.engine.details import Records, RunDetails
from chm_dagster.partners.engine.discovery import Listing, discover, probe
from chm_dagster.partners.engine.groups import Group, GroupReader, grouped, merged
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.requests import MAX_PAGES, Api
from chm_dagster.partners.port import (
    PipelinesFailed,
    PipelinesSynced,
    Probe,
    RecordBatch,
    SourcePipeline,
    SyncEvent,
    SyncTarget,
)

_T = TypeVar("_T")

ANSWER_SECONDS = 10.0
"""How long asking a connection for news may take. What it would have said comes with the next scheduled sync."""
MAX_QUESTIONS = 60
"""Requests that finding out whether there is anything new may take at a partner without a known rate limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Shared:
    """What the groups of one sync share."""

    breaker: CircuitBreaker
    details: RunDetails | None
    listing: Listing


class RestFeed:
    """The run history of one connection, read as `rest` describes it. It owns `http`.

    `options` are the connection's settings. `overlap` is subtracted from the watermark that a sync results in. The
    first sync reads the last `history` (None: everything). `details` makes a new RunDetails for each sync.
    """

    def __init__(
        self,
        rest: Rest,
        http: HttpClient,
        *,
        options: Mapping[str, Any],
        overlap: timedelta,
        history: timedelta | None = None,
        details: Callable[[HttpClient], RunDetails] | None = None,
        max_pages: int = MAX_PAGES,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.overlap = overlap
        self._api = Api(rest, http, options, max_pages)
        self._history = history
        self._details = details
        self._random = random

    async def aclose(self) -> None:
        """Close the connection's sockets."""
        await self._api.http.aclose()

    async def check(self, external_id: str | None = None) -> Probe:
        """Version, authentication and rights, a sentence each. Never raises RemoteError."""
        return await probe(self._api, external_id)

    async def discover(self) -> Sequence[SourcePipeline]:
        """All pipelines that the credentials may see. Raises RemoteError."""
        return await discover(self._api)

    async def recent(self, targets: Sequence[SyncTarget]) -> Sequence[RecordBatch] | None:
        """The first pages since the targets' watermarks; None if the API takes more than a few requests for that.

        Raises RemoteError.
        """
        groups = self._asked_together(merged([SyncTarget(t.external_id, t.since) for t in targets]))
        if len(groups) * len(self._api.rest.streams) > self._most_questions():
            return None
        breaker = CircuitBreaker(patience=self._api.http.policy.max_wait)
        places = asyncio.Semaphore(self._api.http.policy.concurrency)
        tasks = [asyncio.create_task(self._first_pages(group, breaker, places)) for group in groups]
        try:
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        found = [answer for answer in answers if not isinstance(answer, BaseException)]
        for error in answers:
            # One pipeline that the partner no longer knows must not hide the news of the others.
            if isinstance(error, BaseException) and (not found or not isinstance(error, NotAtPartner)):
                raise error
        return [batch for batches in found for batch in batches]

    def _most_questions(self) -> float:
        """Half of what the rate limit allows in the time that there is for an answer."""
        rates = (self._api.rest.requests_per_minute, self._api.http.policy.requests_per_minute)
        return min([MAX_QUESTIONS, *(rate * ANSWER_SECONDS / 60 / 2 for rate in rates if rate is not None)])

    def _asked_together(self, targets: Sequence[SyncTarget]) -> list[Group]:
        scope = self._api.rest.scope
        everything = scope.account and not scope.account_optional and len(targets) > 1
        return [Group(targets, "account")] if everything else grouped(targets, scope)

    async def _first_pages(self, group: Group, breaker: CircuitBreaker, places: asyncio.Semaphore) -> list[RecordBatch]:
        reader = GroupReader(self._api, group, group.since, self._api.http.now(), breaker)
        batches: list[RecordBatch] = []
        try:
            async with places, aclosing(reader.records()) as pages:
                async for response, records in pages:
                    of_runs = [pair for pair in records if self._api.reader.is_run(pair[1])]
                    batches.append(RecordBatch(of_runs, response.observed_at))
                    if len(batches) > len(self._api.rest.streams):
                        break
        except RemoteError as error:
            raise reader.explained(error) from None
        return batches

    async def sync(self, targets: Sequence[SyncTarget]) -> AsyncGenerator[SyncEvent, None]:
        """Read the targets' runs. Each target ends in exactly one PipelinesSynced or PipelinesFailed.

        Pipelines with about the same watermark are read together if the API allows it. An error fails the pipelines
        of its group: their watermark stays, and what was read before is kept. `synced_through` is the Date header of
        the group's first response (our clock if it has none), minus the overlap.
        """
        http, scope = self._api.http, self._api.rest.scope
        breaker = CircuitBreaker(patience=http.policy.max_wait)
        details = self._details(http) if self._details else None
        shared = _Shared(breaker, details, Listing(self._api, breaker, len(targets), self._random))
        waiting = grouped(merged(targets), scope)
        while waiting:
            # Account-wide requests that the partner may lack are tried first, one at a time.
            trial = [group for group in waiting if group.read_as == "account"] if scope.account_optional else []
            groups = trial or waiting
            waiting = [group for group in waiting if group not in groups]
            work = partial(self._sync_group, shared=shared, smaller=waiting)
            async with aclosing(in_parallel(groups, work, 1 if trial else http.policy.concurrency)) as events:
                async for event in events:
                    yield event

    async def _sync_group(self, group: Group, shared: _Shared, smaller: list[Group]) -> AsyncGenerator[SyncEvent, None]:
        """Read one group. What has to be read in smaller groups is added to `smaller`."""
        api = self._api
        now = api.http.now()
        since = group.since if group.since or not self._history else now - self._history
        reader = GroupReader(api, group, since, now, shared.breaker)
        try:
            async for response, records in reader.records():
                kept = await self._completed(group, response, records, shared.details)
                if kept:
                    yield RecordBatch(kept, response.observed_at)
            missing = await shared.listing.missing(reader.quiet)
        except RemoteError as error:
            parts = reader.split_by(error)
            smaller.extend(parts)
            explained = reader.explained(error)
            for not_found in reader.abandoned(group.external_ids) if isinstance(explained, NotAtPartner) else ():
                yield not_found
            if not parts:
                yield PipelinesFailed(group.external_ids, explained)
        else:
            for event in self._ended(reader, group, missing):
                yield event
        reader.log_dropped()

    async def _completed(
        self, group: Group, response: Response, records: Records, details: RunDetails | None
    ) -> Records:
        """The records that are runs, with what is known beyond them."""
        reader = self._api.reader
        if reader.is_selective:
            records = [(owner, record) for owner, record in records if reader.is_run(record)]
        if self._api.rest.runs.version_if_queued:
            time = response.server_time or response.observed_at
            records = [(owner, reader.with_version(record, time)) for owner, record in records]
        if records and details is not None:
            self._remind(details, group, records, response.observed_at)
            records = await details.add_to(records)
        return records

    def _ended(self, reader: GroupReader, group: Group, missing: Sequence[str]) -> Iterator[SyncEvent]:
        """How a group that was read to the end ends. `missing` are the pipelines that the partner does not list."""
        yield from reader.not_found
        if missing:
            if self._api.rest.lookup is None:
                yield from reader.abandoned(missing)
            for external_id in missing:
                hint = f"the partner does not list pipeline {external_id!r}; check its external_id"
                yield PipelinesFailed((external_id,), NotAtPartner(f"{self._api.label}: {hint}"))
        known = tuple(external_id for external_id in group.external_ids if external_id not in set(missing))
        if known:
            yield self._synced(reader, known)

    def _remind(self, details: RunDetails, group: Group, records: Records, observed_at: datetime) -> None:
        """Pass on what the ledger knows of these runs, if they have not ended anew since."""
        details_of = {
            (t.external_id, run_id): known for t in group.targets for run_id, known in t.known_details.items()
        }
        for owner, record in records if details_of else ():
            known = details_of.get((owner, self._api.reader.run_id(record) or ""))
            if known is not None and self._api.reader.is_known(record, observed_at, known):
                details.remember(record, known)

    def _synced(self, reader: GroupReader, external_ids: Sequence[str]) -> PipelinesSynced:
        first = reader.first
        if first is None:
            raise AssertionError("a group was read without a response")
        through = first.server_time or first.observed_at
        if self._api.requests_end:
            # What was only requested up to our own time is not known beyond it, whatever the partner's clock says.
            through = min(through, reader.now)
        through -= self.overlap
        return PipelinesSynced(external_ids, through, first.observed_at, first.server_time, self.overlap, reader.unread)


async def in_parallel(
    items: Sequence[_T], work: Callable[[_T], AsyncGenerator[SyncEvent, None]], workers: int
) -> AsyncGenerator[SyncEvent, None]:
    """The events of `work(item)` of every item, in the order in which they come.

    A few workers share the items. The queue is short: a slow reader slows the requests and does not fill the memory.
    What `work` raises is raised here. Close the generator (`contextlib.aclosing`) to stop early; pending work is
    cancelled.
    """
    workers = min(workers, len(items))
    todo = iter(items)
    events: asyncio.Queue[SyncEvent | Exception | None] = asyncio.Queue(maxsize=max(1, workers))
    tasks = [asyncio.create_task(_worker(todo, work, events)) for _ in range(workers)]
    try:
        while workers:
            event = await events.get()
            if event is None:
                workers -= 1
            elif isinstance(event, Exception):
                raise event
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _worker(
    todo: Iterator[_T],
    work: Callable[[_T], AsyncGenerator[SyncEvent, None]],
    events: "asyncio.Queue[SyncEvent | Exception | None]",
) -> None:
    try:
        for item in todo:
            async for event in work(item):
                await events.put(event)
    except Exception as bug:
        # Left in the task, it would keep the reader waiting for ever.
        await events.put(bug)
    else:
        await events.put(None)
