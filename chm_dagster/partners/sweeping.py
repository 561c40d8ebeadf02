"""What sweeps of all platforms share: who is read together, who side by side, and which record belongs to whom."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

from chm_dagster.partners.http import Answer
from chm_dagster.partners.port import Done, Failed, Gone, Page, Target

logger = logging.getLogger(__name__)

Event: TypeAlias = Page | Done | Failed | Gone
_T = TypeVar("_T")

DEFAULT_OVERLAP = timedelta(minutes=5)
STRAGGLER = timedelta(hours=1)
"""How far behind the newest watermark a pipeline may be and still share its account-wide pass."""


def merged(targets: Sequence[Target]) -> list[Target]:
    """Each external id once, with its earliest `since` (None is the earliest of all) and all of its known runs."""
    by_id: dict[str, Target] = {}
    for target in targets:
        known = by_id.get(target.external_id, target)
        since = min(known.since, target.since) if known.since and target.since else None
        open_runs = {run.external_run_id: run for run in (*known.open_runs, *target.open_runs)}
        told = {**known.told, **target.told}
        by_id[target.external_id] = Target(target.external_id, since, tuple(open_runs.values()), told)
    return list(by_id.values())


def batches(targets: Sequence[Target]) -> tuple[list[Target], list[Target], list[Target]]:
    """The targets that are level with the newest watermark, those long behind it, and those that were never read.

    They are read apart: whoever is new or long behind would make the partner send everybody's history again.
    """
    new = [t for t in targets if t.since is None]
    newest = max((t.since for t in targets if t.since), default=None)
    level = [t for t in targets if t.since and newest and t.since >= newest - STRAGGLER]
    behind = [t for t in targets if t.since and newest and t.since < newest - STRAGGLER]
    return level, behind, new


def done(external_ids: Sequence[str], first: Answer | None, overlap: timedelta) -> Done:
    """The end of a pass that went well: its pipelines are known up to its first answer, minus the overlap."""
    if first is None:
        raise AssertionError("a pass ended well without an answer")
    return Done(external_ids, (first.server_time or first.observed_at) - overlap, first.observed_at)


class Sorter:
    """Gives account-wide records to the pipelines that were asked for, and counts the rest.

    `owners` names the external ids that a record may belong to, the best first: none of them for a record of no
    pipeline, None where the record does not say.
    """

    def __init__(self, wanted: Sequence[str], owners: Callable[[Any], Sequence[str] | None], field: str) -> None:
        self._wanted = frozenset(wanted)
        self._owners = owners
        self._field = field
        self.kept = 0
        self.foreign = 0
        self.homeless = 0

    def sort(self, runs: Sequence[Any]) -> list[tuple[str, Any]]:
        """The records of pipelines that were asked for, each with its external id."""
        records = []
        for run in runs:
            owners = self._owners(run)
            if owners is None:
                self.homeless += 1
                continue
            owner = next((owner for owner in owners if owner in self._wanted), None)
            if owner is None:
                self.foreign += 1
            else:
                records.append((owner, run))
        self.kept += len(records)
        return records

    def report(self, connection: str) -> None:
        """Log what was dropped."""
        if self.foreign:
            logger.info("connection %s: dropped %d runs of pipelines outside this pass", connection, self.foreign)
        if self.homeless:
            logger.warning("connection %s: dropped %d records without a %s", connection, self.homeless, self._field)


async def side_by_side(
    units: Sequence[_T], work: Callable[[_T], AsyncGenerator[Event, None]], workers: int
) -> AsyncGenerator[Event, None]:
    """The events of `work(unit)` of every unit, in the order in which they come.

    A few workers share the units. The queue is short: a slow reader slows the requests, not the memory. What `work`
    raises is raised here. Close the generator (`contextlib.aclosing`) to stop early; work under way is cancelled.
    """
    workers = min(workers, len(units))
    todo = iter(units)
    events: asyncio.Queue[Event | Exception | None] = asyncio.Queue(maxsize=max(1, workers))
    tasks = [asyncio.create_task(_worker(todo, work, events)) for _ in range(workers)]
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


async def _worker(
    todo: Iterator[_T],
    work: Callable[[_T], AsyncGenerator[Event, None]],
    events: "asyncio.Queue[Event | Exception | None]",
) -> None:
    try:
        for unit in todo:
            async for event in work(unit):
                await events.put(event)
    except Exception as bug:
        # Left in the task, it would leave the reader waiting for ever.
        await events.put(bug)
    else:
        await events.put(None)
