"""The health snapshot: what its tables and its picture show, and that names are never interpreted as markup."""

import base64
import re
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from markdown_it import MarkdownIt

from chm_dagster.defs.health import health_snapshot
from chm_dagster.domain.error_text import error_summary
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.contracts.histories import DAY, HOUR, NOW, execution, watch


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


def picture(markdown: str) -> str:
    """The SVG of the status grid."""
    found = re.fullmatch(
        r"!\[The last 30 runs of each pipeline\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown
    )
    assert found is not None
    return base64.b64decode(found[1]).decode()


# --- tables ----------------------------------------------------------------------------------------------------------------


def test_failing_pipelines_are_shown_with_since_when_how_often_and_a_link(engine: sa.Engine) -> None:
    watch(engine, "SSFF")
    watch(engine, "SSS", "stock")
    shown = snapshot(engine)
    head, row = Page(shown["failing now"]).rows
    assert dict(zip(head, row, strict=True)) == {
        "pipeline": "acme/orders",
        "since": f"{NOW - 2 * HOUR:%Y-%m-%d %H:%M}",
        "in a row": "2",
        "last success": f"{NOW - 3 * HOUR:%Y-%m-%d %H:%M}",
        "why": "no disk for run-3",
        "platform": "custom",
        "environment": "prod",
        "run": "open",
    }
    assert Page(shown["failing now"]).tags == [("a", {"href": "https://partner.example/run-3"})]
    assert (shown["failing pipelines"], shown["pipelines"]) == (1, 2)


def test_changes_flaky_pipelines_and_clients_are_shown(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "S", NOW - 2 * DAY), execution(2, "F", NOW - HOUR)], "broke")
    watch(engine, [execution(1, "F", NOW - 2 * DAY), execution(2, "S", NOW - HOUR)], "mended")
    watch(engine, "SFSFSFSFSFS", "wobbly", "Bolt")
    shown = snapshot(engine)
    assert [row[:2] for row in Page(shown["changed since yesterday"]).rows[1:]] == [
        ["regression", "acme/broke"],
        ["fixed", "acme/mended"],
        ["new", "bolt/wobbly"],
    ]
    assert Page(shown["flaky"]).rows[1] == ["bolt/wobbly", "100%", "5", "5", "11", "●✕●✕●✕●✕●✕●"]
    assert [row[:4] for row in Page(shown["clients"]).rows[1:]] == [
        ["Acme", "failing", "2", "1"],
        ["Bolt", "healthy", "1", "0"],
    ]
    assert (shown["regressions"], shown["flaky pipelines"], shown["failing pipelines"]) == (1, 1, 1)


def test_a_snapshot_says_what_needs_attention_and_how_fresh_it_is(engine: sa.Engine) -> None:
    watch(engine, "SF")
    watch(engine, [], "idle")
    shown = snapshot(engine)
    assert [row[:4] for row in Page(shown["needs attention"]).rows[1:]] == [
        ["acme/orders", "failing", f"{NOW - HOUR:%Y-%m-%d %H:%M}", "no disk for run-1"],
        ["acme/idle", "unknown", Page(shown["needs attention"]).rows[2][2], "no run has settled yet"],
    ]
    assert shown["pipelines that need attention"] == 2
    assert re.fullmatch(r"Synced (just now|\d+ s ago)\.", shown["freshness"])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET observed_through = now() - interval '2 hours'"))
    assert snapshot(engine)["freshness"].endswith(" UTC (2 h ago): is CHM running?")


def test_an_empty_inventory_has_a_snapshot_too(engine: sa.Engine) -> None:
    shown = snapshot(engine)
    assert shown == {
        "status grid": "No active pipelines yet.",
        "freshness": "No pipeline is read from a partner.",
        "needs attention": "Nothing needs attention.",
        "pipelines that need attention": 0,
        "failing now": "Nothing is failing.",
        "changed since yesterday": "Nothing changed.",
        "flaky": "No pipeline is flaky.",
        "clients": "No clients yet. Add one: chm client create 'Acme'",
        "failing pipelines": 0,
        "regressions": 0,
        "flaky pipelines": 0,
        "pipelines": 0,
    }


def test_broken_pipelines_and_long_streaks_are_distinguished(engine: sa.Engine) -> None:
    watch(engine, "S" + "F" * 30, "a")
    watch(engine, [execution(n, "F", NOW - HOUR - timedelta(minutes=n)) for n in range(1_001)], "b")
    watch(engine, "SF", "c")
    rows = Page(snapshot(engine)["failing now"]).rows[1:]
    assert [(row[2], row[3] == "") for row in rows] == [
        ("30, broken", False),
        ("1,000+, broken", True),
        ("1", False),
    ]


def test_the_environment_is_named(engine: sa.Engine) -> None:
    watch(engine, "F")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET environment = 'dev'"))
    assert Page(snapshot(engine)["failing now"]).rows[1][6] == "dev"


def test_a_long_table_ends_with_the_number_of_further_rows(engine: sa.Engine) -> None:
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
def test_a_name_is_not_interpreted_as_markup(engine: sa.Engine, name: str) -> None:
    watch(engine, "SFSFSFSFSFSF")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE clients SET name = :name"), {"name": name})
        connection.execute(sa.text("UPDATE pipelines SET name = :name"), {"name": name})
        connection.execute(
            sa.text("UPDATE runs SET error_message = :name WHERE status = 'failed'"),
            {"name": name},
        )
    shown = snapshot(engine)
    for question in ("failing now", "changed since yesterday", "flaky", "clients"):
        page = Page(shown[question])
        assert {tag for tag, _ in page.tags} <= {"a", "code", "strong"}, question
        assert {attrs.get("href") for tag, attrs in page.tags if tag == "a"} <= {"https://partner.example/run-11"}
    assert Page(shown["clients"]).rows[1][0] == name
    assert Page(shown["failing now"]).rows[1][4] == error_summary(name)


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
    assert (page.rows[1][7], page.tags) == ("", [])


def test_the_telling_line_of_a_long_error_is_shown(engine: sa.Engine) -> None:
    watch(engine, "F")
    error = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: the table is locked'
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET error_message = :error"), {"error": error})
    assert Page(snapshot(engine)["failing now"]).rows[1][4] == "ValueError: the table is locked"


def test_the_grid_is_a_picture_of_the_runs(engine: sa.Engine) -> None:
    watch(engine, "SSSFFRC-", "a")
    watch(engine, "", "c", "Bolt")
    drawn = picture(snapshot(engine)["status grid"])
    for status in ("success", "failed", "running", "canceled", "skipped"):
        assert f'class="{status}"' in drawn
    assert ">never ran</text>" in drawn
