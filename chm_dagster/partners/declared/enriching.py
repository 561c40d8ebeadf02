"""Adds to raw records what no list of runs holds, within a budget: why runs failed first, then how many rows they had.

What is added becomes part of the record before it lands, so that a landed record always means the same.
"""

import logging
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from chm_dagster.errors import AuthError, PartnerError, Permanent
from chm_dagster.partners.declared.mapping import ENRICHED

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""After this many failed requests a sweep does without."""


class Budget:
    """How many more requests a sweep may spend on one kind of addition."""

    def __init__(self, requests: int) -> None:
        self._left = requests

    def take(self) -> bool:
        """One request, if there is one left."""
        self._left -= 1
        return self._left >= 0


class Lookup(Protocol):
    """What one platform can say of a run beyond the list of runs, and what it takes to learn it."""

    def key(self, record: Mapping[str, Any]) -> Hashable:
        """What makes the record the same execution as another one; it changes when a run is run again."""
        ...

    def failed(self, record: Mapping[str, Any]) -> bool:
        """Whether the run failed and the record does not say why."""
        ...

    def succeeded(self, record: Mapping[str, Any]) -> bool:
        """Whether the run succeeded, so that it may have processed rows."""
        ...

    def errors(self, runs: Sequence[Mapping[str, Any]], budget: Budget) -> AsyncGenerator[tuple[Hashable, str], None]:
        """Why these runs failed, by key, as far as the partner says so and the budget lasts. Raises PartnerError."""
        ...

    def rows(self, runs: Sequence[Mapping[str, Any]], budget: Budget) -> AsyncGenerator[tuple[Hashable, int], None]:
        """How many rows these runs processed, by key, likewise. Raises PartnerError."""
        ...


class BudgetedEnricher:
    """Spends at most `errors` requests on errors, and `rows` on row counts, in one sweep.

    A partner that refuses to say more, or fails to, costs the addition and not the sweep.
    """

    def __init__(self, connection: str, lookup: Lookup, *, errors: int, rows: int) -> None:
        self._connection = connection
        self._lookup = lookup
        self._budgets = {"error": Budget(errors), "rows": Budget(rows)}
        self._known: dict[str, dict[Hashable, Any]] = {"error": {}, "rows": {}}
        self._failures = 0

    def remember(self, record: Mapping[str, Any], error: str | None, rows: int | None) -> None:
        """This is known of the run already: it need not be asked for, and must not be lost either."""
        for what, value in (("error", error), ("rows", rows)):
            if value is not None:
                self._known[what][self._lookup.key(record)] = value

    async def enrich(self, records: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """The same records in the same order, with what was found out about them. Never raises PartnerError."""
        runs = [record for _, record in records if isinstance(record, dict)]
        await self._learn("error", [run for run in runs if self._lookup.failed(run)])
        await self._learn("rows", [run for run in runs if self._lookup.succeeded(run)])
        return [(owner, self._added(record)) for owner, record in records]

    async def _learn(self, what: str, runs: Sequence[Mapping[str, Any]]) -> None:
        known, budget = self._known[what], self._budgets[what]
        asked = [run for run in runs if self._lookup.key(run) not in known]
        if not asked or self._failures >= MAX_FAILURES:
            return
        answers: AsyncGenerator[tuple[Hashable, Any], None] = (
            self._lookup.errors(asked, budget) if what == "error" else self._lookup.rows(asked, budget)
        )
        try:
            async with aclosing(answers):
                async for key, value in answers:
                    known[key] = value
        except PartnerError as error:
            # What is refused for good now is refused for the rest of the sweep, too.
            self._failures += MAX_FAILURES if isinstance(error, (AuthError, Permanent)) else 1
            logger.warning("connection %s: no %s of %d runs: %s", self._connection, what, len(asked), error)

    def _added(self, record: Any) -> Any:
        if not isinstance(record, dict):
            return record
        key = self._lookup.key(record)
        found = {what: known[key] for what, known in self._known.items() if key in known}
        return {**record, ENRICHED: found} if found else record
