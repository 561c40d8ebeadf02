"""What became of single runs: found as they are now, or gone."""

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from chm_dagster.domain.runs import OpenRun
from chm_dagster.errors import SchemaDrift
from chm_dagster.partners.declared.asking import Asking
from chm_dagster.partners.declared.model import Lookup
from chm_dagster.partners.declared.places import find
from chm_dagster.partners.declared.reading import Reader
from chm_dagster.partners.http import Answer, PartnerHttp
from chm_dagster.partners.port import Gone
from chm_dagster.partners.retry import Breaker
from chm_dagster.partners.verdicts import Refused

logger = logging.getLogger(__name__)

Wanted = Mapping[tuple[str, str], OpenRun]
"""By external id and run id."""
_NO_SUCH_RUN = (404, 410)


class Lookups:
    """Asks for single runs as `lookup` says."""

    def __init__(self, lookup: Lookup, http: PartnerHttp, asking: Asking, reader: Reader) -> None:
        self._lookup, self._http, self._asking, self._reader = lookup, http, asking, reader

    async def of(
        self, wanted: Wanted, breaker: Breaker
    ) -> AsyncGenerator[tuple[Answer, list[tuple[str, Any]], list[Gone]], None]:
        """Chunk by chunk: the answer, the runs that are still there, and those that are not. Raises PartnerError."""
        keys = list(wanted)
        for start in range(0, len(keys), self._lookup.at_once):
            chunk = {key: wanted[key] for key in keys[start : start + self._lookup.at_once]}
            try:
                answer, rows = await self._asked(chunk, breaker)
            except (Refused, SchemaDrift) as error:
                # The lists have been read. That one run stays open in the ledger is no reason to throw them away.
                logger.warning("%s; what became of %d unfinished runs is not known", error, len(chunk))
                continue
            found = self._found(chunk, rows)
            met = {(owner, self._reader.run_id(row)) for owner, row in found}
            missing = {key: run for key, run in chunk.items() if key not in met}
            yield answer, found, _gone(missing, answer)

    async def _asked(self, chunk: Wanted, breaker: Breaker) -> tuple[Answer, Sequence[Any]]:
        if self._lookup.at_once > 1:
            ask = self._asking.ask(self._lookup, run_ids=[run_id for _, run_id in chunk])
            answer = await breaker.call(lambda: self._http.ask(ask))
            return answer, self._asking.items(answer, self._lookup.items)
        ((external_id, run_id),) = chunk
        ask = self._asking.ask(self._lookup, id=external_id, run_id=run_id)
        asked_at = self._http.now()
        try:
            answer = await breaker.call(lambda: self._http.ask(ask))
        except Refused as error:
            if error.status not in _NO_SUCH_RUN:
                raise
            return Answer(None, asked_at, None), []
        self._asking.refused(answer)
        found = [value for value in find(answer.body, self._lookup.items) if value is not None][:1]
        if not found or self._reader.run_id(found[0]) != run_id:
            # Only a 404 means that it is gone; a look into the wrong place must not end every run of the ledger.
            raise SchemaDrift(f"connection {self._http.connection}: the answer about one run is not about that run")
        return answer, found

    def _found(self, chunk: Wanted, rows: Sequence[Any]) -> list[tuple[str, Any]]:
        """The rows that tell of these runs, each under the pipeline whose ledger asked for it."""
        by_id = {self._reader.run_id(row): row for row in rows}
        return [(owner, by_id[run_id]) for owner, run_id in chunk if run_id in by_id]


def _gone(missing: Wanted, answer: Answer) -> list[Gone]:
    by_owner: dict[str, list[OpenRun]] = {}
    for (owner, _), run in missing.items():
        by_owner.setdefault(owner, []).append(run)
    return [Gone(owner, runs, answer.observed_at) for owner, runs in by_owner.items()]
