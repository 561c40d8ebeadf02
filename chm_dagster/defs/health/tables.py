"""Answers to health questions as Markdown tables, for people who look at an asset's metadata."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

Row = Mapping[str, Any]
Cell = Callable[[Row], str]

NONE = "*none*"
SHOWN = 50
"""Rows of a table at most: metadata is for a glance."""
MAX_ERROR_CHARS = 120
CAPPED_FAILURES = 1_000
"""What `failing_now` counts up to."""

_SPACE, _HYPHEN = "\u00a0", "\u2011"
"""Where a line must not break."""
_MARKUP = re.compile(r"[\\`*_\[\]<>&|~#]")
_LINK = re.compile(r"https?://[^\s()<>\[\]|\\\"'`]+", re.ASCII)


def text(value: object) -> str:
    """A name or a message as text on one line: nothing in it is markup."""
    plain = " ".join(str(value).split())
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", plain)


def moment(value: datetime | None) -> str:
    """A time to the minute, in UTC; empty for None. A line may break between its day and its minute only."""
    return f"{value:%Y-%m-%d %H:%M}".replace("-", _HYPHEN) if value else ""


def span(seconds: float | None) -> str:
    """How long that is, in its two largest units, on one line: `3 d 4 h`, `2 h 5 min`, `5 d`; empty for None."""
    if seconds is None:
        return ""
    minutes = max(0, round(seconds / 60))
    units = ((minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min"))
    first = next((place for place, (count, _) in enumerate(units) if count), 2)
    words = [f"{count}{_SPACE}{unit}" for count, unit in units[first : first + 2] if count]
    return _SPACE.join(words) or f"0{_SPACE}min"


def markdown(rows: Sequence[Row], columns: Mapping[str, Cell]) -> str:
    """A table with these headings; a note in place of it where there are no rows, and below it where there are more."""
    if not rows:
        return NONE
    cells = [[cell(row) for cell in columns.values()] for row in rows[:SHOWN]]
    # Without disable_numparse a pipeline that is named 007 would be shown as 7.
    table = str(pd.DataFrame(cells, columns=list(columns)).to_markdown(index=False, disable_numparse=True))
    return f"{table}\n\n{len(rows) - SHOWN:,} more." if len(rows) > SHOWN else table


def _client(row: Row) -> str:
    return text(row["client_name"])


def _pipeline(row: Row) -> str:
    name, environment = text(row["pipeline_name"]), row["environment"]
    return name if environment == "prod" else f"{name} ({environment})"


def _error(row: Row) -> str:
    first = next((line for line in (row["error_message"] or "").splitlines() if line.strip()), "")
    return text(first if len(first) <= MAX_ERROR_CHARS else first[: MAX_ERROR_CHARS - 1] + "…")


def _run(row: Row) -> str:
    url = row["source_url"] or ""
    return f"[open]({url})" if _LINK.fullmatch(url) else ""


def _failures(row: Row) -> str:
    count = f"{row['failures']:,}" + ("+" if row["failures"] >= CAPPED_FAILURES else "")
    return f"{count}, broken" if row["broken"] else count


def _history(row: Row) -> str:
    history = str(row["history"])
    return f"`{history.replace('S', '·').replace('F', '×')}`"


FAILING: dict[str, Cell] = {
    "client": _client,
    "pipeline": _pipeline,
    "platform": lambda row: row["platform"],
    "failing for": lambda row: span(row["failing_seconds"]),
    "since": lambda row: moment(row["failing_since"]),
    "failures": _failures,
    "last success": lambda row: moment(row["last_success_at"]) or "never",
    "error": _error,
    "run": _run,
}
CHANGED: dict[str, Cell] = {
    "change": lambda row: f"**{row['change']}**" if row["change"] == "regression" else row["change"],
    "client": _client,
    "pipeline": _pipeline,
    "now": lambda row: row["status_now"],
    "run started": lambda row: moment(row["started_at"]),
    "error": _error,
    "run": _run,
}
FLAKY: dict[str, Cell] = {
    "client": _client,
    "pipeline": _pipeline,
    "flips": lambda row: f"{row['flip_rate']:.0%}",
    "recoveries": lambda row: str(row["recoveries"]),
    "failures": lambda row: f"{row['failures']} of {row['settled_runs']}",
    "latest runs": _history,
}
CLIENTS: dict[str, Cell] = {
    "client": _client,
    "health": lambda row: f"**{row['health']}**" if row["health"] == "failing" else row["health"],
    "pipelines": lambda row: str(row["pipelines"]),
    "failing": lambda row: str(row["failing"] or ""),
    "running": lambda row: str(row["running"] or ""),
    "never ran": lambda row: str(row["never_ran"] or ""),
    "latest run": lambda row: moment(row["latest_run_at"]),
}
