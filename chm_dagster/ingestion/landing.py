"""The raw data of partners: one folder per ingestion, so that it can be mapped again.

A folder holds `records/<connection>.jsonl.gz` (pages, runs that are gone, and how reading each pipeline ended, in the
order of arrival), `rejected.jsonl` (records that are not runs, with the reason), `report.json` (the outcome of
everything) and, for `chm ingest`, `progress.jsonl`. A file that cannot be written or read raises StorageUnavailable.
"""

import dataclasses
import gzip
import json
import re
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote
from uuid import UUID

import orjson

from chm_dagster.domain.runs import OpenRun, Rejection, RunKind
from chm_dagster.domain.sync import SyncErrorCode, error_code, partner_error
from chm_dagster.errors import InputError, StorageUnavailable
from chm_dagster.partners.port import PipelinesFailed, PipelinesSynced, RecordBatch, RunsNotFound, SyncEvent

_RECORDS, _REJECTED, _REPORT = "records", "rejected.jsonl", "report.json"
_SUFFIX = ".jsonl.gz"
_PROGRESS = "progress.jsonl"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_OWN_NAME = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{8}T\d{6}-[0-9a-f]{8}")
"""The id of a Dagster run, or a `new_name`."""


class Landing:
    """The folder of one ingestion. Reading a file that does not exist yields nothing; it is not an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def writer(self, connection: str) -> Iterator["LandingWriter"]:
        """Write this connection's file of records from its beginning."""
        path = self._records(connection)
        with storage_errors(path):
            self._make_folder()
            path.parent.mkdir(exist_ok=True)
            # The lowest level: the file is written during ingestion and rarely read.
            file = gzip.GzipFile(path, "wb", compresslevel=1)
        writer = LandingWriter(path, file)
        try:
            yield writer
        except BaseException:
            with suppress(OSError):
                file.close()
            raise
        with storage_errors(path):
            file.close()

    def events(self, connection: str) -> Iterator[SyncEvent]:
        """What this connection's feed reported, in order."""
        return (_event(line) for line in _lines(self._records(connection)))

    def connections(self) -> list[str]:
        """Names of the connections that were asked."""
        return sorted(unquote(path.name.removesuffix(_SUFFIX)) for path in self.folder.glob(f"{_RECORDS}/*{_SUFFIX}"))

    def count_records(self, leaving_out: Container[str] = ()) -> int:
        """How many records the partners sent, and runs they no longer have, counted from the files alone."""
        connections = (connection for connection in self.connections() if connection not in leaving_out)
        lines = (line for connection in connections for line in _lines(self._records(connection)))
        return sum(len(line.get("records", ())) + len(line.get("runs", ())) for line in lines)

    @contextmanager
    def rejections(self) -> Iterator[Callable[[str, Rejection], None]]:
        """Keep rejected records, each with the key of its pipeline, behind those already kept.

        Several connections may do so at the same time. The file is made when there is a first one.
        """
        path = self.folder / _REJECTED
        with ExitStack() as stack:
            files: list[BinaryIO] = []

            def keep(key: str, rejection: Rejection) -> None:
                line = {"pipeline": key, "reason": rejection.reason, "record": rejection.record}
                with storage_errors(path):
                    if not files:
                        self._make_folder()
                        # Unbuffered: each line is one write, so that the lines of two connections do not mix.
                        files.append(stack.enter_context(path.open("ab", buffering=0)))
                    files[0].write(orjson.dumps(line, default=str) + b"\n")

            yield keep

    def save_report(self, report: object) -> None:
        """Write the report, a dataclass or plain data, atomically."""
        path = self.folder / _REPORT
        with storage_errors(path):
            self._make_folder()
            temporary = self.folder / (_REPORT + ".new")
            temporary.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
            temporary.replace(path)

    def report(self) -> dict[str, Any] | None:
        """The saved report, or None if this ingestion did not get that far."""
        path = self.folder / _REPORT
        if not path.exists():
            return None
        report: dict[str, Any] = orjson.loads(path.read_bytes())
        return report

    @contextmanager
    def progress(self) -> Iterator[Callable[[int, int], None]]:
        """A function that notes how many more pipelines and records have been read; see `read_progress`."""
        path = self.folder / _PROGRESS
        with storage_errors(path):
            self._make_folder()
            stream = path.open("ab", buffering=0)

        def note(pipelines: int, records: int) -> None:
            # A failure to write progress must not stop the ingestion.
            with suppress(OSError):
                stream.write(orjson.dumps([pipelines, records]) + b"\n")

        with stream:
            yield note

    def read_progress(self, offset: int) -> tuple[list[tuple[int, int]], int]:
        """What `progress` noted since this offset, and the offset to go on from."""
        path = self.folder / _PROGRESS
        if not path.exists():
            return [], offset
        with path.open("rb") as stream:
            stream.seek(offset)
            whole, newline, _ = stream.read().rpartition(b"\n")
        steps = [(int(pipelines), int(records)) for pipelines, records in map(orjson.loads, whole.splitlines())]
        return steps, offset + len(whole) + len(newline)

    @property
    def removable(self) -> bool:
        """Whether this is a folder that CHM made: by its name, and because nothing else is in it."""
        own = {_RECORDS, _REJECTED, _REPORT, _REPORT + ".new", _PROGRESS}
        named = _OWN_NAME.fullmatch(self.folder.name) is not None
        return named and not self.folder.is_symlink() and {path.name for path in self.folder.iterdir()} <= own

    def _make_folder(self) -> None:
        # Records are stored before secrets are masked, so the folder is private whatever the mode of the home.
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _records(self, connection: str) -> Path:
        return self.folder / _RECORDS / (quote(connection, safe="") + _SUFFIX)


class LandingWriter:
    """Appends to a connection's file of records."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self._path, self._file = path, file

    def add(self, event: SyncEvent) -> None:
        """Keep what the feed reported."""
        with storage_errors(self._path):
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
        """The newest ingestion that has a report."""
        reports = sorted(self._root.glob(f"*/{_REPORT}"), key=lambda path: path.stat().st_mtime)
        return Landing(reports[-1].parent) if reports else None

    def prune(self, now: datetime) -> int:
        """Remove CHM's own folders that are older than the time to keep; returns how many."""
        removed = 0
        for folder in self._root.iterdir() if self._root.exists() else ():
            age = now - datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            if folder.is_dir() and age > self._keep and Landing(folder).removable:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one clear message."""
    try:
        yield
    except EOFError:
        raise StorageUnavailable(f"{path} is cut short; read the partner again") from None
    except OSError as error:
        raise StorageUnavailable(f"{path}: {error.strerror or error}; check free space and rights") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with storage_errors(path), gzip.open(path, "rb") as file:
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


def _line(event: SyncEvent) -> dict[str, Any]:
    if isinstance(event, RecordBatch):
        return {"kind": "page", "observed_at": event.observed_at, "records": event.records}
    if isinstance(event, PipelinesSynced):
        # One level deep: copying ten thousand ids first would take longer than writing them.
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        return {"kind": "done", **fields, "overlap": event.overlap.total_seconds()}
    if isinstance(event, RunsNotFound):
        return {"kind": "gone", **dataclasses.asdict(event)}
    code = error_code(event.error)
    return {"kind": "failed", "external_ids": event.external_ids, "error": str(event.error), "code": code}


def _event(line: dict[str, Any]) -> SyncEvent:
    if line["kind"] == "page":
        records = [(external_id, record) for external_id, record in line["records"]]
        return RecordBatch(records, datetime.fromisoformat(line["observed_at"]))
    if line["kind"] == "done":
        through, observed, server = (_time(line.get(name)) for name in ("synced_through", "observed_at", "server_time"))
        assert through is not None and observed is not None  # noqa: S101 - `_line` writes both
        overlap, unread = timedelta(seconds=line["overlap"]), line.get("unread", {})
        return PipelinesSynced(line["external_ids"], through, observed, server, overlap, unread)
    if line["kind"] == "gone":
        runs = [_open_run(run) for run in line["runs"]]
        return RunsNotFound(line["external_id"], runs, datetime.fromisoformat(line["observed_at"]))
    return PipelinesFailed(line["external_ids"], partner_error(SyncErrorCode(line["code"]), line["error"]))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


_OPEN_RUN_TIMES = ("started_at", "source_version", "queued_at")


def _open_run(data: dict[str, Any]) -> OpenRun:
    times = {name: datetime.fromisoformat(data[name]) for name in _OPEN_RUN_TIMES if data.get(name)}
    kind = RunKind(data["kind"]) if data.get("kind") else None
    return OpenRun(**{**data, **times, "kind": kind})


def new_name(now: datetime, unique: UUID) -> str:
    """A folder's name for an ingestion outside of Dagster: sorts by time."""
    return f"{now:%Y%m%dT%H%M%S}-{unique.hex[:8]}"
