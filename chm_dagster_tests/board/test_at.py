"""The board about a time in the past."""

import re
from datetime import timedelta
from html import unescape

import httpx
import pytest

from chm_dagster.board.filters import Filters
from chm_dagster.errors import InputError
from chm_dagster.warehouse.engine import Engine
from chm_dagster_tests.board.test_pages import Links, page, tiles, words
from chm_dagster_tests.contracts.histories import HOUR, NOW, disable_pipeline, execution, watch


def as_of(hours: float) -> str:
    """So many hours ago, in an address."""
    return f"at={NOW - hours * HOUR:%Y-%m-%dT%H:%M:%SZ}"


AT = as_of(1.5)


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
    assert tiles(page(board, f"/clients/acme?{as_of(3.5)}"))["healthy"] == 1


def test_every_link_keeps_the_time_and_one_leads_back_to_now(board: httpx.Client, fixed: None) -> None:
    run = "/clients/acme/orders/run?id=run-3"
    for path in ("/", "/pipelines", "/clients/acme", "/clients/acme/orders", run, "/changes", "/flaky", "/errors"):
        text = page(board, f"{path}{'&' if '?' in path else '?'}{AT}")
        hrefs = [unescape(href) for href in Links(text).hrefs if href.startswith("/")]
        lost = {href for href in hrefs if "at=" not in href and not href.startswith(("/board/", "/docs"))}
        assert lost == {path, "/"}, path
        assert "As of" in words(text) and "Back to now" in words(text)


def strip(text: str) -> list[str]:
    """The statuses of the runs of a pipeline's page."""
    return re.findall(r'aria-label="(\w+), ', text[text.index('<ol class="runs"') : text.index("</ol>")])


def test_a_pipeline_shows_its_health_and_its_runs_as_they_were(board: httpx.Client, fixed: None) -> None:
    now, then = page(board, "/clients/acme/orders"), page(board, f"/clients/acme/orders?{AT}")
    assert "orders ● healthy" in words(now)
    assert "orders ✕ failing" in words(then)
    assert strip(then) == strip(now)[:4] == ["success", "success", "failed", "failed"]
    assert "Rules and episodes are those of now." in words(then)
    assert "of now" not in words(now)
    assert "Read completely" in words(now) and "Read completely" not in words(then)
    assert "It had not run by then" in words(page(board, f"/clients/acme/orders?{as_of(9)}"))


def test_what_is_known_for_now_only_says_so(board: httpx.Client, engine: Engine, fixed: None) -> None:
    disable_pipeline(engine, "orders")
    listed = "Which pipelines are disabled is known for now only"
    assert listed in words(page(board, f"/pipelines?health=paused&{AT}"))
    assert listed not in words(page(board, "/pipelines?health=paused"))


def test_spans_end_at_the_time_in_question(board: httpx.Client, fixed: None) -> None:
    for path, words_of_now in (("/", ["yesterday"]), ("/clients/acme", ["yesterday", "last 30 days"])):
        now, then = words(page(board, path)), words(page(board, f"{path}?{AT}"))
        for word in words_of_now:
            assert (word in now, word in then) == (True, False)


def test_the_health_of_a_pipeline_that_is_disabled_now_is_not_known(
    board: httpx.Client, engine: Engine, fixed: None
) -> None:
    disable_pipeline(engine, "orders")
    assert "its health then is not known" in words(page(board, f"/clients/acme/orders?{AT}"))


def test_a_run_was_running_until_it_finished_and_was_not_there_before_it_began(
    board: httpx.Client, engine: Engine
) -> None:
    watch(engine, [execution(1, "S", NOW - 9 * HOUR), execution(2, "F", NOW - 3 * HOUR, NOW - HOUR)], "orders")
    path = "/clients/acme/orders/run?id=run-2"
    assert "run-2 ✕ failed" in words(page(board, f"{path}&{as_of(0.5)}"))
    running = page(board, f"{path}&{as_of(2)}")
    assert "run-2 ◐ running It was running then, and finished later." in words(running)
    assert "no disk" not in running and "Last seen" not in running
    before = words(page(board, f"{path}&{as_of(4)}"))
    assert "It began after that time, at" in before
    assert [word for word in ("failed", "running", "no disk", "Started") if word in before] == []
    assert path in {unescape(href) for href in Links(running).hrefs}
    of_pipeline = page(board, f"/clients/acme/orders?{as_of(2)}")
    assert strip(of_pipeline) == ["success", "running"]
    assert "no disk" not in of_pipeline


def test_errors_are_those_of_the_time_before(board: httpx.Client, fixed: None) -> None:
    """Of its two failures, one had ended two and a half hours ago."""
    now, then = words(page(board, "/errors")), words(page(board, f"/errors?{AT}"))
    assert "over 2 failures at 1 client" in now
    assert "1 pipeline still failing 2 failures at 1 client" in then
    assert "Failed runs of the 7 days before" in then
    earlier = page(board, f"/errors?{as_of(2.5)}")
    assert "1 pipeline still failing 1 failure at 1 client" in words(earlier)
    (runs,) = {unescape(href) for href in Links(earlier).hrefs if href.startswith("/errors/runs")}
    listed = words(page(board, runs))
    assert "1 failure of 1 pipeline at 1 client in the 7 days before." in listed
    assert "no disk for run-2" in listed and "run-3" not in listed
    assert "No run failed in the 7 days before." in words(page(board, f"/errors?{as_of(3)}"))


def test_the_same_error_at_several_clients_is_on_the_overview_of_then(board: httpx.Client, engine: Engine) -> None:
    for client in ("Acme", "Bolt"):
        runs = [execution(1, "F", NOW - 3 * HOUR, error="disk full"), execution(2, "S", NOW - HOUR)]
        watch(engine, runs, "orders", client)
    assert "Same error at several clients" not in page(board, "/")
    assert "2 clients , 2 pipelines still failing disk full" in words(page(board, f"/?{as_of(2)}"))


def test_a_page_about_now_says_so(board: httpx.Client, fixed: None) -> None:
    for path in ("/rules", "/partners", "/reports", "/wall"):
        assert "This page is about now" in words(page(board, f"{path}?{AT}"))
    assert "Back to now" not in page(board, "/")


def test_a_time_is_in_utc_and_not_to_come() -> None:
    assert Filters.read({"at": "2026-11-24T09:00"}).link("/") == "/?at=2026-11-24T09%3A00%3A00Z"
    assert Filters.read({"at": "2026-11-24T09:00+01:00"}).link("/") == "/?at=2026-11-24T08%3A00%3A00Z"
    for wrong in ("lunch", f"{NOW + timedelta(days=1):%Y-%m-%dT%H:%M}"):
        with pytest.raises(InputError):
            Filters.read({"at": wrong})


@pytest.mark.parametrize(
    "path",
    [
        "/?at=0001-01-05T00:00:00Z",
        "/changes?at=0001-01-01T12:00:00Z",
        "/errors?at=0001-01-02T00:00:00Z&days=7",
        "/errors/runs?at=0001-01-03&days=30",
        "/clients/acme?at=0001-01-20",
        "/clients/acme?at=105000w",
    ],
)
def test_a_time_with_none_before_it_is_refused(board: httpx.Client, fixed: None, path: str) -> None:
    assert "at: must be a time from the year 1970 on" in words(page(board, path, 400))
