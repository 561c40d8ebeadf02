"""Errors and row counts that no list of runs contains, and single runs by id, requested within a budget: the reasons of
failures come first.

What is found becomes part of the record before it lands, so that a landed record always means the same.
"""

import logging
import random
from collections.abc import AsyncGenerator, Collection, Hashable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from chm_dagster.domain.runs import KnownDetails
from chm_dagster.errors import AuthError, Permanent, RemoteError, SchemaDrift
from chm_dagster.http.client import Response
from chm_dagster.http.failures import CircuitBreaker, StatusError
from chm_dagster.partners.engine.mapping import DETAILS
from chm_dagster.partners.engine.model import RunLookup
from chm_dagster.partners.engine.requests import Api
from chm_dagster.partners.engine.selectors import (
    find,
)

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""After this many failed requests, a sync goes on without details."""


class Budget:
    """How many more requests a sync may spend on one kind of detail."""

    def __init__(self, requests: int) -> None:
        self._left = requests

    def take(self) -> bool:
        """Spend one request, if there is one left."""
        self._left -= 1
        return self._left >= 0


Record = Mapping[str, Any]
Found = AsyncGenerator[tuple[Hashable, Mapping[str, Any]], None]
"""Details by the key of their run: `error`, `rows`, `finished` (ISO 8601)."""


class DetailSource(Protocol):
    """What one platform can say about a run beyond its list of runs, and which requests that takes."""

    def key(self, record: Record) -> Hashable:
        """What makes two records the same execution; it changes when a run is run again."""
        ...

    def lacks_error(self, record: Record) -> bool:
        """Whether it takes requests to know why the run failed, or when it ended."""
        ...

    def lacks_rows(self, record: Record) -> bool:
        """Whether it takes requests to know how many rows the run processed."""
        ...

    def errors(self, runs: Sequence[Record], budget: Budget) -> Found:
        """Why these runs failed, as far as the partner knows and the budget lasts. Raises RemoteError."""
        ...

    def rows(self, runs: Sequence[Record], budget: Budget) -> Found:
        """How many rows these runs processed, likewise. Raises RemoteError."""
        ...


class RunDetails:
    """Adds details to the records of one sync, with at most `errors` requests for errors, and `rows` for row counts.

    A partner that refuses these requests costs the details and not the sync. `ends`: what is requested with errors is
    when a run ended.
    """

    def __init__(self, label: str, source: DetailSource, *, errors: int, rows: int, ends: bool = False) -> None:
        self._sufficient = {"error": "finished" if ends else "error", "rows": "rows"}
        self._label = label
        self._source = source
        self._budgets = {"error": Budget(errors), "rows": Budget(rows)}
        self._known: dict[Hashable, dict[str, Any]] = {}
        self._requested: set[tuple[str, Hashable]] = set()
        self._failures = 0

    def remember(self, record: Record, known: KnownDetails) -> None:
        """Keep what is known about the run already: it is not requested again."""
        key = self._source.key(record)
        details: dict[str, Any] = {"error": known.error_message, "rows": known.rows_processed}
        if known.finished_at is not None and "finished" in self._sufficient.values():
            details["finished"] = known.finished_at.isoformat()
        self._known[key] = {name: value for name, value in details.items() if value is not None}
        self._requested |= {(what, key) for what, name in self._sufficient.items() if name in self._known[key]}

    async def add_to(self, records: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """The same records in the same order, with the details that were found. Never raises RemoteError."""
        runs = [record for _, record in records if isinstance(record, dict)]
        await self._learn("error", [run for run in runs if self._source.lacks_error(run)])
        await self._learn("rows", [run for run in runs if self._source.lacks_rows(run)])
        return [(owner, self._added(record)) for owner, record in records]

    async def _learn(self, what: str, runs: Sequence[Record]) -> None:
        budget = self._budgets[what]
        unknown = [run for run in runs if (what, self._source.key(run)) not in self._requested]
        if not unknown or self._failures >= MAX_FAILURES:
            return
        found = self._source.errors(unknown, budget) if what == "error" else self._source.rows(unknown, budget)
        try:
            async with aclosing(found):
                async for key, details in found:
                    self._known.setdefault(key, {}).update(details)
                    self._requested.add((what, key))
        except RemoteError as error:
            # What is refused for good now is refused for the rest of the sync, too.
            self._failures += MAX_FAILURES if isinstance(error, (AuthError, Permanent)) else 1
            logger.warning("%s: no %s of %d runs: %s", self._label, what, len(unknown), error)

    def _added(self, record: Any) -> Any:
        if not isinstance(record, dict):
            return record
        found = self._known.get(self._source.key(record))
        return {**record, DETAILS: {**record.get(DETAILS, {}), **found}} if found else record


MAX_LOOKUPS = 100
"""Requests for unfinished runs in one sync of a group, at most."""
MAX_FAILING_LOOKUPS = 50
"""The same for runs that make their pipeline fail."""

Records = list[tuple[str, Any]]
"""Raw records, each with the external id of its pipeline."""
RunKey = tuple[str, str]
"""External id and run id."""


class RunLookups:
    """Requests runs by id. If there are more than the budget allows, chance decides, so that each has its turn."""

    def __init__(self, api: Api, lookup: RunLookup, breaker: CircuitBreaker) -> None:
        self._api, self._lookup, self._breaker = api, lookup, breaker
        self.unread: dict[str, str] = {}
        """By pipeline, why the state of an unfinished run could not be read."""

    async def read(
        self, unfinished: Collection[RunKey], failing: Collection[RunKey]
    ) -> AsyncGenerator[tuple[Response, Records, Sequence[RunKey]], None]:
        """Each response with the runs as they are now, and those that are gone. Raises RemoteError."""
        size = self._lookup.max_ids
        open_runs, keys = set(unfinished), _chosen(unfinished, MAX_LOOKUPS * size)
        if self._lookup.failing:
            keys += _chosen(failing, MAX_FAILING_LOOKUPS * size)
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            try:
                response, rows = await self._requested(chunk)
            except (StatusError, SchemaDrift) as error:
                # The streams have been read. One run that stays open in the ledger is no reason to discard them.
                logger.warning("%s; the state of %d runs is unknown", error, len(chunk))
                why = f"an unfinished run could not be read: {error}"
                self.unread |= {owner: why for owner, _ in open_runs.intersection(chunk)}
                continue
            by_id = {self._api.reader.run_id(row): row for row in rows}
            found = [(owner, by_id[run_id]) for owner, run_id in chunk if run_id in by_id]
            yield response, found, [key for key in chunk if key[1] not in by_id]

    async def _requested(self, chunk: Sequence[RunKey]) -> tuple[Response, Sequence[Any]]:
        api, lookup = self._api, self._lookup
        if lookup.max_ids > 1:
            request = api.make(lookup, run_ids=[run_id for _, run_id in chunk])
            response = await self._breaker.call(lambda: api.http.send(request))
            return response, api.items(response, lookup.data_selector)
        ((external_id, run_id),) = chunk
        request = api.make(lookup, id=external_id, run_id=run_id)
        sent_at = api.http.now()
        try:
            response = await self._breaker.call(lambda: api.http.send(request))
        except StatusError as error:
            if not any(wanted.matches(error.status, error.body, is_page=error.is_page) for wanted in lookup.not_found):
                raise
            return Response(None, sent_at, None), []
        api.check(response)
        found = [value for value in find(response.body, lookup.data_selector) if value is not None][:1]
        if not found or api.reader.run_id(found[0]) != run_id:
            # Only an error status means that it is gone; a wrong selector must not end every run of the ledger.
            raise api.drift("the response about one run is not about that run")
        return response, found


def _chosen(keys: Collection[RunKey], most: int) -> list[RunKey]:
    return list(keys) if len(keys) <= most else random.sample(list(keys), most)
