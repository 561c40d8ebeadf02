"""Reads runs from partners that speak CHM's own API: many pipelines at once where they can, one by one where not.

One account-wide pass costs a request or two where reading ten thousand pipelines one by one costs ten thousand. It is
worth it only for many pipelines that are equally far behind: a few that are new or long behind would make the partner
send everybody's history again, so these few are read on their own.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from chm_dagster.errors import AuthError, PartnerError, Permanent, SchemaDrift
from chm_dagster.partners.http import Answer, PartnerHttp, Refused
from chm_dagster.partners.port import Done, Failed, Page, Probe, Target
from chm_dagster.partners.retry import Breaker

logger = logging.getLogger(__name__)

Event: TypeAlias = Page | Done | Failed

DEFAULT_OVERLAP = timedelta(minutes=5)
STRAGGLER = timedelta(hours=1)
"""How far behind the newest watermark a pipeline may be and still share its account-wide pass."""
MAX_EMPTY_PAGES = 10
MAX_CURSOR_CHARS = 4_096
_ABSENT = frozenset({404, 405, 501})


class GenericFeed:
    """The run history of one connection that speaks the generic API. It owns `http`.

    `overlap` is subtracted from the watermark that a pass gives, not from the one it asks with. More than
    `account_threshold` pipelines are read by one account-wide pass if the partner has the endpoint. `page_limit` is
    the page size asked for (None leaves it to the partner); `max_pages` ends a pass that does not end by itself.
    """

    def __init__(
        self,
        http: PartnerHttp,
        *,
        overlap: timedelta = DEFAULT_OVERLAP,
        account_threshold: int = 50,
        max_pages: int = 10_000,
        page_limit: int | None = 1_000,
    ) -> None:
        self.overlap = overlap
        self._http = http
        self._account_threshold = account_threshold
        self._max_pages = max_pages
        self._page_limit = page_limit
        self._has_account_endpoint = True  # until it says otherwise

    async def aclose(self) -> None:
        """Give the connection's sockets back."""
        await self._http.aclose()

    async def sweep(self, targets: Sequence[Target]) -> AsyncGenerator[Event, None]:
        """Fetch the targets' runs; each ends in exactly one Done or Failed, after its last Page.

        A target that is named twice is read once, from its earliest `since`. `Done.synced_through` is the Date header
        of the pass's first answer (our clock if it has none), minus the overlap; the next sweep asks for what was
        updated since then. In an account-wide pass, records of other pipelines are dropped and counted in the log, and
        so are records without a usable `pipeline_id`: there is no pipeline that they could belong to.

        A PartnerError fails its own target only, until a `Breaker` opens: then all the rest fail without a request.
        Close the generator (`contextlib.aclosing`) to stop early; requests under way are cancelled.
        """
        breaker = Breaker(patience=self._http.policy.max_wait)
        groups, singles = self._plan(_merged(targets))
        for group in groups:
            if self._has_account_endpoint:
                async with aclosing(self._account_pass(group, breaker)) as events:
                    async for event in events:
                        yield event
            if not self._has_account_endpoint:
                singles.extend(group)
        async with aclosing(self._one_by_one(singles, breaker)) as events:
            async for event in events:
                yield event

    async def check(self) -> Probe:
        """Ask for one run, or else for one pipeline, or else for the base URL itself. Never raises PartnerError."""
        offers = {
            "runs": "all pipelines can be read at once",
            "pipelines": "pipelines are read one by one",
            "": "pipelines are read one by one",
        }
        for noun, offer in offers.items():
            try:
                answer = await self._http.get_json([noun] if noun else [], {"limit": "1"} if noun else {})
                if noun:
                    _list_of(answer.body, noun, self._http.connection)
            except Refused as error:
                if error.status not in _ABSENT:
                    return Probe(False, str(error))
            except AuthError as error:
                return Probe(False, str(error))
            except PartnerError as error:
                return Probe(False, f"no usable answer: {error}")
            else:
                return Probe(True, f"connection {self._http.connection}: answers; {offer}")
        return Probe(
            False,
            f"connection {self._http.connection}: answers, but has neither /runs nor /pipelines; is the path of "
            "base_url right? (a partner that has only /pipelines/{id}/runs looks the same from here)",
        )

    def _plan(self, targets: Sequence[Target]) -> tuple[list[list[Target]], list[Target]]:
        """Groups for account-wide passes, and the targets to be read one by one."""
        new = [t for t in targets if t.since is None]
        newest = max((t.since for t in targets if t.since), default=None)
        level = [t for t in targets if t.since and newest and t.since >= newest - STRAGGLER]
        behind = [t for t in targets if t.since and newest and t.since < newest - STRAGGLER]
        groups: list[list[Target]] = []
        singles: list[Target] = []
        for batch in (level, behind, new):
            if len(batch) > self._account_threshold:
                groups.append(batch)
            else:
                singles.extend(batch)
        return groups, singles

    async def _account_pass(self, group: Sequence[Target], breaker: Breaker) -> AsyncGenerator[Event, None]:
        wanted = tuple(t.external_id for t in group)
        since = min((t.since for t in group if t.since), default=None)
        sorter = _Sorter(wanted)
        first: Answer | None = None
        try:
            async for answer, runs in self._pages(("runs",), since, breaker):
                first = first or answer
                records = sorter.sort(runs)
                if records:
                    yield Page(records, answer.observed_at)
        except PartnerError as error:
            if first is None and isinstance(error, Refused) and error.status in _ABSENT:
                self._has_account_endpoint = False
                logger.info("connection %s: has no /runs; reading pipelines one by one", self._http.connection)
            else:
                yield Failed(wanted, error)
        else:
            yield self._done(wanted, first)
        sorter.report(self._http.connection)

    async def _pipeline_pass(self, target: Target, breaker: Breaker) -> AsyncGenerator[Event, None]:
        asked = target.external_id
        first: Answer | None = None
        try:
            async for answer, runs in self._pages(("pipelines", asked, "runs"), target.since, breaker):
                first = first or answer
                if any(_tells_of_another(run, asked) for run in runs):
                    raise self._drift(f"the answer for pipeline {asked!r} holds a run of another pipeline")
                if runs:
                    yield Page([(asked, run) for run in runs], answer.observed_at)
        except Refused as error:
            hint = f"the partner does not know pipeline {asked!r} (404); check its external_id"
            unknown = error.status == 404 and first is None
            yield Failed((asked,), Permanent(f"connection {self._http.connection}: {hint}") if unknown else error)
        except PartnerError as error:
            yield Failed((asked,), error)
        else:
            yield self._done((asked,), first)

    async def _one_by_one(self, targets: Sequence[Target], breaker: Breaker) -> AsyncGenerator[Event, None]:
        """A few workers share the targets. The queue is short: a slow reader slows the requests, not the memory."""
        workers = min(self._http.policy.concurrency, len(targets))
        todo = iter(targets)
        events: asyncio.Queue[Event | Exception | None] = asyncio.Queue(maxsize=max(1, workers))
        tasks = [asyncio.create_task(self._work(todo, events, breaker)) for _ in range(workers)]
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

    async def _work(
        self, todo: Iterator[Target], events: "asyncio.Queue[Event | Exception | None]", breaker: Breaker
    ) -> None:
        try:
            for target in todo:
                async for event in self._pipeline_pass(target, breaker):
                    await events.put(event)
        except Exception as bug:
            # Left in the task, it would leave the reader waiting for ever.
            await events.put(bug)
        else:
            await events.put(None)

    async def _pages(
        self, path: Sequence[str], since: datetime | None, breaker: Breaker
    ) -> AsyncGenerator[tuple[Answer, list[Any]], None]:
        """The pages of one pass. Raises SchemaDrift for one that would not end."""
        params: dict[str, str] = {}
        if since is not None:
            params["updated_since"] = since.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if self._page_limit is not None:
            params["limit"] = str(self._page_limit)
        seen: set[str] = set()
        empty = 0
        for _ in range(self._max_pages):
            answer = await breaker.call(partial(self._http.get_json, path, dict(params)))
            runs = _list_of(answer.body, "runs", self._http.connection)
            cursor = self._next_cursor(answer.body)
            yield answer, runs
            if cursor is None:
                return
            if cursor in seen:
                raise self._drift("cursor loop: a page points back to one that was read")
            seen.add(cursor)
            empty = 0 if runs else empty + 1
            if empty > MAX_EMPTY_PAGES:
                raise self._drift(f"more than {MAX_EMPTY_PAGES} empty pages in a row, each with a next cursor")
            params["cursor"] = cursor
        raise self._drift(f"no end after {self._max_pages} pages")

    def _next_cursor(self, body: Mapping[str, Any]) -> str | None:
        """The cursor of the next page, None on the last one. A missing key is drift: it could mean either."""
        if "next_cursor" not in body:
            raise self._drift("next_cursor is missing")
        cursor = body["next_cursor"]
        if cursor is None or cursor == "":
            return None
        if isinstance(cursor, int) and not isinstance(cursor, bool):
            cursor = str(cursor)
        if not isinstance(cursor, str) or len(cursor) > MAX_CURSOR_CHARS:
            raise self._drift(f"next_cursor is not a string of at most {MAX_CURSOR_CHARS} characters")
        return cursor

    def _done(self, external_ids: Sequence[str], first: Answer | None) -> Done:
        if first is None:
            raise AssertionError("a pass ended well without an answer")
        synced_through = (first.server_time or first.observed_at) - self.overlap
        return Done(external_ids, synced_through, first.observed_at)

    def _drift(self, what: str) -> SchemaDrift:
        return SchemaDrift(f"connection {self._http.connection}: {what}")


class _Sorter:
    """Gives account-wide records to the pipelines that were asked for, and counts the rest."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = frozenset(wanted)
        self._foreign = 0
        self._homeless = 0

    def sort(self, runs: Sequence[Any]) -> list[tuple[str, Any]]:
        records = []
        for run in runs:
            owner = _pipeline_id(run)
            if owner is None:
                self._homeless += 1
            elif owner in self._wanted:
                records.append((owner, run))
            else:
                self._foreign += 1
        return records

    def report(self, connection: str) -> None:
        if self._foreign:
            logger.info("connection %s: dropped %d runs of pipelines outside this pass", connection, self._foreign)
        if self._homeless:
            logger.warning("connection %s: dropped %d records without a pipeline_id", connection, self._homeless)


def _merged(targets: Sequence[Target]) -> list[Target]:
    """Each external id once, with its earliest `since` (None is the earliest of all)."""
    since: dict[str, datetime | None] = {}
    for target in targets:
        known = since.get(target.external_id, target.since)
        since[target.external_id] = min(known, target.since) if known and target.since else None
    return [Target(external_id, start) for external_id, start in since.items()]


def _list_of(body: Mapping[str, Any], key: str, connection: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise SchemaDrift(f"connection {connection}: {key} is missing or not a list")
    return value


def _pipeline_id(run: Any) -> str | None:
    value = run.get("pipeline_id") if isinstance(run, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _tells_of_another(run: Any, asked: str) -> bool:
    return isinstance(run, dict) and run.get("pipeline_id") is not None and _pipeline_id(run) != asked
