"""The health snapshot: what its tables and its picture show, and that names in them are words and nothing else."""

import base64
import io
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import dagster as dg
import numpy as np
import pytest
import sqlalchemy as sa
from markdown_it import MarkdownIt
from PIL import Image

from chm_dagster.defs.health import grid, tables
from chm_dagster.defs.health.assets import health_snapshot
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.contracts.histories import DAY, HOUR, NOW, execution, watch

MAX_PICTURE_BYTES = 200_000
COLORS = {letter: tuple(bytes.fromhex(color[1:])) for letter, (_, color) in grid.STATUSES.items()}


def snapshot(engine: sa.Engine) -> dict[str, Any]:
    """The metadata of a materialization: numbers as they are, Markdown as text."""
    result = dg.materialize([health_snapshot], resources={"warehouse": Warehouse(engine)})
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


class Page(HTMLParser):
    """A rendered table: its cells, row by row, and the tags within cells."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(MarkdownIt("commonmark").enable("table").render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag not in ("table", "thead", "tbody", "p"):
            self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data.replace("\u00a0", " ").replace("\u2011", "-")


def picture(markdown: str) -> Image.Image:
    found = re.fullmatch(r"!\[The last 30 runs of each pipeline\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def places(image: Image.Image, letter: str) -> list[tuple[int, int]]:
    """Where the cells of a status are, line by line: squares of 12 pixels of its colour. The legend's is left out."""
    right = np.asarray(image.convert("RGB")) == np.array(COLORS[letter])
    mask = np.pad(right.all(axis=2), ((1, 12), (1, 12)))
    rows, columns = image.height, image.width

    def shifted(down: int, along: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return mask[1 + down : 1 + down + rows, 1 + along : 1 + along + columns]

    begins = shifted(0, 0) & ~shifted(-1, 0) & ~shifted(0, -1) & shifted(11, 0) & shifted(0, 11) & shifted(11, 11)
    ends = ~shifted(12, 0) & ~shifted(0, 12)
    return [(int(x), int(y)) for y, x in np.argwhere(begins & ends)][1:]


def cells(image: Image.Image) -> Counter[str]:
    """How many cells of each status a picture holds."""
    return Counter({letter: n for letter in COLORS if (n := len(places(image, letter)))})


def strips(count: int, statuses: str = "S" * 30, name: str = "orders") -> list[dict[str, Any]]:
    return [
        {
            "client_slug": f"client-{n // 5}",
            "client_name": f"Client {n // 5}",
            "pipeline_name": f"{name}-{n}",
            "statuses": statuses,
            "latest_run_at": NOW - HOUR,
        }
        for n in range(count)
    ]


# --- tables ----------------------------------------------------------------------------------------------------------------


def test_what_fails_is_shown_with_since_when_how_often_and_a_link(engine: sa.Engine) -> None:
    watch(engine, "SSFF")
    watch(engine, "SSS", "stock")
    shown = snapshot(engine)
    head, row = Page(shown["failing now"]).rows
    told = dict(zip(head, row, strict=True))
    # Minutes may have passed since the clock of these histories was read.
    assert told.pop("failing for").startswith("2 h")
    assert told == {
        "client": "Acme",
        "pipeline": "orders",
        "platform": "custom",
        "since": f"{NOW - 2 * HOUR:%Y-%m-%d %H:%M}",
        "failures": "2",
        "last success": f"{NOW - 3 * HOUR:%Y-%m-%d %H:%M}",
        "error": "no disk for run-3",
        "run": "open",
    }
    assert Page(shown["failing now"]).tags == [("a", {"href": "https://partner.example/run-3"})]
    assert (shown["failing pipelines"], shown["pipelines"]) == (1, 2)


def test_changes_flaky_pipelines_and_clients_are_shown(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "S", NOW - 2 * DAY), execution(2, "F", NOW - HOUR)], "broke")
    watch(engine, [execution(1, "F", NOW - 2 * DAY), execution(2, "S", NOW - HOUR)], "mended")
    watch(engine, "SFSFSFSFSFS", "wobbly", "Bolt")
    shown = snapshot(engine)
    assert [row[:4] for row in Page(shown["changed since yesterday"]).rows[1:]] == [
        ["regression", "Acme", "broke", "failed"],
        ["fixed", "Acme", "mended", "success"],
        ["new", "Bolt", "wobbly", "success"],
    ]
    assert Page(shown["flaky"]).rows[1] == ["Bolt", "wobbly", "100%", "5", "5 of 11", "·×·×·×·×·×·"]
    assert [row[:4] for row in Page(shown["clients"]).rows[1:]] == [
        ["Acme", "failing", "2", "1"],
        ["Bolt", "healthy", "1", ""],
    ]
    assert (shown["regressions"], shown["flaky pipelines"], shown["failing pipelines"]) == (1, 1, 1)


def test_an_empty_inventory_has_a_snapshot_too(engine: sa.Engine) -> None:
    shown = snapshot(engine)
    assert {name: value for name, value in shown.items() if value != "*none*"} == {
        "failing pipelines": 0,
        "regressions": 0,
        "flaky pipelines": 0,
        "pipelines": 0,
    }


def test_broken_pipelines_and_long_streaks_are_told_apart(engine: sa.Engine) -> None:
    watch(engine, "S" + "F" * 30, "a")
    watch(engine, [execution(n, "F", NOW - HOUR - timedelta(minutes=n)) for n in range(1_001)], "b")
    watch(engine, "SF", "c")
    rows = Page(snapshot(engine)["failing now"]).rows[1:]
    assert [(row[5], row[6] == "never") for row in rows] == [
        ("30, broken", False),
        ("1,000+, broken", True),
        ("1", False),
    ]


def test_an_environment_other_than_production_is_named(engine: sa.Engine) -> None:
    watch(engine, "F")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET environment = 'dev'"))
    assert Page(snapshot(engine)["failing now"]).rows[1][1] == "orders (dev)"


def test_a_table_of_many_rows_ends_with_how_many_there_are_more(engine: sa.Engine) -> None:
    for number in range(52):
        watch(engine, "F", f"p{number:02}")
    table = snapshot(engine)["failing now"]
    assert table.endswith("\n\n2 more.")
    assert len(Page(table).rows) == 1 + 50


NAMES = [
    "a|b",
    "**loud**",
    "_quiet_",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "`code` & &amp; &#42;",
    "back\\slash\\|",
    "~~gone~~ # not a heading",
    "007",
    "1e5",
    "+4",
    "日本語 – ünï",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_and_is_no_markup(engine: sa.Engine, name: str) -> None:
    watch(engine, "SFSFSFSFSFSF")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE clients SET name = :name"), {"name": name})
        connection.execute(sa.text("UPDATE pipelines SET name = :name"), {"name": name})
        connection.execute(
            sa.text("UPDATE runs SET error_message = :name || E'\\nsecond line' WHERE status = 'failed'"),
            {"name": name},
        )
    shown = snapshot(engine)
    for question in ("failing now", "changed since yesterday", "flaky", "clients"):
        page = Page(shown[question])
        assert name in page.rows[1], question
        assert {tag for tag, _ in page.tags} <= {"a", "code", "strong"}, question
        assert {attrs.get("href") for tag, attrs in page.tags if tag == "a"} <= {"https://partner.example/run-11"}
    assert Page(shown["failing now"]).rows[1][7] == name


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "https://x.example/a b",
        "https://x.example/)|<b>",
        "data:text/html,x",
        "https://x.example/a)b",
    ],
)
def test_only_a_plain_web_address_becomes_a_link(engine: sa.Engine, url: str) -> None:
    watch(engine, "F")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET source_url = :url"), {"url": url})
    page = Page(snapshot(engine)["failing now"])
    assert (page.rows[1][8], page.tags) == ("", [])


def test_a_long_error_is_shown_by_its_beginning(engine: sa.Engine) -> None:
    watch(engine, "F")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET error_message = E'\\n \\n' || repeat('x', 500) || E'\\ny'"))
    assert Page(snapshot(engine)["failing now"]).rows[1][7] == "x" * 119 + "…"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (-5, "0 min"),
        (29, "0 min"),
        (150, "2 min"),
        (3599, "1 h"),
        (7500, "2 h 5 min"),
        (86_340, "23 h 59 min"),
        (86_400, "1 d"),
        (86_700, "1 d"),
        (273_600, "3 d 4 h"),
    ],
)
def test_how_long_is_told_in_the_two_largest_units(seconds: float | None, shown: str) -> None:
    assert tables.span(seconds) == shown.replace(" ", "\u00a0")


# --- the picture -------------------------------------------------------------------------------------------------------------


def test_the_picture_has_a_cell_of_its_colour_for_each_run(engine: sa.Engine) -> None:
    watch(engine, "SSSFFRC-", "a")
    watch(engine, "S" * 40 + "F", "b", "Bolt")
    watch(engine, "", "c", "Bolt")
    found = cells(picture(snapshot(engine)["status grid"]))
    assert found == {"S": 3 + 29, "F": 2 + 1, "R": 1, "C": 1, "-": 1}


def test_the_newest_run_is_on_the_right_and_strips_stand_below_each_other(engine: sa.Engine) -> None:
    rows = [*strips(1, "RSF"), *strips(1, "F" * 29 + "S")]
    image = Image.open(io.BytesIO(grid.draw(rows, NOW)))
    running, failed, success = (places(image, letter) for letter in "RFS")
    line, below = running[0][1], success[1][1]
    assert running[0][0] < success[0][0] < failed[0][0] == success[1][0]
    assert {y for _, y in failed} == {line, below}
    assert len({x for x, _ in failed}) == 30
    assert below - line >= 12


def test_a_picture_stays_small_whatever_it_shows() -> None:
    rows = strips(10_000, "SFRC-" * 6, "a name of many different letters: ")
    data = grid.draw(rows, NOW)
    assert len(data) < MAX_PICTURE_BYTES * 3 / 4  # as text it takes a third more
    assert cells(Image.open(io.BytesIO(data)))["F"] == 6 * grid.MAX_PIPELINES


def test_of_too_many_pipelines_those_that_failed_most_are_kept_in_their_order() -> None:
    rows = strips(grid.MAX_PIPELINES + 50)
    for number in (7, 90, grid.MAX_PIPELINES + 49):
        rows[number]["statuses"] = "SSF"
    kept = grid.worst(rows)
    assert len(kept) == grid.MAX_PIPELINES
    assert [row["pipeline_name"] for row in kept if "F" in row["statuses"]] == ["orders-7", "orders-90", "orders-169"]
    assert [rows.index(row) for row in kept] == sorted(rows.index(row) for row in kept)


def test_all_pipelines_are_kept_where_they_fit() -> None:
    rows = strips(grid.MAX_PIPELINES)
    assert grid.worst(rows) == rows


@pytest.mark.parametrize("name", [*NAMES, "$x^2$", "$\\frac{", "😀" * 60, "W" * 200, "two\nlines", "\x01"])
def test_a_picture_takes_any_name_and_keeps_it_out_of_the_cells(name: str) -> None:
    (row,) = strips(1, "F" * 30)
    row |= {"client_name": name, "pipeline_name": name}
    image = Image.open(io.BytesIO(grid.draw([row], datetime.now(UTC))))
    assert cells(image)["F"] == 30
