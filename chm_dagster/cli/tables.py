"""Tables that a person takes in at a glance, also on a terminal of 80 columns."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chm_dagster.cli.moments import age, span

_GAP = 2
_LEAST = 12
"""No column is cut shorter than this."""

STYLES = {
    "success": "green",
    "healthy": "green",
    "fixed": "green",
    "failed": "bold red",
    "failing": "bold red",
    "regression": "bold red",
    "still failing": "red",
    "new": "cyan",
    "running": "cyan",
    "canceled": "yellow",
    "skipped": "dim",
    "never ran": "dim",
    "unknown": "dim",
}
_LETTERS = {"S": "green", "F": "bold red"}


class Kind(enum.Enum):
    """How the values of a column are written, where that does not show by their type."""

    PLAIN = enum.auto()
    SECONDS = enum.auto()
    SHARE = enum.auto()
    STRIP = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. On a narrow terminal those of the highest `rank` are left out first, those of rank 0 never.

    An `elastic` one may be cut short: its cells are one line each.
    """

    name: str
    header: str = ""
    rank: int = 0
    elastic: bool = False
    kind: Kind = Kind.PLAIN

    @property
    def title(self) -> str:
        """What stands above the column."""
        return self.header or self.name.replace("_", " ")


def tabulate(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int, title: str = ""
) -> RenderableType:
    """The rows as a table of at most `width` cells, as far as leaving out and cutting columns can bring it there."""
    if not rows:
        nothing = Text("nothing", style="dim")
        return Text.assemble((f"{title}: ", "italic"), nothing) if title else nothing
    columns = columns or [Column(name) for name in rows[0]]
    now = datetime.now(UTC)
    cells = {c.name: [_one_line(cell(row.get(c.name), now, c.kind), c) for row in rows] for c in columns}
    widths = {c.name: max(cell_len(c.title), *(text.cell_len for text in cells[c.name])) for c in columns}
    shown = _fitting(list(columns), widths, width)
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in shown:
        _add_column(table, column, widths[column.name], rows)
    for number in range(len(rows)):
        table.add_row(*(cells[column.name][number] for column in shown))
    return table


def _one_line(text: Text, column: Column) -> Text:
    return Text(" ".join(text.plain.split()), style=text.style) if column.elastic and text.plain else text


def _fitting(columns: list[Column], widths: dict[str, int], width: int) -> list[Column]:
    """The columns that have room side by side. Elastic ones become narrower in `widths`, others have to go."""

    def excess() -> int:
        return sum(widths[c.name] for c in columns) + _GAP * (len(columns) - 1) - width

    def yielding(column: Column) -> int:
        return max(0, widths[column.name] - max(_LEAST, cell_len(column.title))) if column.elastic else 0

    while excess() > sum(map(yielding, columns)) and any(c.rank for c in columns):
        highest = max(c.rank for c in columns)
        columns.remove([c for c in columns if c.rank == highest][-1])
    for column in sorted(columns, key=lambda c: -widths[c.name]):
        widths[column.name] -= min(yielding(column), max(0, excess()))
    return columns


def _add_column(table: Table, column: Column, width: int, rows: Sequence[Mapping[str, Any]]) -> None:
    values = [row.get(column.name) for row in rows]
    number = any(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if column.elastic:
        table.add_column(column.title, justify="left", no_wrap=True, overflow="ellipsis", width=width)
    else:
        table.add_column(column.title, justify="right" if number else "left", overflow="fold")


def describe(fields: Mapping[str, Any], title: str = "") -> RenderableType:
    """One thing: its fields below each other, with whole times."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    now = datetime.now(UTC)
    for name, value in fields.items():
        shown = cell(value, now, Kind.SECONDS if name == "duration_seconds" else Kind.PLAIN)
        if isinstance(value, datetime):
            shown = Text.assemble(f"{value:%Y-%m-%d %H:%M:%S} UTC", (f"  {age(value, now)}", "dim"))
        table.add_row(name.replace("_", " "), shown)
    return table


def cell(value: Any, now: datetime, kind: Kind = Kind.PLAIN) -> Text:
    """A value as people read it. Text, not markup: a name such as [red] is shown as it is."""
    if value is None or value == {}:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no", style="" if value else "dim")
    if isinstance(value, datetime):
        return Text(age(value, now))
    if isinstance(value, int | float):
        return _number(value, kind)
    if isinstance(value, Mapping):
        import orjson

        return Text(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode())
    text = harmless(str(value))
    if kind is Kind.STRIP:
        return Text.assemble(*((letter, _LETTERS.get(letter, "dim")) for letter in text))
    return Text(text, style=STYLES.get(text, ""))


def harmless(text: str) -> str:
    """The text without what a terminal would obey rather than show: partners and people choose the texts."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _number(value: float, kind: Kind) -> Text:
    if kind is Kind.SECONDS:
        return Text(span(value))
    if kind is Kind.SHARE:
        return Text(f"{value:.0%}")
    return Text("0", style="dim") if value == 0 else Text(f"{value:,}" if isinstance(value, int) else f"{value:.3g}")
