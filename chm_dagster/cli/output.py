"""How `chm` answers: tables for people, JSON or YAML for programs, one line for an error."""

import enum
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console()
"""Answers."""
errors = Console(stderr=True)
"""Errors and progress: never mixed into an answer that a program reads."""


class Format(enum.StrEnum):
    """How an answer is written. The default is a table on a terminal, JSON in a pipe."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


STYLES = {
    "success": "green",
    "failed": "bold red",
    "running": "cyan",
    "canceled": "yellow",
    "skipped": "dim",
}


def chosen(wanted: Format | None) -> Format:
    """The format that was asked for, or the one that fits where the answer goes."""
    return wanted or (Format.TABLE if sys.stdout.isatty() else Format.JSON)


def show(data: Any, wanted: Format | None, title: str = "") -> None:
    """Write rows (a list of mappings) or one mapping."""
    form = chosen(wanted)
    if form is Format.JSON:
        sys.stdout.write(orjson.dumps(data, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif form is Format.YAML:
        plain = orjson.loads(orjson.dumps(data, default=str))
        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    elif isinstance(data, Mapping):
        console.print(_table([{"": key, title or "value": value} for key, value in data.items()], ""))
    else:
        console.print(_table(data, title) if data else Text("nothing", style="dim"))


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        table.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S}")
    if value == 0 and not isinstance(value, bool):
        return Text("0", style="dim")
    # Text, not markup: a name such as [red] is shown as it is.
    return Text(str(value), style=STYLES.get(str(value), ""))
