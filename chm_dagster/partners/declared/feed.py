"""Reads the runs of a partner whose API is described by a configuration."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from chm_dagster.errors import PartnerError
from chm_dagster.partners.declared.asking import Asking
from chm_dagster.partners.declared.discovery import discover, probe
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.declared.planning import Unit, planned
from chm_dagster.partners.declared.reading import Reader
from chm_dagster.partners.declared.unit import Api, Records, UnitSweep
from chm_dagster.partners.http import PartnerHttp
from chm_dagster.partners.port import Done, Failed, Page, Probe, SourcePipeline, Target
from chm_dagster.partners.retry import Breaker
from chm_dagster.partners.sweeping import Event, done, merged, side_by_side
from chm_dagster.partners.verdicts import Refused

_BAD_LIST = (400, 404, 422)


class Enricher(Protocol):
    """Adds to the records of one sweep what the lists of runs do not hold: errors first, within a budget."""

    def remember(self, record: Mapping[str, Any], error: str | None, rows: int | None) -> None:
        """This is known of the run already."""
        ...

    async def enrich(self, records: Records) -> Records:
        """The same records in the same order. Never raises PartnerError."""
        ...


class RestFeed:
    """The run history of one connection, read as `rest` says. It owns `http`.

    `options` are the connection's settings; `overlap` is subtracted from the watermark that a sweep gives; the first
    sweep reaches back by `history` (None: everything). `enricher` makes a new one for each sweep.
    """

    def __init__(
        self,
        rest: Rest,
        http: PartnerHttp,
        *,
        options: Mapping[str, Any],
        overlap: timedelta,
        history: timedelta | None = None,
        enricher: Callable[[PartnerHttp], Enricher] | None = None,
    ) -> None:
        self.overlap = overlap
        self._api = Api(rest, http, Asking(rest, http.connection, options), Reader(rest))
        self._history = history
        self._enricher = enricher

    async def aclose(self) -> None:
        """Give the connection's sockets back."""
        await self._api.http.aclose()

    async def check(self) -> Probe:
        """Version, credentials and rights, a sentence each. Never raises PartnerError."""
        return await probe(self._api.rest, self._api.asking, self._api.http)

    async def discover(self) -> Sequence[SourcePipeline]:
        """All pipelines that the credentials may see. Raises PartnerError."""
        return await discover(self._api.rest, self._api.asking, self._api.http)

    async def sweep(self, targets: Sequence[Target]) -> AsyncGenerator[Event, None]:
        """Fetch the targets' runs; each ends in exactly one Done or Failed, after its last Page.

        Pipelines that are equally far behind are read together where the API allows it. A pass that fails, fails its
        pipelines: their watermark stays, what was read before is kept. `Done.synced_through` is the Date header of the
        first answer (our clock if it has none), minus the overlap.
        """
        http = self._api.http
        breaker = Breaker(patience=http.policy.max_wait)
        enricher = self._enricher(http) if self._enricher else None
        work = partial(self._unit, breaker=breaker, enricher=enricher)
        units = planned(merged(targets), self._api.rest.scope)
        async with aclosing(side_by_side(units, work, http.policy.concurrency)) as events:
            async for event in events:
                yield event

    async def _unit(self, unit: Unit, breaker: Breaker, enricher: Enricher | None) -> AsyncGenerator[Event, None]:
        now = self._api.http.now()
        since = unit.since if unit.since or not self._history else now - self._history
        sweep = UnitSweep(self._api, unit, since, now, breaker)
        try:
            async for answer, records in sweep.records():
                kept = [(owner, record) for owner, record in records if self._api.reader.is_run(record)]
                if kept and enricher is not None:
                    self._remind(enricher, unit, kept, answer.observed_at)
                    kept = await enricher.enrich(kept)
                if kept:
                    yield Page(kept, answer.observed_at)
            for gone in sweep.gone:
                yield gone
        except PartnerError as error:
            if sweep.first is None and _one_may_be_wrong(unit, error):
                for half in unit.halves():
                    async for event in self._unit(half, breaker, enricher):
                        yield event
            else:
                yield Failed(unit.external_ids, sweep.explained(error))
        else:
            yield self._done(sweep, unit)
        sweep.sorter.report(self._api.http.connection)

    def _remind(self, enricher: Enricher, unit: Unit, records: Records, observed_at: datetime) -> None:
        """Tell the enricher what the ledger knows of these very ends of these runs."""
        told = {(t.external_id, run_id): known for t in unit.targets for run_id, known in t.told.items()}
        for owner, record in records:
            known = told.get((owner, self._api.reader.run_id(record) or ""))
            if known is not None and self._api.reader.finished_at(record, observed_at) == known.finished_at:
                enricher.remember(record, known.error_message, known.rows_processed)

    def _done(self, sweep: UnitSweep, unit: Unit) -> Done:
        end, until = done(unit.external_ids, sweep.first, self.overlap), sweep.asked_until
        # What was asked for only up to our own time is not known beyond it, whatever the partner's clock says.
        return (
            end
            if until is None
            else dataclasses.replace(end, synced_through=min(end.synced_through, until - self.overlap))
        )


def _one_may_be_wrong(unit: Unit, error: PartnerError) -> bool:
    """Whether a list of ids was refused, perhaps for one of them: the others must not suffer for it."""
    return unit.narrow == "many" and len(unit.targets) > 1 and isinstance(error, Refused) and error.status in _BAD_LIST
