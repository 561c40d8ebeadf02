"""Files of runs that people have: CSV as spreadsheets write it, and JSON lines. Read as a stream, however long.

Every row ends as a record or as a problem with its line; only what spoils the file as a whole raises.
"""

import csv
import dataclasses
import enum
import re
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

import orjson

from chm_dagster.errors import InputError

MAX_CHARS = 4 * 1024 * 1024
"""Of a field or a line. What is longer is a quote that nobody closed, or no text file at all."""
_EXCERPT = 2_000
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SEP = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
_NO_TEXT = re.compile("[\ud800-\udfff]")


Check = Callable[[Sequence[str]], None]


class Shape(enum.StrEnum):
    """How a file is written."""

    CSV = "csv"
    JSONL = "jsonl"


_SUFFIXES = {".csv": Shape.CSV, ".tsv": Shape.CSV, ".jsonl": Shape.JSONL, ".ndjson": Shape.JSONL}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What stands in a file from this line on: a record, or, where `problem` says why it is none, its text."""

    line: int
    record: Any
    problem: str | None = None


def shape_of(name: str) -> Shape:
    """How a file of this name is written. Raises InputError if the name does not tell."""
    shape = _SUFFIXES.get(Path(name).suffix.lower())
    if shape is None:
        raise InputError("FILE", f"{name!r} ends neither in .csv nor in .jsonl; say which it is with --as csv or jsonl")
    return shape


def read_rows(stream: BufferedReader, shape: Shape, check: Check) -> Iterator[Row]:
    """The rows of a file. `check` is asked about the header of a CSV file; it raises InputError to refuse it."""
    return read_csv(stream, check) if shape is Shape.CSV else read_json_lines(stream)


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
        if number == 1 and text.lstrip().startswith(b"["):
            raise InputError(
                "FILE", "is one JSON array; send one object on each line, as `jq -c '.[]' FILE` writes them"
            )
        if text.strip():
            yield _object(number, text)


def _object(number: int, line: bytes) -> Row:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Row(number, line.decode(errors="replace").strip()[:_EXCERPT], f"not JSON: {error.msg}")
    if not isinstance(record, dict):
        return Row(number, record, "not an object; send one JSON object for each run")
    return Row(number, record)


def read_csv(stream: BufferedReader, check: Check) -> Iterator[Row]:
    """One record of texts for each row under the header, without its empty cells; empty rows are skipped.

    UTF-8, or what a byte order mark says. Separated by commas, semicolons or tabs, whichever the header has most of.
    """
    text = TextIOWrapper(stream, newline="", **_coding(stream))
    try:
        yield from _csv_rows(text, check)
    finally:
        # The stream is its owner's to close.
        text.detach()


def _csv_rows(text: TextIOWrapper, check: Check) -> Iterator[Row]:
    first = text.readline(MAX_CHARS + 1)
    spoken = _SEP.fullmatch(first)
    if spoken is not None:
        first = text.readline(MAX_CHARS + 1)
    delimiter = spoken[1] if spoken is not None else _delimiter(first)
    csv.field_size_limit(MAX_CHARS)
    # Strict: a quote that nobody closed is an error, not a row that swallows the rest of the file.
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
