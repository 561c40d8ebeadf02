"""The status grid: a shape for each run at its place, small whatever it shows, and safe against any name."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from chm_dagster.presentation.rendering import MAX_PIPELINES, status_grid, worst

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAX_BYTES = 200_000
SVG = "{http://www.w3.org/2000/svg}"


def strips(count: int, statuses: str = "S" * 30, name: str = "orders") -> list[dict[str, Any]]:
    return [
        {
            "client_slug": f"client-{n // 5}",
            "client_name": f"Client {n // 5}",
            "pipeline_name": f"{name}-{n}",
            "statuses": statuses,
            "latest_run_at": NOW - timedelta(hours=1),
        }
        for n in range(count)
    ]


def places(rows: list[dict[str, Any]], status: str) -> list[tuple[int, int]]:
    """Where the shapes of a status stand, without the legend."""
    root = ElementTree.fromstring(status_grid(rows, NOW))
    drawn = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib["class"] == status]
    found = [(int(x), int(y)) for d in drawn for x, y in re.findall(r"M(\d+) (\d+)", d)]
    return [place for place in found if place[1] != 36]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(status_grid(rows, NOW)).iter(f"{SVG}text")]


def test_each_run_has_the_shape_of_its_status() -> None:
    rows = [*strips(1, "SSSFFRC-"), *strips(1, "S" * 40 + "F")]
    found = {status: len(places(rows, status)) for status in ("success", "failed", "running", "canceled", "skipped")}
    assert found == {"success": 3 + 29, "failed": 2 + 1, "running": 1, "canceled": 1, "skipped": 1}


def test_no_two_statuses_share_a_shape() -> None:
    root = ElementTree.fromstring(status_grid(strips(1, "SFRC-"), NOW))
    shapes = [re.sub(r"M\d+ \d+", "", path.attrib["d"]) for path in root.iter(f"{SVG}path")]
    assert len(set(shapes)) == 5


def test_the_newest_run_is_on_the_right_and_strips_stand_below_each_other() -> None:
    rows = [*strips(1, "RSF"), *strips(1, "F" * 29 + "S")]
    (running,), (first, second), failed = places(rows, "running"), places(rows, "success"), places(rows, "failed")
    assert running[0] < first[0] < failed[0][0] == second[0]
    assert {y for _, y in failed} == {running[1], second[1]}
    assert second[1] - running[1] >= 12


def test_a_picture_stays_small_whatever_it_shows() -> None:
    drawn = status_grid(strips(10_000, "SFRC-" * 6, "a name of many different letters: "), NOW)
    assert len(drawn.encode()) < MAX_BYTES * 3 / 4  # as text it takes a third more
    assert "of 10,000 that failed most of late" in drawn


def test_if_there_are_too_many_pipelines_those_with_the_most_failures_are_kept_in_order() -> None:
    rows = strips(MAX_PIPELINES + 50)
    for number in (7, 90, MAX_PIPELINES + 49):
        rows[number]["statuses"] = "SSF"
    kept = worst(rows)
    assert len(kept) == MAX_PIPELINES
    assert [row["pipeline_name"] for row in kept if "F" in row["statuses"]] == ["orders-7", "orders-90", "orders-169"]
    assert [rows.index(row) for row in kept] == sorted(rows.index(row) for row in kept)


def test_all_pipelines_are_kept_where_they_fit() -> None:
    assert worst(strips(MAX_PIPELINES)) == strips(MAX_PIPELINES)


@pytest.mark.parametrize("name", ["a & b", "<script>", "]]>", '"', "W" * 200, "two\nlines", "\x01", "\ud800", "日本語"])
def test_a_picture_takes_any_name(name: str) -> None:
    (row,) = strips(1, "F" * 30)
    row |= {"client_name": name, "pipeline_name": name}
    assert len(places([row], "failed")) == 30
    assert all(len(text) <= 80 for text in texts([row]))
    if name.isprintable() and len(name) < 40:
        assert texts([row]).count(name) == 2
