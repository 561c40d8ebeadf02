"""Which pipelines are read together, and how one such group is read."""

import dataclasses
import logging
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Literal

from chm_dagster.domain.runs import OpenRun
from chm_dagster.errors import NotAtPartner, RemoteError, ResponseTooLarge
from chm_dagster.http.client import Response
from chm_dagster.http.failures import CircuitBreaker, StatusError
from chm_dagster.partners.engine.details import Records, RunKey, RunLookups
from chm_dagster.partners.engine.model import Paginator, Scope, Stream
from chm_dagster.partners.engine.pages import NoCursor, Pages, TooManyResults
from chm_dagster.partners.engine.requests import ABSENT_STATUSES, Api
from chm_dagster.partners.port import RunsNotFound, SyncTarget

logger = logging.getLogger(__name__)

_BAD_LIST = (400, 404, 422)
_UNKNOWN_PIPELINE = {"id": (404,), "ids": _BAD_LIST, "account": ()}
_SHORTEST_SPAN = timedelta(minutes=1)

STRAGGLER = timedelta(hours=1)
"""How far behind the newest watermark a pipeline may be and still be read together with the others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Pipelines that are read together, and how the requests are limited to them."""

    targets: Sequence[SyncTarget]
    read_as: Literal["account", "id", "ids"]
    page_size: int | None = None
    """Set after a response was too large; None for the usual one."""

    @property
    def external_ids(self) -> tuple[str, ...]:
        """Of all its targets."""
        return tuple(target.external_id for target in self.targets)

    @property
    def since(self) -> datetime | None:
        """The earliest watermark; None if one of the pipelines was never read."""
        known = [target.since for target in self.targets if target.since is not None]
        return min(known) if len(known) == len(self.targets) else None

    def halves(self) -> "list[Group]":
        """Two groups with the same pipelines."""
        middle = len(self.targets) // 2
        return [dataclasses.replace(self, targets=part) for part in (self.targets[:middle], self.targets[middle:])]

    def without_account(self, scope: Scope) -> "list[Group]":
        """Groups of the same pipelines for a partner that has no account-wide request."""
        return list(_limited(self.targets, scope))


def merged(targets: Sequence[SyncTarget]) -> list[SyncTarget]:
    """Each external id once, with its earliest `since` (None is the earliest of all) and all of its known runs."""
    if len({target.external_id for target in targets}) == len(targets):
        return list(targets)
    by_id: dict[str, SyncTarget] = {}
    for target in targets:
        known = by_id.get(target.external_id, target)
        by_id[target.external_id] = SyncTarget(
            target.external_id,
            min(known.since, target.since) if known.since and target.since else None,
            tuple({run.external_run_id: run for run in (*known.open_runs, *target.open_runs)}.values()),
            {**known.known_details, **target.known_details},
            tuple(dict.fromkeys((*known.failing_runs, *target.failing_runs))),
        )
    return list(by_id.values())


def grouped(targets: Sequence[SyncTarget], scope: Scope) -> list[Group]:
    """The fewest groups that do not make the partner send much that nobody needs.

    Pipelines that are new or long behind are read apart from the others: together with them, an account-wide request
    would return everybody's history again.
    """
    new = [t for t in targets if t.since is None]
    newest = max((t.since for t in targets if t.since), default=None)
    level = [t for t in targets if t.since and newest and t.since >= newest - STRAGGLER]
    behind = [t for t in targets if t.since and newest and t.since < newest - STRAGGLER]
    groups: list[Group] = []
    for batch, threshold in (
        (level, scope.account_threshold),
        (behind, scope.account_threshold_full),
        (new, scope.account_threshold_full),
    ):
        at_least = max(threshold, scope.max_ids if scope.filter_by == "ids" else 0)
        if batch and (scope.filter_by == "none" or (scope.account and len(batch) > at_least)):
            groups.append(Group(batch, "account"))
        else:
            groups.extend(_limited(batch, scope))
    return groups


def _limited(batch: Sequence[SyncTarget], scope: Scope) -> Iterator[Group]:
    if scope.filter_by == "ids":
        for start in range(0, len(batch), scope.max_ids):
            yield Group(batch[start : start + scope.max_ids], "ids")
    else:
        yield from (Group([target], "id") for target in batch)


def spans(
    stream: Stream, since: datetime | None, until: datetime, oldest_open: datetime | None = None
) -> Iterator[tuple[datetime | None, datetime]]:
    """Spans from `since` to `until` that are short enough for the stream; one without a beginning for a full read."""
    if since is None:
        yield None, until
        return
    start = since - timedelta(hours=stream.lookback_hours)
    if stream.reaches_open_runs and oldest_open is not None:
        start = min(start, oldest_open)
    if stream.window_hours is not None:
        step = timedelta(hours=stream.window_hours)
        while start + step < until:
            yield start, start + step
            start += step
    yield start, until


class GroupReader:
    """Reads one group through all streams, and collects what it finds. Requests end at `now`."""

    def __init__(self, api: Api, group: Group, since: datetime | None, now: datetime, breaker: CircuitBreaker) -> None:
        self._api, self._group, self._breaker = api, group, breaker
        self._since, self.now = since, now
        self._open = {(t.external_id, run.external_run_id): run for t in group.targets for run in t.open_runs}
        self._failing = {(t.external_id, run_id) for t in group.targets for run_id in t.failing_runs}
        self._wanted = frozenset(group.external_ids)
        self._seen: set[str] = set()
        self._kept = self._of_others = self._unassigned = 0
        self.first: Response | None = None
        self.not_found: list[RunsNotFound] = []
        self.unread: dict[str, str] = {}

    async def records(self) -> AsyncGenerator[tuple[Response, Records], None]:
        """The records of every stream that is due, and of unfinished runs that none contained. Raises RemoteError."""
        if self._group.read_as == "account" and self._api.lacks_account:
            raise StatusError(f"{self._api.label}: has no account-wide request", ABSENT_STATUSES[0])
        for stream in self._api.rest.streams:
            if not self._is_due(stream):
                continue
            for since, until in spans(stream, self._since, self.now, self._oldest_open):
                async with aclosing(self._span(stream, since, until)) as pages:
                    async for response, rows in pages:
                        self.first = self.first or response
                        yield response, self._assigned(self._api.reader.runs_in(self._news(stream, since, rows)))
                        if self._has_passed(stream, since, rows):
                            break
        if self._unassigned and not self._kept + self._of_others:
            raise self._api.drift(f"no run says in {self._api.reader.pipeline_field} which pipeline it belongs to")
        lookup = self._api.rest.lookup
        if lookup is not None and self._open.keys() | self._failing:
            lookups = RunLookups(self._api, lookup, self._breaker)
            async for response, found, gone in lookups.read(self._open, self._failing):
                self.not_found += self._not_found(gone, response.observed_at)
                yield response, found
            self.unread = lookups.unread

    def _is_due(self, stream: Stream) -> bool:
        if stream.when == "open":
            return bool(self._open)
        return stream.when != ("incremental" if self._since is None else "full")

    # --- streams

    def _has_passed(self, stream: Stream, since: datetime | None, rows: list[Any]) -> bool:
        """Whether a list that is sorted by time has nothing newer than the watermark to come."""
        if since is None or stream.newest_first is None or not rows:
            return False
        return self._api.reader.are_older(rows, stream.newest_first, since)

    def _news(self, stream: Stream, since: datetime | None, rows: list[Any]) -> list[Any]:
        """The rows from the watermark on, where the partner cannot filter by it, and unfinished runs of any age."""
        if since is None or stream.newest_first is None:
            return rows
        reader, unfinished = self._api.reader, {run_id for _, run_id in self._open}
        return [
            row
            for row in rows
            if reader.run_id(row) in unfinished or not reader.are_older([row], stream.newest_first, since)
        ]

    async def _span(
        self, stream: Stream, since: datetime | None, until: datetime
    ) -> AsyncGenerator[tuple[Response, list[Any]], None]:
        """The pages of one time span; of its halves, if it has more runs than the partner returns at once."""
        values = {**self._filter(), "since": since, "until": until, "now": self.now}
        try:
            async for page in self._pages(stream, values):
                yield page
            return
        except TooManyResults:
            if since is None or until - since < _SHORTEST_SPAN:
                raise self._api.drift(f"{stream.name}: more of them at a time than the partner ever returns") from None
        middle = since + (until - since) / 2
        for start, end in ((since, middle), (middle, until)):
            async for page in self._span(stream, start, end):
                yield page

    async def _pages(
        self, stream: Stream, values: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[Response, list[Any]], None]:
        api = self._api
        paginator = stream.paginator or api.rest.paginator
        if paginator.fallback is not None and stream.name in api.without_cursor:
            paginator = paginator.fallback
        try:
            async for page in self._pages_by(stream, paginator).read(self._breaker, **values):
                yield page
            return
        except NoCursor:
            api.without_cursor.add(stream.name)
            logger.info("%s: responses have no cursor; reading with the fallback", api.label)
        if paginator.fallback is not None:
            async for page in self._pages_by(stream, paginator.fallback).read(self._breaker, **values):
                yield page

    def _pages_by(self, stream: Stream, paginator: Paginator) -> Pages:
        api, runs = self._api, self._api.rest.runs
        return Pages(
            api,
            stream,
            runs.data_selector,
            paginator,
            key=api.reader.key,
            may_be_missing=runs.missing_data_is_empty,
            page_size=self._group.page_size,
        )

    def _filter(self) -> dict[str, Any]:
        if self._group.read_as == "account":
            return self._api.account_values
        ids = list(self._group.external_ids)
        return {"id": ids[0]} if self._group.read_as == "id" else {"ids": ids}

    # --- whose run it is

    def _assigned(self, rows: Sequence[Any]) -> Records:
        """The records of the group's pipelines, each with its external id. Raises SchemaDrift."""
        records = self._all_of_one(rows) if self._group.read_as == "id" else self._of_group(rows)
        self._seen.update(owner for owner, _ in records)
        for owner, record in records if self._open or self._failing else ():
            key = (owner, self._api.reader.run_id(record) or "")
            self._open.pop(key, None)
            self._failing.discard(key)
        return records

    def _all_of_one(self, rows: Sequence[Any]) -> Records:
        (external_id,) = self._group.external_ids
        if any(self._api.reader.belongs_to_another(row, external_id) for row in rows):
            raise self._api.drift(f"the response for pipeline {external_id!r} contains a run of another pipeline")
        return [(external_id, row) for row in rows]

    def _of_group(self, rows: Sequence[Any]) -> Records:
        records = []
        for row in rows:
            owners = self._api.reader.owners(row)
            if owners is None:
                self._unassigned += 1
                continue
            owner = next((owner for owner in owners if owner in self._wanted), None)
            if owner is None:
                self._of_others += 1
            else:
                records.append((owner, row))
        self._kept += len(records)
        return records

    def log_dropped(self) -> None:
        """Log how many records were dropped, and why."""
        label = self._api.label
        if self._of_others:
            logger.info("%s: dropped %d runs of other pipelines", label, self._of_others)
        if self._unassigned:
            field = self._api.reader.pipeline_field
            logger.warning("%s: dropped %d records without a %s", label, self._unassigned, field)

    # --- what is not there

    @property
    def quiet(self) -> list[str]:
        """The pipelines without any record, which the partner may not know."""
        if self._group.read_as == "id" and not self._api.rest.scope.unknown_is_empty:
            return []
        return [external_id for external_id in self._group.external_ids if external_id not in self._seen]

    def abandoned(self, external_ids: Collection[str]) -> list[RunsNotFound]:
        """The unfinished runs of pipelines that the partner does not know."""
        return self._not_found([key for key in self._open if key[0] in external_ids], self.now)

    def _not_found(self, keys: Sequence[RunKey], observed_at: datetime) -> list[RunsNotFound]:
        by_owner: dict[str, list[OpenRun]] = {}
        for key in keys:
            if key in self._open:
                by_owner.setdefault(key[0], []).append(self._open[key])
        return [RunsNotFound(owner, runs, observed_at) for owner, runs in by_owner.items()]

    @property
    def _oldest_open(self) -> datetime | None:
        return min((run.started_at for run in self._open.values() if run.started_at is not None), default=None)

    # --- errors

    def split_by(self, error: RemoteError) -> list[Group]:
        """Smaller groups to read instead, if the error is about the group as a whole; none if it stands."""
        group, scope = self._group, self._api.rest.scope
        if isinstance(error, ResponseTooLarge):
            return self._smaller()
        if self.first is not None or not isinstance(error, StatusError):
            return []
        if group.read_as == "account" and scope.account_optional and error.status in ABSENT_STATUSES:
            if not self._api.lacks_account:
                logger.info("%s: has no account-wide request; reading pipelines one by one", self._api.label)
            self._api.lacks_account = True
            return group.without_account(scope)
        # A list of ids may be refused for one of them: the others must not suffer for it.
        one_is_wrong = group.read_as == "ids" and len(group.targets) > 1 and error.status in _BAD_LIST
        return group.halves() if one_is_wrong else []

    def _smaller(self) -> list[Group]:
        """First smaller pages, then fewer pipelines: one huge record must not fail its neighbours."""
        group, scope, size = self._group, self._api.rest.scope, self._group.page_size or self._api.rest.page_size
        if size > 1 and self._api.has_page_size:
            return [dataclasses.replace(group, page_size=max(1, size // 32))]
        if group.read_as == "account" and scope.filter_by != "none":
            return group.without_account(scope)
        return group.halves() if group.read_as == "ids" and len(group.targets) > 1 else []

    def explained(self, error: RemoteError) -> RemoteError:
        """The error; a refusal of the only pipeline that was requested means that the partner does not know it."""
        if isinstance(error, ResponseTooLarge):
            return ResponseTooLarge(f"{error}, even with the smallest page; raise http.max_body_megabytes")
        if self.first is not None or len(self._group.targets) > 1 or not isinstance(error, StatusError):
            return error
        declared = self._api.rest.scope.unknown
        unknown = any(wanted.matches(error.status, error.body, is_page=error.is_page) for wanted in declared)
        if unknown or (error.status in _UNKNOWN_PIPELINE[self._group.read_as] and not error.is_page):
            (external_id,) = self._group.external_ids
            hint = f"the partner does not know pipeline {external_id!r} ({error.status}); check its external_id"
            return NotAtPartner(f"{self._api.label}: {hint}")
        return error
