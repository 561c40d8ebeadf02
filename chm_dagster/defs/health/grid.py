"""The status grid: one strip of coloured cells for each pipeline, client by client, as a picture."""

import dataclasses
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from chm_dagster.defs.health.tables import span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

RUNS = 30
MAX_PIPELINES = 120
"""A picture of more is neither legible nor small, and every snapshot keeps one."""
# Red is also much darker than green, for eyes that do not tell them apart.
STATUSES = {
    "S": ("success", "#8fc79a"),
    "F": ("failed", "#b5362f"),
    "R": ("running", "#5a8fc4"),
    "C": ("canceled", "#e3b04b"),
    "-": ("skipped", "#c4c9cf"),
}
_PAPER, _NO_RUN = "#ffffff", "#f0f2f4"
_INK, _FAINT = "#24292f", "#77808a"

# Everything is laid out in pixels, from the top left.
_MARGIN, _TOP, _LINE, _GAP = 16, 62, 17, 9
_CELL, _PITCH = 12, 14
_NAMES = 250
_STRIPS = _MARGIN + _NAMES + 10
_AGES = _STRIPS + RUNS * _PITCH + 8
_WIDTH = _AGES + 84


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """A line of the picture: a client's name, or a pipeline with its strip. `top` is in pixels."""

    top: int
    client: str
    pipeline: Row | None


def worst(rows: Sequence[Row]) -> list[Row]:
    """The pipelines that fit in: all of them, or those with most failures of late; in the order they came."""
    if len(rows) <= MAX_PIPELINES:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda n: (-rows[n]["statuses"].count("F"), n))
    return [rows[n] for n in sorted(ranked[:MAX_PIPELINES])]


def draw(rows: Sequence[Row], now: datetime) -> bytes:
    """A PNG of the rows of `recent_runs_by_pipeline`, which come client by client. Ages are counted up to `now`."""
    lines = list(_lines(worst(rows)))
    height = (lines[-1].top if lines else _TOP) + _LINE + _MARGIN
    figure, axes = _canvas(height)
    with warnings.catch_warnings():
        # A character that no font has becomes a box; the tables have it.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        _draw_head(axes, len(rows), now)
        _draw_cells(axes, lines)
        for line in lines:
            _draw_words(axes, line, now)
        return _png(figure, height)


def _canvas(height: int) -> tuple["Figure", "Axes"]:
    """An empty picture that is drawn on in pixels, the y axis pointing down."""
    # Here, because half a second is too long for everybody who only loads the definitions.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 100, height / 100), dpi=100, facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _lines(rows: Sequence[Row]) -> Iterator[_Line]:
    top = _TOP
    for _, group in itertools.groupby(rows, key=lambda row: row["client_slug"]):
        pipelines = list(group)
        yield _Line(top, pipelines[0]["client_name"], None)
        for pipeline in pipelines:
            top += _LINE
            yield _Line(top, pipeline["client_name"], pipeline)
        top += _LINE + _GAP


def _draw_head(axes: "Axes", count: int, now: datetime) -> None:
    shown = f"{count:,} pipelines"
    if count > MAX_PIPELINES:
        shown = f"the {MAX_PIPELINES} pipelines of {count:,} that failed most of late"
    _write(axes, _MARGIN, 20, f"Last {RUNS} runs of {shown}", size=10.5, weight="bold")
    _write(axes, _WIDTH - _MARGIN, 20, f"{now:%Y-%m-%d %H:%M} UTC", color=_FAINT, ha="right")
    left = _MARGIN
    for name, color in (*STATUSES.values(), ("no run", _NO_RUN)):
        _fill(axes, [(left, 36, color)])
        _write(axes, left + _CELL + 5, 42, name, color=_FAINT)
        left += _CELL + 22 + 7 * len(name)
    _write(axes, _AGES, 42, "latest run", color=_FAINT)


def _draw_cells(axes: "Axes", lines: Sequence[_Line]) -> None:
    cells = []
    for line in lines:
        if line.pipeline is not None:
            for place, status in enumerate(line.pipeline["statuses"][-RUNS:].rjust(RUNS)):
                color = STATUSES[status][1] if status in STATUSES else _NO_RUN
                cells.append((_STRIPS + place * _PITCH, line.top + 2, color))
    _fill(axes, cells)


def _fill(axes: "Axes", cells: Sequence[tuple[int, int, str]]) -> None:
    from matplotlib.collections import PolyCollection

    corners = [
        [(left, top), (left + _CELL, top), (left + _CELL, top + _CELL), (left, top + _CELL)] for left, top, _ in cells
    ]
    # Cells lie on whole pixels: without smoothing they are sharp, and the file stays small.
    axes.add_collection(PolyCollection(corners, facecolors=[c for *_, c in cells], antialiaseds=False, linewidths=0))


def _draw_words(axes: "Axes", line: _Line, now: datetime) -> None:
    middle = line.top + 2 + _CELL / 2
    if line.pipeline is None:
        _write(axes, _MARGIN, middle, line.client, weight="bold", within=_WIDTH - 2 * _MARGIN)
        return
    settled = [status for status in line.pipeline["statuses"] if status in "SF"]
    color = STATUSES["F"][1] if settled[-1:] == ["F"] else _INK
    _write(axes, _MARGIN + 10, middle, line.pipeline["pipeline_name"], color=color, within=_NAMES - 20)
    started = line.pipeline["latest_run_at"]
    age = span((now - started).total_seconds()) if started else "" if line.pipeline["statuses"] else "never ran"
    _write(axes, _AGES, middle, age, color=_FAINT)


def _write(
    axes: "Axes",
    left: float,
    middle: float,
    words: str,
    *,
    size: float = 8,
    color: str = _INK,
    weight: str = "normal",
    ha: str = "left",
    within: float = _WIDTH,
) -> None:
    """Text as it is: no formulas, on one line, shortened where it is wider than `within`."""
    plain = " ".join(words.split())
    text = axes.text(
        left,
        middle,
        plain,
        fontsize=size,
        color=color,
        fontweight=weight,
        ha=ha,
        va="center_baseline",
        parse_math=False,
    )
    # To measure a text takes as long as to draw it, so short ones are taken at their word.
    if len(plain) * size > within and (width := text.get_window_extent().width) > within:
        text.set_text(plain[: int(len(plain) * within / width) - 1] + "…")


def _png(figure: "Figure", height: int) -> bytes:
    """In a palette of our few colours the file is a quarter of the size, and nobody sees the difference."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    palette.putpalette(list(itertools.chain.from_iterable(_palette())))
    pixels, file = io.BytesIO(), io.BytesIO()
    figure.savefig(pixels, format="rgba")
    picture = Image.frombytes("RGBA", (_WIDTH, height), pixels.getvalue()).convert("RGB")
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()


def _palette() -> Iterator[tuple[int, int, int]]:
    """The colours of cells as they are, and those of texts in eight steps towards the paper."""
    for color in (_PAPER, _NO_RUN, *(color for _, color in STATUSES.values())):
        yield _rgb(color)
    for color, step in itertools.product((_INK, _FAINT, STATUSES["F"][1]), range(8)):
        red, green, blue = (part + (255 - part) * step // 8 for part in _rgb(color))
        yield red, green, blue


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue
