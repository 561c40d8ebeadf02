"""Files of runs: CSV as spreadsheets write it, JSON lines, JSON arrays, and documents of dbt and Jenkins.

CSV and JSON lines are read as a stream, however long. Every row ends as a record or as a problem with its line; only
what spoils the file as a whole raises.
"""

import csv
import dataclasses
import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import BufferedReader, BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import orjson

from chm_dagster.errors import InputError

_DBT_FAILED = frozenset({"error", "fail", "runtime error", "partial success"})
_JENKINS_WORDS = {"NOT_BUILT": "skipped"}
_JENKINS_TREE = "?tree=builds[number,result,building,timestamp,duration,url]"


def records_of(document: Mapping[str, Any]) -> Iterator[Any]:
    """The runs in a document, each as a record. Raises InputError for a document of an unknown kind."""
    if _is_dbt(document):
        yield _dbt_run(document)
    elif isinstance(builds := document.get("allBuilds", document.get("builds")), list):
        yield from (_jenkins_build(build) for build in builds)
    elif "number" in document and "building" in document:
        yield _jenkins_build(document)
    elif _is_run(document):
        yield document
    else:
        raise InputError(
            "FILE",
            "is one JSON object, but neither a run nor a file of dbt or Jenkins; write the runs as an array, or as one"
            " object on each line",
        )


def _is_run(document: Mapping[str, Any]) -> bool:
    return any(name in document for name in ("id", "run_id", "external_run_id", "databaseId"))


def _is_dbt(document: Mapping[str, Any]) -> bool:
    metadata = document.get("metadata")
    schema = metadata.get("dbt_schema_version") if isinstance(metadata, dict) else None
    return isinstance(schema, str) and "/run-results/" in schema and isinstance(document.get("results"), list)


def _dbt_run(document: Mapping[str, Any]) -> dict[str, Any]:
    """An invocation of dbt is one run. It failed if any of its nodes failed, which is when dbt's exit code says so."""
    metadata = document["metadata"]
    results = [result for result in document["results"] if isinstance(result, dict)]
    if not results:
        raise InputError("FILE", "is dbt's run_results.json without any result; dbt has run nothing")
    failed = [result for result in results if result.get("status") in _DBT_FAILED]
    skipped = all(result.get("status") == "skipped" for result in results)
    finished, took = metadata.get("generated_at"), document.get("elapsed_time")
    return {
        "id": metadata.get("invocation_id"),
        "status": "failed" if failed else "skipped" if skipped else "success",
        "started_at": _earliest(results) or _before(finished, took),
        "finished_at": finished,
        "duration_seconds": took,
        "error_message": _dbt_message(failed[0]) if failed else None,
        "dbt_version": metadata.get("dbt_version"),
        "nodes": len(results),
        "failed_nodes": len(failed) or None,
    }


def _dbt_message(result: Mapping[str, Any]) -> str:
    message = result.get("message")
    return f"{result.get('unique_id')}: {message or result.get('status')}"


def _earliest(results: Sequence[Mapping[str, Any]]) -> str | None:
    """The first start of a node; dbt writes all of them in UTC and in one form, so that they sort as text."""
    timings = (timing for result in results for timing in result.get("timing") or () if isinstance(timing, dict))
    starts = [timing["started_at"] for timing in timings if isinstance(timing.get("started_at"), str)]
    return min(starts, default=None)


def _before(finished: object, seconds: object) -> str | None:
    if not isinstance(finished, str) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return (datetime.fromisoformat(finished.replace("Z", "+00:00")) - timedelta(seconds=seconds)).isoformat()
    except (ValueError, OverflowError):
        return None


def _jenkins_build(build: Any) -> Any:
    if not isinstance(build, dict) or ("result" not in build and "building" not in build):
        raise InputError("FILE", f"lists builds without their results; ask Jenkins for api/json{_JENKINS_TREE}")
    started, took = _milliseconds(build.get("timestamp")), _milliseconds(build.get("duration"))
    running, result = build.get("building") is True, build.get("result")
    return {
        "id": build.get("number"),
        "status": "running" if running else _JENKINS_WORDS.get(str(result), result),
        "started_at": _utc(started),
        "finished_at": None if running or not started or not took else _utc(started + took),
        "url": build.get("url"),
        "result": result,
    }


def _milliseconds(value: object) -> float | None:
    # Jenkins writes 0 where it knows nothing.
    return value / 1000 if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _utc(seconds: float | None) -> str | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


MAX_CHARS = 4 * 1024 * 1024
"""Of a field or a line. What is longer is a quote that nobody closed, or no text file at all."""
MAX_JSON_BYTES = 256 * 2**20
"""Of a JSON array or document, which is read as a whole."""
_PEEK = 64
_NO_OBJECT = "not an object; send one JSON object for each run"
_EXCERPT = 2_000
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SEP = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
_NO_TEXT = re.compile("[\ud800-\udfff]")


Check = Callable[[Sequence[str]], None]


class Shape(enum.StrEnum):
    """The format of a file."""

    CSV = "csv"
    JSONL = "jsonl"
    JSON = "json"


_SUFFIXES = {
    ".csv": Shape.CSV,
    ".tsv": Shape.CSV,
    ".jsonl": Shape.JSONL,
    ".ndjson": Shape.JSONL,
    ".json": Shape.JSON,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The content of a file from this line on: a record, or, if `problem` says why it is none, its text.

    In a JSON array, `line` is the number of the item.
    """

    line: int
    record: Any
    problem: str | None = None


def shape_of(name: str) -> Shape:
    """The format of a file of this name. Raises InputError for an unknown suffix."""
    shape = _SUFFIXES.get(Path(name).suffix.lower())
    if shape is None:
        raise InputError(
            "FILE", f"{name!r} ends in none of {', '.join(_SUFFIXES)}; name the format with --as csv, jsonl or json"
        )
    return shape


def read_rows(stream: BufferedReader, shape: Shape, check: Check) -> Iterator[Row]:
    """The rows of a file. `check` is called with the header of a CSV file; it raises InputError to refuse it."""
    if shape is Shape.CSV:
        return read_csv(stream, check)
    return read_json(stream) if shape is Shape.JSON or _is_array(stream) else read_json_lines(stream)


def _is_array(stream: BufferedReader) -> bool:
    return stream.peek(_PEEK)[:_PEEK].removeprefix(_BOMS[0][0]).lstrip().startswith(b"[")


def read_json(stream: BufferedReader) -> Iterator[Row]:
    """The items of one array, or the runs of one document. JSON lines under the wrong name are read as such."""
    raw = stream.read(MAX_JSON_BYTES + 1).removeprefix(_BOMS[0][0])
    if len(raw) > MAX_JSON_BYTES:
        raise InputError(
            "FILE",
            f"is larger than {MAX_JSON_BYTES // 2**20} MB; write one object on each line, as `jq -c '.[]' FILE` does",
        )
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if len(raw.splitlines()) < 2 or _object(1, raw.splitlines()[0]).problem is not None:
            raise InputError("FILE", f"is not JSON: {error.msg} at line {error.lineno}") from None
        yield from read_json_lines(BufferedReader(BytesIO(raw)))
        return
    items = value if isinstance(value, list) else records_of(value) if isinstance(value, dict) else [value]
    for number, item in enumerate(items, 1):
        yield Row(number, item, None if isinstance(item, dict) else _NO_OBJECT)


def read_json_lines(stream: BufferedReader) -> Iterator[Row]:
    """One object for each line; blank lines are skipped."""
    number = 0
    while line := stream.readline(MAX_CHARS + 1):
        number += 1
        if len(line) > MAX_CHARS:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_CHARS)
            yield Row(number, "", f"longer than {MAX_CHARS} bytes; send one object on each line")
            continue
        text = line.removeprefix(_BOMS[0][0]) if number == 1 else line
        if text.strip():
            yield _object(number, text)


def _object(number: int, line: bytes) -> Row:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Row(number, line.decode(errors="replace").strip()[:_EXCERPT], f"not JSON: {error.msg}")
    if not isinstance(record, dict):
        return Row(number, record, _NO_OBJECT)
    return Row(number, record)


def read_csv(stream: BufferedReader, check: Check) -> Iterator[Row]:
    """One record of texts for each row under the header, without its empty cells; empty rows are skipped.

    UTF-8, or what a byte order mark says. Separated by commas, semicolons or tabs, whichever the header has most of.
    """
    text = TextIOWrapper(stream, newline="", **_coding(stream))
    try:
        yield from _csv_rows(text, check)
    finally:
        # The stream is closed by its owner.
        text.detach()


def _csv_rows(text: TextIOWrapper, check: Check) -> Iterator[Row]:
    first = text.readline(MAX_CHARS + 1)
    spoken = _SEP.fullmatch(first)
    if spoken is not None:
        first = text.readline(MAX_CHARS + 1)
    delimiter = spoken[1] if spoken is not None else _delimiter(first)
    csv.field_size_limit(MAX_CHARS)
    # Strict: an unclosed quote is an error, not a row that swallows the rest of the file.
    reader = csv.reader(_lines(first, text), delimiter=delimiter, strict=True)
    names = _header(reader)
    check(names)
    before = 1 if spoken is not None else 0
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, None, f"not CSV: {error}; check the quotes of this row")
            continue
        if any(cells):
            yield _record(line, names, cells)


def _coding(stream: BufferedReader) -> dict[str, Any]:
    start = stream.peek(3)
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return {"encoding": encoding, "errors": "surrogateescape" if encoding == "utf-8-sig" else "replace"}
    return {"encoding": "utf-8", "errors": "surrogateescape"}


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=bare.count)


def _lines(first: str, rest: TextIOWrapper) -> Iterator[str]:
    line = first
    while line:
        if len(line) > MAX_CHARS:
            raise InputError("FILE", f"holds a line of more than {MAX_CHARS} characters; is it a CSV file?")
        yield line
        line = rest.readline(MAX_CHARS + 1)


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        names = [header_name(title) for title in next(reader, [])]
    except csv.Error as error:
        raise InputError("header", f"not CSV: {error}") from None
    if not any(names):
        raise InputError("header", "missing; name the columns in the first line, such as id,status,started_at")
    for name in names:
        if name and names.count(name) > 1:
            raise InputError("header", f"names the column {name} twice; leave one of them out")
    return names


def _record(line: int, names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names) and (len(cells) < len(names) or any(cells[len(names) :])):
        return Row(line, cells, f"has {len(cells)} cells where the header names {len(names)}")
    record = {name: cell for name, cell in zip(names, cells, strict=False) if name and cell and not cell.isspace()}
    if not all(cell.isascii() for cell in record.values()) and _NO_TEXT.search("".join(record.values())):
        return Row(line, cells, "holds bytes that are not UTF-8; save the file as UTF-8")
    return Row(line, record)


def header_name(title: str) -> str:
    """A column's title as a field: ` Started At ` -> `started_at`."""
    return re.sub(r"[\s-]+", "_", title.strip().lower())
