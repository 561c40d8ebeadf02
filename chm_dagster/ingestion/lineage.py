"""Receives OpenLineage events: into the ledger, or, if no pipeline of the inventory matches, into a store for later.

An event is accepted only once it is durable: committed in Postgres, or flushed to the store's file of the day.
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
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger import lineage as ledger

log = logging.getLogger(__name__)

Outcome = Literal["inserted", "updated", "unchanged", "stale", "unmatched", "ignored"]

# The most important outcome first: whether any part of the event was news.
_BY_WEIGHT: tuple[Outcome, ...] = ("inserted", "updated", "stale", "unchanged", "ignored")


class UnmatchedEvents:
    """Events whose job matches no pipeline of the inventory, kept for `keep` with secrets masked.

    `room` is the maximum size of one day's file in bytes. Files are private to their owner.
    """

    def __init__(self, folder: Path, *, keep: timedelta = timedelta(days=7), room: int = 256_000_000) -> None:
        self.folder = folder
        self._keep = keep
        self._room = room
        self._lock = threading.Lock()

    def put(self, event: dict[str, Any]) -> None:
        """Store an event durably. Raises Busy if the day's file is full or cannot be written."""
        line = orjson.dumps(values.clean_json(event)) + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                log.error("cannot write unmatched events to %s: %s", self.folder, error.strerror)
                raise Busy("unmatched events cannot be stored now; the log says why") from None

    def _append(self, line: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
        if not path.exists():
            self._prune(datetime.now(UTC))
        with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
            size = file.tell()
            if size + len(line) > self._room:
                raise Busy("the store of unmatched events is full for today; add their pipelines")
            # A crash or a full disk may have truncated the last line: the new line must not be appended to it.
            is_cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" + line if is_cut else line)
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> Iterator[dict[str, Any]]:
        """All stored events, oldest first. A line that was truncated by a crash is skipped."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    try:
                        yield orjson.loads(line)
                    except orjson.JSONDecodeError:
                        log.warning("%s: skipped a truncated line", path.name)

    def _prune(self, now: datetime) -> None:
        for path in self.folder.glob("*.jsonl"):
            if now - datetime.fromtimestamp(path.stat().st_mtime, UTC) > self._keep:
                path.unlink(missing_ok=True)


def receive(engine: Engine, unmatched: UnmatchedEvents | None, event: Any) -> tuple[Outcome, str | None]:
    """Process one event. Returns its outcome, with a reason where it is not obvious.

    If `unmatched` is None, events that match no pipeline are dropped. Raises InputError if the event violates
    OpenLineage's specification, DatabaseUnavailable or Busy if it cannot be accepted now.
    """
    said = read_event(event, datetime.now(UTC) + values.SLACK)
    if isinstance(said, Ignored):
        return "ignored", said.reason
    outcomes = set(ledger.receive(engine, said).values())
    if outcomes:
        return next(outcome for outcome in _BY_WEIGHT if outcome in outcomes), None
    if unmatched is not None:
        unmatched.put(event)
    return "unmatched", f"no active pipeline has the external id {said.job!r} and the namespace {said.namespace!r}"


def replay(engine: Engine, unmatched: UnmatchedEvents) -> dict[Outcome, int]:
    """Process all stored events again, because their pipelines may exist by now. The events stay in the store."""
    counts: dict[Outcome, int] = {}
    for event in unmatched.events():
        outcome, _ = receive(engine, None, event)
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def jobs(unmatched: UnmatchedEvents) -> list[dict[str, Any]]:
    """The jobs of all stored events: `namespace`, `job`, `events`, `last_event`; the most recent come first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in unmatched.events():
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
