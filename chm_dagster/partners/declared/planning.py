"""What is asked for together: which pipelines share a request, and which spans of time a pass is cut into."""

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

from chm_dagster.partners.declared.model import Pass, Scope
from chm_dagster.partners.port import Target
from chm_dagster.partners.sweeping import batches


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """Targets that are read together, and how the requests are narrowed down to them."""

    targets: Sequence[Target]
    narrow: Literal["account", "one", "many"]

    @property
    def external_ids(self) -> tuple[str, ...]:
        """Of all its targets."""
        return tuple(t.external_id for t in self.targets)

    def halves(self) -> "tuple[Unit, Unit]":
        """Two units that read what this one reads."""
        middle = len(self.targets) // 2
        first, second = self.targets[:middle], self.targets[middle:]
        return dataclasses.replace(self, targets=first), dataclasses.replace(self, targets=second)

    @property
    def since(self) -> datetime | None:
        """The earliest watermark; None if one of them was never read."""
        known = [t.since for t in self.targets if t.since is not None]
        return min(known) if len(known) == len(self.targets) else None


def planned(targets: Sequence[Target], scope: Scope) -> list[Unit]:
    """The fewest units that do not make the partner send much of what nobody asked for."""
    level, behind, new = batches(targets)
    units: list[Unit] = []
    for batch, limit in ((level, scope.account_from), (behind, scope.account_from_new), (new, scope.account_from_new)):
        units.extend(_of_batch(batch, limit, scope))
    return units


def _of_batch(batch: Sequence[Target], limit: int, scope: Scope) -> Iterator[Unit]:
    if not batch:
        return
    if scope.narrow == "none" or (scope.account and len(batch) > max(limit, scope.max_ids if _lists(scope) else 0)):
        yield Unit(batch, "account")
    elif _lists(scope):
        for start in range(0, len(batch), scope.max_ids):
            yield Unit(batch[start : start + scope.max_ids], "many")
    else:
        yield from (Unit([target], "one") for target in batch)


def _lists(scope: Scope) -> bool:
    return scope.narrow == "many"


def spans(pass_: Pass, since: datetime | None, until: datetime) -> Iterator[tuple[datetime | None, datetime]]:
    """The spans from `since` to `until`, each short enough for the pass; one without a beginning for all of history."""
    if since is None:
        yield None, until
        return
    start = since - timedelta(hours=pass_.lookback_hours)
    if pass_.window_hours is not None:
        step = timedelta(hours=pass_.window_hours)
        while start + step < until:
            yield start, start + step
            start += step
    yield start, until
