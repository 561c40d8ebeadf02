"""OpenLineage events as they come in: into the ledger, or, while the inventory lacks their job, onto the shelf.

An event is accepted only once it is durable: committed in Postgres, or synced to the shelf's file of the day.
"""

import logging
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import orjson

from chm_dagster.domain import values
from chm_dagster.domain.lineage import Ignored, read_event
from chm_dagster.errors import Busy
from chm_dagster.warehouse import lineage as ledger
from chm_dagster.warehouse.engine import Engine

log = logging.getLogger(__name__)

Outcome = Literal["inserted", "updated", "unchanged", "stale", "unmatched", "ignored"]

# What a producer wants to know first: whether anything of it was news.
_BY_WEIGHT: tuple[Outcome, ...] = ("inserted", "updated", "stale", "unchanged", "ignored")


class Shelf:
    """Events of jobs that no pipeline in the inventory is about, kept for `keep`, secrets masked.

    `room` bounds one day's file in bytes. Files are private to their owner.
    """

    def __init__(self, folder: Path, *, keep: timedelta = timedelta(days=7), room: int = 256_000_000) -> None:
        self.folder = folder
        self._keep = keep
        self._room = room
        self._lock = threading.Lock()

    def put(self, event: dict[str, Any]) -> None:
        """Keep an event, durably. Raises Busy if the day's file is full, or cannot be written."""
        line = orjson.dumps(values.clean_json(event)) + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                log.error("the shelf %s cannot be written: %s", self.folder, error.strerror)
                raise Busy("events without a pipeline cannot be kept now; the log says why") from None

    def _append(self, line: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
        if not path.exists():
            self._prune(datetime.now(UTC))
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
            size = file.tell()
            if size + len(line) > self._room:
                raise Busy("the shelf of events without a pipeline is full for today; add their pipelines")
            # A crash or a full disk may have cut the last line: what follows it must not become a part of it.
            is_cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" + line if is_cut else line)
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> Iterator[dict[str, Any]]:
        """All kept events, the oldest first. A line that a crash has cut is left out."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    try:
                        yield orjson.loads(line)
                    except orjson.JSONDecodeError:
                        log.warning("%s: left out a line that was cut", path.name)

    def _prune(self, now: datetime) -> None:
        for path in self.folder.glob("*.jsonl"):
            if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > self._keep:
                path.unlink(missing_ok=True)


def receive(engine: Engine, shelf: Shelf | None, event: Any) -> tuple[Outcome, str | None]:
    """Take one event in; what became of it, and why, where that is not plain.

    Without a shelf, events that reach no pipeline are dropped. Raises InputError for what breaks OpenLineage's
    specification, DatabaseUnavailable and Busy if it cannot be accepted now.
    """
    said = read_event(event, datetime.now(UTC) + values.SLACK)
    if isinstance(said, Ignored):
        return "ignored", said.reason
    outcomes = set(ledger.receive(engine, said).values())
    if outcomes:
        return next(outcome for outcome in _BY_WEIGHT if outcome in outcomes), None
    if shelf is not None:
        shelf.put(event)
    return "unmatched", f"no active pipeline has the external id {said.job!r} and the namespace {said.namespace!r}"


def replay(engine: Engine, shelf: Shelf) -> dict[Outcome, int]:
    """Take all events from the shelf in again: their pipelines may be in the inventory by now. They stay kept."""
    counts: dict[Outcome, int] = {}
    for event in shelf.events():
        outcome, _ = receive(engine, None, event)
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def jobs(shelf: Shelf) -> list[dict[str, Any]]:
    """The jobs on the shelf: `namespace`, `job`, `events`, `last_event`; those heard last come first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in shelf.events():
        said = read_event(event, datetime.now(UTC) + values.SLACK)
        if isinstance(said, Ignored):
            continue
        row = found.setdefault(
            (said.namespace, said.job),
            {"namespace": said.namespace, "job": said.job, "events": 0, "last_event": said.at},
        )
        row["events"] += 1
        row["last_event"] = max(row["last_event"], said.at)
    return sorted(found.values(), key=lambda row: row["last_event"], reverse=True)
