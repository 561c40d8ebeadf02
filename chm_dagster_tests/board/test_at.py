"""The board about a time in the past."""

from datetime import timedelta

import httpx
import pytest

from chm_dagster.board.filters import Filters
from chm_dagster.errors import InputError
from chm_dagster.warehouse.engine import Engine
from chm_dagster_tests.board.test_pages import Links, page, tiles, words
from chm_dagster_tests.contracts.histories import HOUR, NOW, watch

THEN = NOW - 1.5 * HOUR
AT = f"at={THEN:%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture
def fixed(engine: Engine) -> None:
    """It failed two and three hours ago, and has been fixed since."""
    watch(engine, "SSFFS", "orders")


def test_the_pages_show_what_was_true_then(board: httpx.Client, fixed: None) -> None:
    assert tiles(page(board, "/"))["failing"] == 0
    assert tiles(page(board, f"/?{AT}"))["failing"] == 1
    assert "no disk for run-3" in words(page(board, f"/pipelines?{AT}&health=failing"))
    assert "last 4 runs, oldest first: 2 success, 2 failed" in page(board, f"/clients/acme?{AT}")
    assert "new Acme / orders" in words(page(board, f"/changes?{AT}"))
    before = f"at={NOW - 3.5 * HOUR:%Y-%m-%dT%H:%M:%SZ}"
    assert tiles(page(board, f"/clients/acme?{before}"))["healthy"] == 1


def test_every_link_keeps_the_time_and_one_leads_back_to_now(board: httpx.Client, fixed: None) -> None:
    for path in ("/", "/pipelines", "/clients/acme", "/changes", "/flaky"):
        text = page(board, f"{path}?{AT}")
        hrefs = [href for href in Links(text).hrefs if href.startswith("/") and "/run?" not in href]
        lost = {href for href in hrefs if "at=" not in href and not href.startswith(("/board/", "/docs"))}
        assert lost == {path, "/"}, path
        assert "As of" in words(text) and "Back to now" in words(text)


def test_a_page_about_now_says_so(board: httpx.Client, fixed: None) -> None:
    for path in ("/rules", "/partners", "/errors", "/wall", "/clients/acme/orders"):
        assert "This page is about now" in words(page(board, f"{path}?{AT}"))
    assert "Back to now" not in page(board, "/")


def test_a_time_is_in_utc_and_not_to_come() -> None:
    assert Filters.read({"at": "2026-11-24T09:00"}).link("/") == "/?at=2026-11-24T09%3A00%3A00Z"
    assert Filters.read({"at": "2026-11-24T09:00+01:00"}).link("/") == "/?at=2026-11-24T08%3A00%3A00Z"
    for wrong in ("lunch", f"{NOW + timedelta(days=1):%Y-%m-%dT%H:%M}"):
        with pytest.raises(InputError):
            Filters.read({"at": wrong})
