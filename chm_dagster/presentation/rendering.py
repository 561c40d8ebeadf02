"""Tables and the status grid: on a terminal, in a width from 80 columns on; as Markdown for the Dagster UI, HTML and
SVG, where nothing in a name or a message is markup.
"""

import html
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chm_dagster.presentation.columns import (
    Column,
    Kind,
    Question,
    Row,
    ago,
    for_people,
    number_text,
    plain_text,
    shapes,
)

_COLUMN_GAP = 2
_LEAST = 12
"""No column becomes narrower than this."""

STYLES = {
    "success": "green",
    "healthy": "green",
    "fixed": "green",
    "failed": "bold red",
    "failing": "bold red",
    "late": "bold yellow",
    "overrunning": "bold yellow",
    "regression": "bold red",
    "still failing": "red",
    "new": "cyan",
    "running": "cyan",
    "canceled": "yellow",
    "skipped": "dim",
    "never ran": "dim",
    "unknown": "dim",
}
_SHAPE_STYLES = {"●": "green", "✕": "bold red", "◐": "cyan", "○": "yellow"}


def tabulate(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], width: int, title: str = "", empty: str = "None."
) -> RenderableType:
    """The rows as a table of at most `width` characters, if dropping and shortening columns can achieve it."""
    if not rows:
        return Text(empty, style="dim")
    columns = [c for c in columns if not c.page_only] or [Column(name) for name in rows[0]]
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
    """The columns that fit next to each other. Elastic ones become narrower in `widths`, others are dropped."""

    def excess() -> int:
        return sum(widths[c.name] for c in columns) + _COLUMN_GAP * (len(columns) - 1) - width

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
    """A single item: its fields below each other, with full times."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    now = datetime.now(UTC)
    for name, value in fields.items():
        shown = cell(value, now, Kind.SECONDS if name == "duration_seconds" else Kind.PLAIN)
        if isinstance(value, datetime):
            shown = Text.assemble(f"{value:%Y-%m-%d %H:%M:%S} UTC", (f"  {ago(value, now)}", "dim"))
        table.add_row(name.replace("_", " "), shown)
    return table


def cell(value: Any, now: datetime, kind: Kind = Kind.PLAIN) -> Text:
    """A value in readable form. Markup in text, such as [red], is shown unchanged."""
    if value is None or value in ({}, []):
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no", style="" if value else "dim")
    if isinstance(value, datetime):
        return Text(ago(value, now))
    if isinstance(value, int | float):
        return _number(value, kind)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return Text(harmless(", ".join(value)))
    if isinstance(value, Mapping | list):
        import orjson

        return Text(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode())
    text = harmless(str(value))
    if kind is Kind.STRIP:
        return Text.assemble(*((shape, _SHAPE_STYLES.get(shape, "dim")) for shape in shapes(text)))
    return Text(text, style=STYLES.get(text, ""))


def harmless(text: str) -> str:
    """The text without control characters that a terminal would execute: partners and people choose the texts."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _number(value: float, kind: Kind) -> Text:
    dimmed = value == 0 and kind is Kind.PLAIN
    return Text(number_text(value, kind), style="dim" if dimmed else "")


SHOWN = 50
"""Rows of a Markdown table at most: metadata is for a glance."""
_HYPHEN = "\u2011"
"""A space at which a line must not break."""
_MARKUP = re.compile(r"[\\`*_\[\]<>&|~#]")
_LINK = re.compile(r"https?://[^\s()<>\[\]|\\\"'`]+", re.ASCII)


def markdown_text(value: object) -> str:
    """A name or a message as text on one line."""
    plain = " ".join(str(value).split())
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", plain)


def markdown_table(rows: Sequence[Row], question: Question) -> str:
    """The rows of a question as a Markdown table with absolute times in UTC; its `empty` sentence if there are none."""
    import pandas as pd

    if not rows:
        return question.empty
    cells = [[_markdown_cell(row.get(c.name), c) for c in question.columns] for row in for_people(rows[:SHOWN])]
    # Without disable_numparse, a pipeline named 007 would be shown as 7.
    frame = pd.DataFrame(cells, columns=[column.title for column in question.columns])
    table = str(frame.to_markdown(index=False, disable_numparse=True))
    return f"{table}\n\n{len(rows) - SHOWN:,} more." if len(rows) > SHOWN else table


def _markdown_cell(value: Any, column: Column) -> str:
    if column.kind is Kind.LINK:
        return f"[open]({value})" if value and _LINK.fullmatch(value) else ""
    if column.kind is Kind.STRIP and value:
        return f"`{plain_text(value, column.kind, None)}`"
    text = markdown_text(plain_text(value, column.kind, None))
    if isinstance(value, datetime):
        return text.replace("-", _HYPHEN)
    return f"**{text}**" if text in ("failing", "late", "overrunning", "regression") else text


def html_table(rows: Sequence[Row], question: Question, now: datetime) -> str:
    """The rows of a question as an HTML table: ages with the exact time in UTC behind them, statuses as classes."""
    if not rows:
        return f'<p class="empty">{html.escape(question.empty)}</p>'
    head = "".join(f'<th scope="col">{html.escape(column.title)}</th>' for column in question.columns)
    body = "".join(
        f"<tr>{''.join(_html_cell(row.get(c.name), c, now) for c in question.columns)}</tr>" for row in for_people(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(value: Any, column: Column, now: datetime) -> str:
    text = html.escape(plain_text(value, column.kind, now))
    if isinstance(value, datetime):
        return f'<td><time datetime="{value.isoformat()}" title="{value:%Y-%m-%d %H:%M:%S} UTC">{text}</time></td>'
    if column.kind is Kind.LINK:
        linked = value and _LINK.fullmatch(value)
        return f'<td><a href="{html.escape(value)}" rel="noreferrer">open</a></td>' if linked else "<td></td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number">{text}</td>'
    if column.name in ("status", "health", "change"):
        return f'<td class="{re.sub("[^a-z]+", "-", text)}">{text}</td>'
    return f"<td>{text}</td>"


RUNS = 30
MAX_PIPELINES = 120
"""A picture with more is neither legible nor small, and every snapshot stores one."""
_SQUARE = "h12v12h-12z"
# Every status has a shape of its own, and red is much darker than green: no eye depends on the colour alone.
_STATUSES = {
    "S": ("success", "#8fc79a", _SQUARE),
    "F": ("failed", "#b5362f", "m1 1l10 10m0-10l-10 10"),
    "R": ("running", "#5a8fc4", f"{_SQUARE}m3 3v6h6v-6z"),
    "C": ("canceled", "#b98a1c", "m0 4h12v4h-12z"),
    "-": ("skipped", "#9aa1a9", "m4 4h4v4h-4z"),
}
_INK, _FAINT, _PAPER = "#24292f", "#667079", "#ffffff"
# All in pixels, from the top left.
_MARGIN, _TOP, _LINE, _GAP, _PITCH = 16, 62, 17, 9, 14
_STRIPS = 276
_AGES = _STRIPS + RUNS * _PITCH + 8
_WIDTH = _AGES + 92
_NAME_CHARS = 40


def worst(rows: Sequence[Row]) -> list[Row]:
    """The pipelines that fit: all of them, or those with the most recent failures, in their original order."""
    if len(rows) <= MAX_PIPELINES:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda n: (-rows[n]["statuses"].count("F"), n))
    return [rows[n] for n in sorted(ranked[:MAX_PIPELINES])]


def status_grid(rows: Sequence[Row], now: datetime) -> str:
    """An SVG of the rows of `recent_runs_by_pipeline`, which come client by client. Ages are counted up to `now`."""
    texts, cells, height = list(_head(len(rows), now)), dict.fromkeys(_STATUSES, ""), _TOP
    for _, group in itertools.groupby(worst(rows), key=lambda row: row["client_slug"]):
        pipelines = list(group)
        texts.append(_text(_MARGIN, height + 10, pipelines[0]["client_name"], chars=80, bold=True))
        for row in pipelines:
            height += _LINE
            texts.extend(_names(row, height + 10, now))
            for place, letter in _strip(row):
                cells[letter] += f"M{_STRIPS + place * _PITCH} {height}{_STATUSES[letter][2]}"
        height += _LINE + _GAP
    paths = "".join(_path(letter, drawn) for letter, drawn in cells.items() if drawn)
    size = f'width="{_WIDTH}" height="{height + _MARGIN}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>{paths}{"".join(texts)}</svg>'
    )


def _strip(row: Row) -> Iterator[tuple[int, str]]:
    """The place and the letter of each run that is drawn; the latest one comes last."""
    letters = row["statuses"][-RUNS:]
    return ((RUNS - len(letters) + n, letter) for n, letter in enumerate(letters) if letter in _STATUSES)


def _head(count: int, now: datetime) -> Iterator[str]:
    shown = f"{count:,} pipelines"
    if count > MAX_PIPELINES:
        shown = f"the {MAX_PIPELINES} pipelines of {count:,} that failed most of late"
    yield _text(_MARGIN, 24, f"Last {RUNS} runs of {shown}", bold=True, chars=90)
    yield _text(_WIDTH - _MARGIN, 24, f"{now:%Y-%m-%d %H:%M} UTC", color=_FAINT, end=True)
    left = _MARGIN
    for letter, (name, _, shape) in _STATUSES.items():
        yield _path(letter, f"M{left} 36{shape}")
        yield _text(left + 17, 46, name, color=_FAINT)
        left += 34 + 7 * len(name)
    yield _text(_AGES, 46, "latest run", color=_FAINT)


def _names(row: Row, baseline: int, now: datetime) -> Iterator[str]:
    settled = [letter for letter in row["statuses"] if letter in "SF"]
    color = _STATUSES["F"][1] if settled[-1:] == ["F"] else _INK
    yield _text(_MARGIN + 10, baseline, row["pipeline_name"], color=color)
    latest = row["latest_run_at"]
    yield _text(_AGES, baseline, ago(latest, now) if latest else "never ran", color=_FAINT)


def _path(letter: str, drawn: str) -> str:
    name, color, _ = _STATUSES[letter]
    # A failure is a cross of two thick lines, everything else a filled shape.
    paint = f'fill="none" stroke="{color}" stroke-width="3"' if letter == "F" else f'fill="{color}" fill-rule="evenodd"'
    return f'<path class="{name}" {paint} d="{drawn}"/>'


def _text(
    left: int, baseline: int, words: str, *, color: str = _INK, bold: bool = False, end: bool = False, chars: int = 0
) -> str:
    """Text as it is, on one line, shortened where it is long; what XML cannot hold is replaced."""
    limit = chars or _NAME_CHARS + 20 * bold
    plain = " ".join(words.split())
    plain = plain if len(plain) <= limit else f"{plain[: limit - 1]}…"
    plain = "".join(c if c.isprintable() else "\ufffd" for c in plain)
    style = (' font-weight="bold"' if bold else "") + (' text-anchor="end"' if end else "")
    return f'<text x="{left}" y="{baseline}" fill="{color}"{style}>{escape(plain)}</text>'
