"""One unit of a sweep: every pass over its pipelines, and then a look at the runs that no pass has met."""

import dataclasses
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from chm_dagster.domain.runs import OpenRun
from chm_dagster.errors import PartnerError, Permanent, SchemaDrift
from chm_dagster.partners.declared.asking import Asking
from chm_dagster.partners.declared.lookups import Lookups
from chm_dagster.partners.declared.model import Pass, Rest
from chm_dagster.partners.declared.pager import NoCursor, Pager, TooMany
from chm_dagster.partners.declared.paging import Paging
from chm_dagster.partners.declared.planning import Unit, spans
from chm_dagster.partners.declared.reading import Reader
from chm_dagster.partners.declared.template import names
from chm_dagster.partners.http import Answer, PartnerHttp
from chm_dagster.partners.port import Gone
from chm_dagster.partners.retry import Breaker
from chm_dagster.partners.sweeping import Sorter
from chm_dagster.partners.verdicts import Refused

logger = logging.getLogger(__name__)

_NOT_KNOWN = {"one": (404,), "many": (400, 404, 422)}

Records = list[tuple[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Api:
    """One connection's API, ready to be asked. `without_cursor` remembers passes that are paged the older way."""

    rest: Rest
    http: PartnerHttp
    asking: Asking
    reader: Reader
    without_cursor: set[str] = dataclasses.field(default_factory=set)

    def drift(self, what: str) -> SchemaDrift:
        """The error, in the name of the connection."""
        return SchemaDrift(f"connection {self.http.connection}: {what}")


class UnitSweep:
    """The way of one unit through all passes, and what it has met. Times to ask for end at `now`."""

    def __init__(self, api: Api, unit: Unit, since: datetime | None, now: datetime, breaker: Breaker) -> None:
        self._api, self._unit, self._breaker = api, unit, breaker
        self._since, self._now = since, now
        self._open = {(t.external_id, run.external_run_id): run for t in unit.targets for run in t.open_runs}
        self.sorter = Sorter(unit.external_ids, api.reader.owners, api.reader.pipeline_field)
        self.first: Answer | None = None
        self.gone: list[Gone] = []

    async def records(self) -> AsyncGenerator[tuple[Answer, Records], None]:
        """The records of every pass that is due, and of the unfinished runs that none has met. Raises PartnerError."""
        for pass_ in self._api.rest.passes:
            if not self._is_due(pass_):
                continue
            for since, until in spans(pass_, self._since, self._now):
                async for answer, rows in self._span(pass_, since, until):
                    self.first = self.first or answer
                    yield answer, self._met(rows)
        if self.sorter.homeless and not self.sorter.kept + self.sorter.foreign:
            raise self._api.drift(f"no run says in {self._api.reader.pipeline_field} which pipeline it belongs to")
        if self._open and self._api.rest.lookup is not None:
            lookups = Lookups(self._api.rest.lookup, self._api.http, self._api.asking, self._api.reader)
            async for answer, found, gone in lookups.of(self._chosen(self._api.rest.lookup.at_once), self._breaker):
                self.gone.extend(gone)
                yield answer, found

    def _is_due(self, pass_: Pass) -> bool:
        if pass_.when == "open":
            return bool(self._open)
        return pass_.when != ("news" if self._since is None else "everything")

    def _chosen(self, at_once: int) -> Mapping[tuple[str, str], OpenRun]:
        wanted = list(self._open.items())
        most = MAX_LOOKUPS * at_once
        return dict(wanted if len(wanted) <= most else random.sample(wanted, most))

    def _met(self, rows: Sequence[Any]) -> Records:
        records = self.sorter.sort(rows) if self._unit.narrow != "one" else self._all_of_the_one(rows)
        for owner, record in records:
            self._open.pop((owner, self._api.reader.run_id(record) or ""), None)
        return records

    def _all_of_the_one(self, rows: Sequence[Any]) -> Records:
        (asked,) = self._unit.external_ids
        for row in rows:
            owners = self._api.reader.owners(row)
            if owners and asked not in owners:
                raise self._api.drift(f"the answer for pipeline {asked!r} holds a run of another pipeline")
        return [(asked, row) for row in rows]

    async def _span(
        self, pass_: Pass, since: datetime | None, until: datetime
    ) -> AsyncGenerator[tuple[Answer, list[Any]], None]:
        """The pages of one span of time; of its halves, if there are more runs than the partner gives at once."""
        try:
            async for page in self._pages(pass_, since, until):
                yield page
            return
        except TooMany:
            if since is None or until - since < _SHORTEST:
                raise self._api.drift(f"{pass_.name}: more of them at a time than the partner ever gives") from None
        middle = since + (until - since) / 2
        for start, end in ((since, middle), (middle, until)):
            async for page in self._span(pass_, start, end):
                yield page

    async def _pages(
        self, pass_: Pass, since: datetime | None, until: datetime
    ) -> AsyncGenerator[tuple[Answer, list[Any]], None]:
        api = self._api
        paging = pass_.paging or api.rest.paging
        values = {**self._narrowed(), "since": since, "until": until, "now": self._now}
        if paging.otherwise is not None and pass_.name in api.without_cursor:
            paging = paging.otherwise
        try:
            async for page in self._pager(pass_, paging).pages(self._breaker, **values):
                yield page
            return
        except NoCursor:
            api.without_cursor.add(pass_.name)
            logger.info("connection %s: pages have no cursors; they are counted instead", api.http.connection)
        if paging.otherwise is not None:
            async for page in self._pager(pass_, paging.otherwise).pages(self._breaker, **values):
                yield page

    def _pager(self, pass_: Pass, paging: Paging) -> Pager:
        api = self._api
        runs = api.rest.runs
        return Pager(
            api.http,
            api.asking,
            pass_,
            runs.items,
            paging,
            page_size=api.rest.page_size,
            key=api.reader.key,
            may_lack=runs.none_without_items,
        )

    def _narrowed(self) -> dict[str, Any]:
        ids = list(self._unit.external_ids)
        if self._unit.narrow == "account":
            return {"id": self._api.rest.scope.everything}
        return {"id": ids[0]} if self._unit.narrow == "one" else {"ids": ids}

    def explained(self, error: PartnerError) -> PartnerError:
        """A refusal of the one pipeline that was asked for means that the partner does not know it."""
        if self.first is not None or len(self._unit.targets) > 1 or not isinstance(error, Refused):
            return error
        if self._unit.narrow != "account" and error.status in _NOT_KNOWN[self._unit.narrow]:
            (asked,) = self._unit.external_ids
            hint = f"the partner does not know pipeline {asked!r} ({error.status}); check its external_id"
            return Permanent(f"connection {self._api.http.connection}: {hint}")
        return error

    @property
    def asked_until(self) -> datetime | None:
        """How far the requests reached by our own clock; None if they had no such end."""
        requests = ((p.path, p.query, p.body) for p in self._api.rest.passes)
        ends = any({"now", "until"} & set(names(list(request))) for request in requests)
        return self._now if ends else None


_SHORTEST = timedelta(minutes=1)

MAX_LOOKUPS = 100
"""Requests for single runs in one sweep of a unit, at most. Which ones is left to chance, so that each has its turn."""
