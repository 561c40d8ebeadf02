"""Tables for people on terminals of any width, and the same data for programs."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from chm_dagster.cli.arguments import parse_time
from chm_dagster.errors import InputError
from chm_dagster.presentation.columns import ATTENTION, FAILING, FLAKY, LATEST, Column, Question, ago, duration
from chm_dagster.presentation.rendering import cell, describe, tabulate
from chm_dagster_tests.cli.conftest import Chm

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"),
        (12, "12 s ago"),
        (59.6, "59 s ago"),
        (60, "1 min ago"),
        (3_599, "59 min ago"),
        (7_200, "2 h ago"),
        (47 * 3_600, "47 h ago"),
        (48 * 3_600, "2 d ago"),
        (89 * 86_400, "89 d ago"),
        (90 * 86_400, "2025-12-01"),
        (-300, "in 5 min"),
        (-86_400 * 200, "2026-09-17"),
    ],
)
def test_a_person_sees_how_long_ago_it_was(seconds: float, said: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (45, "45 s"),
        (59.7, "1 min"),
        (600, "10 min"),
        (3_900, "1 h 5 min"),
        (3_600, "1 h"),
        (3_601, "1 h"),
        (183_600, "2 d 3 h"),
    ],
)
def test_a_person_sees_how_long_it_took(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T06:00:00", datetime(2026, 1, 31, 6, tzinfo=UTC)),
        ("2026-01-31T06:00:00+02:00", datetime(2026, 1, 31, 4, tzinfo=UTC)),
        (" 2026-01-31T06:00:00Z ", datetime(2026, 1, 31, 6, tzinfo=UTC)),
        ("90m", NOW - timedelta(minutes=90)),
        ("24h", NOW - timedelta(days=1)),
        ("7 d", NOW - timedelta(days=7)),
        ("2w", NOW - timedelta(weeks=2)),
        ("30s", NOW - timedelta(seconds=30)),
    ],
)
def test_a_time_can_be_a_date_or_a_span(text: str, moment: datetime) -> None:
    assert parse_time(text, "--since", NOW) == moment


def test_days_begin_in_the_time_zone_of_the_option_or_else_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    late = datetime(2026, 1, 31, 22, tzinfo=UTC)
    assert parse_time("yesterday", "--since", late) == datetime(2026, 1, 30, tzinfo=UTC)
    assert parse_time("yesterday", "--since", late, zone="Asia/Tokyo") == datetime(2026, 1, 30, 15, tzinfo=UTC)
    monkeypatch.setenv("CHM_TIMEZONE", "Asia/Tokyo")
    assert parse_time("2026-01-31", "--since", late) == datetime(2026, 1, 30, 15, tzinfo=UTC)
    assert parse_time("yesterday", "--since", late, zone="UTC") == datetime(2026, 1, 30, tzinfo=UTC)
    with pytest.raises(InputError, match=r"^--timezone: must be the name of an IANA time zone; did you mean .*Berlin"):
        parse_time("yesterday", "--since", late, zone="Berlin")


def test_a_span_can_lie_in_the_future() -> None:
    assert parse_time("4h", "--muted-until", NOW, ahead=True) == NOW + timedelta(hours=4)


@pytest.mark.parametrize(
    "text",
    ["", "noon", "4 hours", "-4h", "999999w", "2026-13-01", "1e9", "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z"],
)
def test_an_invalid_time_is_rejected_with_the_option_named(text: str) -> None:
    with pytest.raises(InputError, match=r"^--since: must be a time "):
        parse_time(text, "--since", NOW)


def drawn(renderable: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


ROW = {
    "pipeline": "northwind-retail/daily-orders-import",
    "status": "failed",
    "failing_since": datetime.now(UTC) - timedelta(hours=3),
    "started_at": datetime.now(UTC) - timedelta(hours=1),
    "duration_seconds": 3_725.0,
    "failures": 12,
    "streak": "12",
    "last_success_at": datetime.now(UTC) - timedelta(days=3),
    "why": "OperationalError: could not connect to the server\n  after 30 seconds and 3 tries",
    "flip_rate": 0.3448,
    "recoveries": 4,
    "settled_runs": 30,
    "history": "SSFSSSSFFSSSFSSSSSSSFSSSSSSSSS",
}


@pytest.mark.parametrize(
    "question", [ATTENTION, FAILING, FLAKY, LATEST], ids=["attention", "failing", "flaky", "latest"]
)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_row_is_one_line_on_any_terminal_and_keeps_its_pipeline_whole(question: Question, width: int) -> None:
    columns = [column for column in question.columns if not column.page_only]
    lines = drawn(tabulate([ROW, ROW], question.columns, width), width)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert "northwind-retail/daily-orders-import" in lines[1]
    for column in columns:
        if column.rank == 0:
            assert column.title in lines[0]
    if width == 200:
        assert all(column.title in lines[0] for column in columns)


def test_the_least_important_columns_are_dropped_first() -> None:
    columns = (Column("a"), Column("b", rank=1), Column("c", rank=2), Column("d", elastic=True))
    row = {"a": "a" * 10, "b": "b" * 10, "c": "c" * 10, "d": "d" * 30}
    shown = {width: drawn(tabulate([row], columns, width), width)[0].split() for width in (66, 48, 47, 36, 35, 24)}
    assert shown == {
        66: ["a", "b", "c", "d"],
        48: ["a", "b", "c", "d"],
        47: ["a", "b", "d"],
        36: ["a", "b", "d"],
        35: ["a", "d"],
        24: ["a", "d"],
    }
    assert drawn(tabulate([row], columns, 60), 60)[1].endswith("…")


def test_an_empty_result_says_so() -> None:
    assert drawn(tabulate([], FAILING.columns, 80, empty=FAILING.empty), 80) == ["Nothing is failing."]
    assert drawn(tabulate([], FAILING.columns, 80), 80) == ["None."]


def test_statuses_are_coloured_and_zeros_are_dimmed() -> None:
    assert cell("failed", NOW).style == "bold red"
    assert cell("success", NOW).style == "green"
    assert cell("[red]", NOW) == Text("[red]")
    assert [cell(value, NOW).plain for value in (None, {}, True, False, 0, 1_234_567, 0.25)] == [
        *("-", "-", "yes", "no", "0", "1,234,567", "0.25"),
    ]
    assert cell(0, NOW).style == "dim"


def test_text_from_a_partner_is_shown_without_affecting_the_terminal() -> None:
    assert cell("a\x1b[2Jb\tc\x9b\nd", NOW).plain == "a\ufffd[2Jb\ufffdc\ufffd\nd"


def test_a_single_item_is_shown_with_full_times() -> None:
    lines = drawn(describe({"started_at": NOW, "duration_seconds": 90.0, "description": None}), 80)
    assert lines[0].startswith("started at        2026-03-01 12:00:00 UTC  ")
    assert lines[1].split() == ["duration", "seconds", "1", "min", "30", "s"]


def test_programs_get_the_same_in_json_and_yaml_with_full_times(acme: Chm) -> None:
    for words in (("client", "list"), ("pipeline", "get", "acme/orders"), ("latest",), ("status",)):
        assert acme(*words).json == acme(*words, "--format", "json").json == acme(*words, "--format", "yaml").yaml
    created = acme("client", "get", "acme").json["created_at"]
    assert datetime.fromisoformat(created).tzinfo is not None
