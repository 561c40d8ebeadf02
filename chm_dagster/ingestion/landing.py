"""What partners said, kept as they said it: one folder for each ingestion, so that it can be mapped again.

A folder holds `records/<connection>.jsonl.gz` (pages, runs that are gone, and how each pipeline's pass ended, in the
order of arrival),
`rejected.jsonl` (the records that are not runs, with the reason) and `report.json` (what became of everything).
"""

import dataclasses
import gzip
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import orjson

from chm_dagster.domain.runs import OpenRun, Rejection
from chm_dagster.errors import InputError, Permanent
from chm_dagster.partners.port import Done, Failed, Gone, Page

_RECORDS, _REJECTED, _REPORT = "records", "rejected.jsonl", "report.json"
_SUFFIX = ".jsonl.gz"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Landing:
    """One ingestion's folder. Reading what was never written gives nothing; it is not an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def writer(self, connection: str) -> "LandingWriter":
        """Start the file of this connection's records anew. Use as a context manager."""
        path = self._records(connection)
        self._make_folder()
        path.parent.mkdir(exist_ok=True)
        return LandingWriter(path)

    def events(self, connection: str) -> Iterator[Page | Done | Failed | Gone]:
        """What this connection's feed said, in order."""
        return (_event(line) for line in _lines(self._records(connection)))

    def connections(self) -> list[str]:
        """Names of the connections that were asked."""
        return sorted(unquote(path.name.removesuffix(_SUFFIX)) for path in self.folder.glob(f"{_RECORDS}/*{_SUFFIX}"))

    def count_records(self) -> int:
        """How many records the partners sent, and runs they have no more, told by the files alone."""
        lines = (line for connection in self.connections() for line in _lines(self._records(connection)))
        return sum(len(line.get("records", ())) + len(line.get("runs", ())) for line in lines)

    def save_rejections(self, rejections: Iterable[tuple[str, Rejection]]) -> None:
        """Keep rejected records, each with the key of its pipeline, behind those already kept."""
        with (self.folder / _REJECTED).open("ab") as file:
            for key, rejection in rejections:
                line = {"pipeline": key, "reason": rejection.reason, "record": rejection.record}
                file.write(orjson.dumps(line, default=str) + b"\n")

    def save_report(self, report: dict[str, Any]) -> None:
        """Write the report in one step: it is whole or not there."""
        self._make_folder()
        temporary = self.folder / (_REPORT + ".new")
        temporary.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        temporary.replace(self.folder / _REPORT)

    def report(self) -> dict[str, Any] | None:
        """The report as saved; None if this ingestion did not get that far."""
        path = self.folder / _REPORT
        if not path.exists():
            return None
        report: dict[str, Any] = orjson.loads(path.read_bytes())
        return report

    def _make_folder(self) -> None:
        # Records are kept as they came, before secrets are masked: nobody else may walk in, whatever the home allows.
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _records(self, connection: str) -> Path:
        return self.folder / _RECORDS / (quote(connection, safe="") + _SUFFIX)


class LandingWriter:
    """Appends to a connection's file of records."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: gzip.GzipFile | None = None

    def __enter__(self) -> "LandingWriter":
        # The lowest level: the file is written on the way to the database and seldom read.
        self._file = gzip.open(self._path, "wb", compresslevel=1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None  # noqa: S101 - only used as a context manager
        self._file.close()

    def add(self, event: Page | Done | Failed | Gone) -> None:
        """Keep what the feed said."""
        assert self._file is not None  # noqa: S101 - only used as a context manager
        self._file.write(_encode(_line(event)) + b"\n")


class LandingZone:
    """All ingestions' folders, the newest of which are kept."""

    def __init__(self, root: Path, keep: timedelta = timedelta(days=7)) -> None:
        self._root = root
        self._keep = keep

    def open(self, name: str) -> Landing:
        """The folder of this name, made when it is first written to. Raises InputError for a name that is a path."""
        if not _NAME.fullmatch(name) or name in {".", ".."}:
            raise InputError("landing", "use letters, digits, dots, dashes and underscores only")
        return Landing(self._root / name)

    def newest(self) -> Landing | None:
        """The last ingestion that got as far as its report."""
        reports = sorted(self._root.glob(f"*/{_REPORT}"), key=lambda path: path.stat().st_mtime)
        return Landing(reports[-1].parent) if reports else None

    def prune(self, now: datetime) -> int:
        """Remove folders older than the time to keep; returns how many."""
        removed = 0
        for folder in self._root.iterdir() if self._root.exists() else ():
            age = now - datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            if folder.is_dir() and age > self._keep:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with gzip.open(path, "rb") as file:
            for line in file:
                yield _decode(line)


def _encode(line: dict[str, Any]) -> bytes:
    """One line. orjson is strict: lone surrogates, huge integers and deep nesting need the slower way."""
    try:
        return orjson.dumps(line)
    except orjson.JSONEncodeError:
        pass
    try:
        return json.dumps(line, default=_iso).encode()
    except RecursionError:
        # A hostile record is nested beyond what Python can write. It becomes a record that mapping rejects. Only a
        # page holds such records: what the ledger knows of a run has been through the mapping.
        records = [(external_id, _writable(record)) for external_id, record in line["records"]]
        return json.dumps({**line, "records": records}, default=_iso).encode()


def _decode(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)


def _writable(record: Any) -> Any:
    try:
        json.dumps(record)
    except RecursionError:
        return "a record nested too deeply to be kept"
    return record


def _iso(value: datetime) -> str:
    return value.isoformat()


def _line(event: Page | Done | Failed | Gone) -> dict[str, Any]:
    if isinstance(event, Page):
        return {"kind": "page", "observed_at": event.observed_at, "records": event.records}
    if isinstance(event, Done):
        return {"kind": "done", **dataclasses.asdict(event)}
    if isinstance(event, Gone):
        return {"kind": "gone", **dataclasses.asdict(event)}
    return {"kind": "failed", "external_ids": event.external_ids, "error": str(event.error)}


def _event(line: dict[str, Any]) -> Page | Done | Failed | Gone:
    if line["kind"] == "page":
        records = [(external_id, record) for external_id, record in line["records"]]
        return Page(records, datetime.fromisoformat(line["observed_at"]))
    if line["kind"] == "done":
        times = (datetime.fromisoformat(line[name]) for name in ("synced_through", "observed_at"))
        return Done(line["external_ids"], *times)
    if line["kind"] == "gone":
        runs = [_open_run(run) for run in line["runs"]]
        return Gone(line["external_id"], runs, datetime.fromisoformat(line["observed_at"]))
    return Failed(line["external_ids"], Permanent(line["error"]))


def _open_run(data: dict[str, Any]) -> OpenRun:
    times = {name: data[name] and datetime.fromisoformat(data[name]) for name in ("started_at", "source_version")}
    return OpenRun(**{**data, **times})


def new_name(now: datetime, unique: UUID) -> str:
    """A folder's name for an ingestion outside of Dagster: sorts by time."""
    return f"{now:%Y%m%dT%H%M%S}-{unique.hex[:8]}"
