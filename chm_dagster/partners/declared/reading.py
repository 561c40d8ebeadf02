"""What a raw record says before it is mapped: whose run it is, which one, and whether it is a run at all."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from chm_dagster.domain.runs import Observation
from chm_dagster.partners.declared.mapping import RestMapping, StatusWords
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.declared.places import find, first, identifier

_NOBODY = UUID(int=0)


class Reader:
    """Looks into the raw records of one API."""

    def __init__(self, rest: Rest) -> None:
        runs = rest.runs
        self._runs = runs
        self._words = StatusWords(runs.status)
        self._mapping = RestMapping(runs, reopens=rest.reopens)
        self._only = {path: {repr(value) for value in allowed} for path, allowed in runs.only.items()}

    @property
    def pipeline_field(self) -> str:
        """Where a record says whose it is."""
        return self._runs.pipeline[0]

    def owners(self, record: Any) -> Sequence[str] | None:
        """External ids that the record may belong to; none of them for null, None where it does not say."""
        places = self._runs.pipeline
        found = [identifier(value) for place in places if (value := first(record, [place])) is not None]
        owners = [owner for owner in found if owner is not None]
        if owners:
            return owners
        says_none = any(value is None for place in places for value in find(record, place))
        return () if says_none else None

    def run_id(self, record: Any) -> str | None:
        """The record's run id; None for what is none."""
        return identifier(first(record, [self._runs.id]))

    def key(self, record: Any) -> Any:
        """What makes the record the same run as another one; None where it does not say."""
        run_id = self.run_id(record)
        return None if run_id is None else (tuple(self.owners(record) or ()), run_id)

    def finished_at(self, record: Any, observed_at: datetime) -> datetime | None:
        """When the run ended; None if it has not, or if the record cannot be mapped."""
        mapped = self._mapping(_NOBODY, record, observed_at)
        return mapped.finished_at if isinstance(mapped, Observation) else None

    def is_run(self, record: Any) -> bool:
        """False for records of other things, and for runs that are only planned. What cannot be read is mapped."""
        if not isinstance(record, dict):
            return True
        if any(allowed.isdisjoint(map(repr, find(record, path))) for path, allowed in self._only.items()):
            return False
        return not self._words.is_dropped(record)
