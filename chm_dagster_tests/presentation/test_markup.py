"""Markdown and HTML tables: values as people read them, and nothing in a name is markup."""

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from chm_dagster.presentation.columns import ATTENTION, CHANGED, CLIENTS, FAILING, FLAKY, Kind, freshness, plain_text
from chm_dagster.presentation.rendering import html_table, markdown_table

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def failing(**fields: Any) -> dict[str, Any]:
    return {
        "client_slug": "acme",
        "pipeline_slug": "orders",
        "platform": "airflow",
        "environment": "prod",
        "failing_since": NOW - timedelta(hours=2),
        "failures": 2,
        "broken": False,
        "last_success_at": None,
        "error_message": "Traceback (most recent call last):\n  File 'a'\nValueError: the table is locked",
        "status_reason": None,
        "source_url": "https://partner.example/run?id=1&x=2",
        **fields,
    }


class Page(HTMLParser):
    """An HTML table: its cells, row by row, and the tags within cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag not in ("table", "thead", "tbody"):
            self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_an_html_table_shows_ages_with_exact_times_the_telling_line_and_a_link() -> None:
    page = Page(html_table([failing()], FAILING, NOW))
    assert page.rows == [
        ["pipeline", "since", "in a row", "last success", "why", "platform", "environment", "run"],
        ["acme/orders", "2 h ago", "2", "", "ValueError: the table is locked", "airflow", "prod", "open"],
    ]
    assert page.tags == [
        ("time", {"datetime": "2026-03-01T10:00:00+00:00", "title": "2026-03-01 10:00:00 UTC"}),
        ("a", {"href": "https://partner.example/run?id=1&x=2", "rel": "noreferrer"}),
    ]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '" onload="x', "a & b", "&lt;b&gt;", "'"])
def test_text_is_escaped_in_html(name: str) -> None:
    page = Page(html_table([failing(error_message=name)], FAILING, NOW))
    assert page.rows[1][4] == name
    assert {tag for tag, _ in page.tags} == {"time", "a"}


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://x.example/a b", "data:text/html,x", None])
def test_only_a_plain_web_address_becomes_a_link_in_html(url: str | None) -> None:
    assert [tag for tag, _ in Page(html_table([failing(source_url=url)], FAILING, NOW)).tags] == ["time"]


@pytest.mark.parametrize("question", [ATTENTION, FAILING, CHANGED, FLAKY, CLIENTS])
def test_without_rows_a_sentence_says_so(question: Any) -> None:
    assert markdown_table([], question) == question.empty
    assert html_table([], question, NOW).startswith('<p class="empty">')


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, Kind.PLAIN, ""),
        (True, Kind.PLAIN, "yes"),
        (1_234_567, Kind.PLAIN, "1,234,567"),
        (0.345, Kind.SHARE, "34%"),
        (3_725.0, Kind.SECONDS, "1 h 2 min"),
        ("SF-", Kind.STRIP, "●✕·"),
        (NOW, Kind.PLAIN, "2026-03-01 12:00"),
    ],
)
def test_values_are_written_as_people_read_them(value: Any, kind: Kind, text: str) -> None:
    assert plain_text(value, kind, None) == text


def read(
    connection: str | None,
    before: timedelta | None,
    failing: bool = False,
    unreadable: int = 0,
    oldest: str = "same",
    lasts: timedelta = timedelta(minutes=30),
) -> dict[str, Any]:
    """A row of `connections`; a sync counts for `lasts`."""
    read_at = None if before is None else NOW - before
    stale_at = None if read_at is None else read_at + lasts
    return {
        "platform": "dbt",
        "connection": connection,
        "pipelines": 12,
        "unreadable": 12 if failing else unreadable,
        "read_at": read_at,
        "oldest_read_at": read_at if oldest == "same" else None,
        "stale_at": stale_at,
        "oldest_stale_at": stale_at if oldest == "same" else None,
        "failing_since": NOW if failing else None,
    }


@pytest.mark.parametrize(
    ("connections", "sentence"),
    [
        ([], "No pipeline is read from a partner."),
        ([read("a", None)], "No partner has been read yet: is CHM running?"),
        ([read("a", timedelta(minutes=4)), read("b", timedelta(minutes=29))], "Synced 4 min ago."),
        ([read("a", timedelta(minutes=4)), read("b", timedelta(hours=9))], "Synced 4 min ago. Not read: b."),
        ([read("a", timedelta(hours=9), lasts=timedelta(days=2))], "Synced 9 h ago."),
        ([read("a", timedelta(minutes=4)), read("b", None)], "Synced 4 min ago. Not read: b."),
        ([read("a", timedelta(minutes=4), oldest="never")], "Synced 4 min ago. Not read: a."),
        (
            [read("a", timedelta(minutes=4), unreadable=1), read(None, None, True)],
            "Synced 4 min ago. Not read: a (1 of 12 pipelines), dbt.",
        ),
        (
            [read("a", timedelta(hours=2)), read("b", None)],
            "Nothing was read since 2026-03-01 10:00 UTC (2 h ago): is CHM running?",
        ),
    ],
)
def test_freshness_is_the_newest_sync_and_what_cannot_be_read(connections: list[Any], sentence: str) -> None:
    assert freshness(connections, NOW) == sentence
