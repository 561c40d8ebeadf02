"""How `chm` answers: tables for people, JSON or YAML for programs, one line for an error."""

import dataclasses
import enum
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from chm_dagster.cli.tables import Column, describe, harmless, tabulate

console = Console()
"""Answers."""
errors = Console(stderr=True)
"""Errors and progress: never mixed into an answer that a program reads."""


class Format(enum.StrEnum):
    """How an answer is written. The default is a table on a terminal, JSON in a pipe."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


FormatOption = Annotated[
    Format | None, typer.Option("--format", help="How to answer; a table on a terminal, JSON in a pipe if left out.")
]


def chosen(wanted: Format | None) -> Format:
    """The format that was asked for, or the one that fits where the answer goes."""
    return wanted or (Format.TABLE if sys.stdout.isatty() else Format.JSON)


def show(data: Any, wanted: Format | None, title: str = "", columns: Sequence[Column] = ()) -> None:
    """Write rows (a list of mappings) or one mapping. A table shows these columns only, or all if none are named."""
    form = chosen(wanted)
    if form is Format.JSON:
        sys.stdout.write(orjson.dumps(data, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif form is Format.YAML:
        import yaml

        plain = orjson.loads(orjson.dumps(data, default=str))
        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    elif isinstance(data, Mapping):
        console.print(describe(data, title))
    else:
        console.print(tabulate(data, columns, console.width, title))


def say(sentence: str, style: str = "") -> None:
    """Write one line for a person, as it is: a name such as [red] means nothing here."""
    console.print(harmless(sentence), style=style, markup=False, highlight=False, soft_wrap=True)


def answer(sentence: str, row: Mapping[str, Any], wanted: Format | None) -> None:
    """What a command has done: a sentence for a person, the thing itself for a program."""
    if chosen(wanted) is Format.TABLE:
        say(sentence)
    else:
        show(row, wanted)


def complain(message: str) -> None:
    """Write an error, line by line."""
    for line in message.splitlines():
        errors.print(f"chm: {harmless(line)}", style="red", markup=False, highlight=False, soft_wrap=True)


def as_row(item: Any, *first: tuple[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass as a row, behind `first`."""
    return {**dict(first), **{field.name: getattr(item, field.name) for field in dataclasses.fields(item)}}


def without(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The row without these columns."""
    left_out = frozenset(names)
    return {name: value for name, value in row.items() if name not in left_out}
