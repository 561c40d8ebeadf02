"""Templates of the board, and the small parts that they are made of: ages, links, badges, strips of runs, bars.

Everything that comes from a partner or a person is escaped by the templates' own rule. Nothing carries a style or a
script of its own: the content security policy allows only the two files of `static/`.
"""

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from chm_dagster.board import filters as addresses
from chm_dagster.domain import values
from chm_dagster.domain.error_text import error_summary
from chm_dagster.domain.pipelines import Platform
from chm_dagster.presentation.columns import (
    HEALTH_SHAPES,
    STATUS_SHAPES,
    ago,
    count,
    duration,
    listed,
    plural,
    to_the_minute,
)

STATIC = Path(__file__).parent / "static"
_LETTERS = {"S": "success", "F": "failed", "R": "running", "C": "canceled", "-": "skipped"}
_PITCH, _SQUARE = 9, "h7v12h-7z"
# A shape of its own for each status: no eye depends on the colour.
_CELLS = {
    "S": _SQUARE,
    "F": "m0 1l7 10m0-10l-7 10",
    "R": "h7v12h-7zm2 2v8h3v-8z",
    "C": "m0 4h7v4h-7z",
    "-": "m2 4h3v4h-3z",
}


def render(template: str, **facts: Any) -> str:
    """A page as HTML. Raises jinja2.UndefinedError for a fact that the template needs and does not get."""
    return _environment().get_template(template).render(**facts)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chm_dagster.board"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "age": age,
        "time": exact,
        "duration": duration,
        "badge": badge,
        "status": status,
        "strip": strip,
        "summary": error_summary,
        "web": values.link,
        "number": lambda value: f"{value:,}",
    }
    environment.globals |= {
        "client_path": addresses.client_path,
        "pipeline_path": addresses.pipeline_path,
        "asset": asset,
        "bars": bars,
        "count": count,
        "plural": plural,
        "listed": listed,
        "health_shapes": HEALTH_SHAPES,
        "platforms": tuple(Platform),
        "version": version("chm-dagster"),
    }
    return environment


@functools.cache
def asset(name: str) -> str:
    """The address of a file in `static/`. It changes with the file, so that browsers can keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/board/{name}?v={digest}"


def age(time: datetime | None, now: datetime) -> Markup:
    """How long ago, with the exact time in UTC behind it."""
    return _time(time, ago(time, now), "age") if time is not None else Markup('<span class="none">never</span>')


def exact(time: datetime | None) -> Markup:
    """A time to the minute: in UTC, until a script puts it in the viewer's zone."""
    if time is None:
        return Markup('<span class="none">not known</span>')
    return _time(time, f"{to_the_minute(time.astimezone(UTC))} UTC", "at")


def _time(time: datetime, text: str, kind: str) -> Markup:
    utc = time.astimezone(UTC)
    return Markup('<time class="{}" datetime="{}" title="{}">{}</time>').format(
        kind, utc.isoformat(), f"{utc:%Y-%m-%d %H:%M:%S} UTC", text
    )


def badge(health: str) -> Markup:
    """A state of health: a shape, a word and a colour."""
    return _badge(health, HEALTH_SHAPES[health])


def status(value: str | None) -> Markup:
    """A status of a run, the same way."""
    return (
        _badge(value, STATUS_SHAPES[value]) if value in STATUS_SHAPES else Markup('<span class="none">never ran</span>')
    )


def _badge(word: str, shape: str) -> Markup:
    return Markup('<span class="badge is-{0}"><span class="shape" aria-hidden="true">{1}</span> {0}</span>').format(
        word, shape
    )


def strip(letters: str) -> Markup:
    """The last runs, the oldest first, as one picture; its label says them in words."""
    if not letters:
        return Markup('<span class="none">never ran</span>')
    drawn = dict.fromkeys(_CELLS, "")
    for place, letter in enumerate(letters):
        drawn[letter] += f"M{1 + place * _PITCH} 1{_CELLS[letter]}"
    paths = Markup("").join(
        Markup('<path class="run-{}" d="{}"/>').format(_LETTERS[letter], path) for letter, path in drawn.items() if path
    )
    return Markup(
        '<svg class="strip" role="img" aria-label="{0}" width="{1}" height="14" viewBox="0 0 {1} 14">{2}</svg>'
    ).format(strip_words(letters), len(letters) * _PITCH, paths)


def strip_words(letters: str) -> str:
    """A strip in words: `last 3 runs, oldest first: 2 success, 1 failed`."""
    groups = [(letter, len(list(same))) for letter, same in itertools.groupby(letters)]
    words = [f"{length} {_LETTERS[letter]}" for letter, length in groups]
    shown = ["...", *words[-8:]] if len(words) > 8 else words
    return f"last {count(len(letters), 'run')}, oldest first: {', '.join(shown)}"


def bars(rows: Sequence[Mapping[str, Any]], label: str, value: str, title: str) -> Markup:
    """A row of bars, one for each row; the table beside it has the numbers."""
    highest = max((row[value] for row in rows), default=0) or 1
    parts = [
        Markup('<rect class="bar" x="{}" y="{}" width="10" height="{}"><title>{}: {}</title></rect>').format(
            n * 12, 60 - tall, tall, f"{row[label]:%Y-%m-%d}", row[value]
        )
        for n, row in enumerate(rows)
        for tall in [max(1, round(row[value] / highest * 56)) if row[value] else 1]
    ]
    return Markup(
        '<svg class="bars" role="img" aria-label="{0}" viewBox="0 0 {1} 60" preserveAspectRatio="none">{2}</svg>'
    ).format(title, max(12, len(rows) * 12), Markup("").join(parts))
