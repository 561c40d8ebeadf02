"""Reads runs from partners that speak CHM's own API: many pipelines at once where they can, one by one where not.

One account-wide pass costs a request or two where reading ten thousand pipelines one by one costs ten thousand. It is
worth it only for many pipelines that are equally far behind: a few that are new or long behind would make the partner
send everybody's history again, so these few are read on their own.
"""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from chm_dagster.domain.inventory import PipelineType, Platform
from chm_dagster.errors import AuthError, PartnerError, Permanent, SchemaDrift
from chm_dagster.partners.guards import MAX_PAGES, PageGuard
from chm_dagster.partners.http import Answer, PartnerHttp
from chm_dagster.partners.port import Done, Failed, Page, Probe, SourcePipeline, Target
from chm_dagster.partners.retry import Breaker
from chm_dagster.partners.sweeping import DEFAULT_OVERLAP, Event, Sorter, batches, done, merged, side_by_side
from chm_dagster.partners.verdicts import Refused

logger = logging.getLogger(__name__)

_ABSENT = frozenset({404, 405, 501})
_TYPES = [kind.value for kind in PipelineType]
_PLATFORMS = [platform.value for platform in Platform]


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
        max_pages: int = MAX_PAGES,
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
        groups, singles = self._plan(merged(targets))
        for group in groups:
            if self._has_account_endpoint:
                async with aclosing(self._account_pass(group, breaker)) as events:
                    async for event in events:
                        yield event
            if not self._has_account_endpoint:
                singles.extend(group)
        work = partial(self._pipeline_pass, breaker=breaker)
        async with aclosing(side_by_side(singles, work, self._http.policy.concurrency)) as events:
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

    async def discover(self) -> Sequence[SourcePipeline]:
        """All pipelines of the partner, by external id. Raises PartnerError."""
        breaker = Breaker(patience=self._http.policy.max_wait)
        found: dict[str, SourcePipeline] = {}
        async for _, items in self._pages(("pipelines",), None, breaker, "pipelines"):
            found.update({pipeline.external_id: pipeline for item in items if (pipeline := _source(item)) is not None})
        return [found[external_id] for external_id in sorted(found)]

    def _plan(self, targets: Sequence[Target]) -> tuple[list[list[Target]], list[Target]]:
        """Groups for account-wide passes, and the targets to be read one by one."""
        groups: list[list[Target]] = []
        singles: list[Target] = []
        for batch in batches(targets):
            if len(batch) > self._account_threshold:
                groups.append(batch)
            else:
                singles.extend(batch)
        return groups, singles

    async def _account_pass(self, group: Sequence[Target], breaker: Breaker) -> AsyncGenerator[Event, None]:
        wanted = tuple(t.external_id for t in group)
        since = min((t.since for t in group if t.since), default=None)
        sorter = Sorter(wanted, _owners, "pipeline_id")
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

    async def _pages(
        self, path: Sequence[str], since: datetime | None, breaker: Breaker, noun: str = "runs"
    ) -> AsyncGenerator[tuple[Answer, list[Any]], None]:
        """The pages of one pass. Raises SchemaDrift for one that would not end."""
        params: dict[str, str] = {}
        if since is not None:
            params["updated_since"] = since.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if self._page_limit is not None:
            params["limit"] = str(self._page_limit)
        guard = PageGuard(self._http.connection, self._max_pages)
        while True:
            answer = await breaker.call(partial(self._http.get_json, path, dict(params)))
            runs = _list_of(answer.body, noun, self._http.connection)
            if "next_cursor" not in answer.body:
                # It could mean the last page, or that the rest will never be told of.
                raise self._drift("next_cursor is missing")
            cursor = guard.cursor(answer.body["next_cursor"])
            yield answer, runs
            if cursor is None:
                return
            guard.next_page(len(runs))
            params["cursor"] = cursor

    def _done(self, external_ids: Sequence[str], first: Answer | None) -> Done:
        return done(external_ids, first, self.overlap)

    def _drift(self, what: str) -> SchemaDrift:
        return SchemaDrift(f"connection {self._http.connection}: {what}")


def _list_of(body: Mapping[str, Any], key: str, connection: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise SchemaDrift(f"connection {connection}: {key} is missing or not a list")
    return value


def _source(item: Any) -> SourcePipeline | None:
    """The pipeline that an item of the list tells of; None for what is none."""
    external_id = item.get("id") if isinstance(item, dict) else None
    if not isinstance(external_id, str) or not external_id:
        return None
    name, kind, platform = item.get("name"), item.get("type"), item.get("platform")
    return SourcePipeline(
        external_id,
        name if isinstance(name, str) and name.strip() else external_id,
        PipelineType(kind) if kind in _TYPES else PipelineType.INGESTION,
        platform=Platform(platform) if platform in _PLATFORMS else None,
    )


def _owners(run: Any) -> Sequence[str] | None:
    owner = _pipeline_id(run)
    return None if owner is None else (owner,)


def _pipeline_id(run: Any) -> str | None:
    value = run.get("pipeline_id") if isinstance(run, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _tells_of_another(run: Any, asked: str) -> bool:
    return isinstance(run, dict) and run.get("pipeline_id") is not None and _pipeline_id(run) != asked
