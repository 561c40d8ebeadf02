"""The board in a real browser: axe finds nothing to report, the keyboard reaches everything, and no script is needed."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.board.conftest import PAGES, RULE, TOKEN, change, served
from chm_dagster_tests.board.test_pages import hostile
from chm_dagster_tests.contracts.histories import DAY, NOW, watch

__all__ = ["hostile"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
SIZES = {"small phone": (360, 740), "phone": (390, 844), "desktop": (1440, 900), "4K": (3840, 2160)}
MAX_PAGE_BYTES = 100_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # The language decides how a time is typed.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--lang=en-US"],
            env={**os.environ, "LANGUAGE": "en_US"},
        )
        yield browser
        browser.close()


@pytest.fixture
def url(warehouse: Warehouse) -> Iterator[str]:
    with served(warehouse) as address:
        yield address


def opened(chromium: Browser, **settings: Any) -> Page:
    page = chromium.new_context(**settings).new_page()
    page.set_default_timeout(60_000)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_reports_nothing_on_any_page(chromium: Browser, url: str, busy: Engine, scheme: Any) -> None:
    # axe puts itself into the page, which the policy of the board forbids everybody else.
    page = opened(chromium, color_scheme=scheme, bypass_csp=True)
    for path in PAGES:
        page.goto(url + path)
        report = Axe().run(page)
        assert report.violations_count == 0, (path, scheme, report.generate_report())


def test_axe_would_report_a_page_that_is_not_accessible(chromium: Browser) -> None:
    page = opened(chromium)
    page.set_content("<title>x</title><img src='data:,'><p style='color:#ccc'>faint</p>")
    assert Axe().run(page).violations_count >= 2


@pytest.mark.parametrize("size", SIZES)
def test_no_page_scrolls_sideways(chromium: Browser, url: str, busy: Engine, size: str) -> None:
    width, height = SIZES[size]
    page = opened(chromium, viewport={"width": width, "height": height})
    for path in PAGES:
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, size)


@pytest.mark.parametrize(("width", "lines"), [(1400, 2), (800, 3)])
def test_the_banner_of_a_time_in_the_past_has_few_lines(
    chromium: Browser, url: str, busy: Engine, width: int, lines: int
) -> None:
    page = opened(chromium, viewport={"width": width, "height": 900})
    for path in ("/?at=2h", "/clients/acme/orders?at=2h", "/errors?at=2h", "/rules?at=2h"):
        page.goto(url + path)
        height, line = page.evaluate(
            "() => { const parts = [...document.querySelectorAll('#then p')];"
            " return [parts.reduce((sum, part) => sum + part.offsetHeight, 0),"
            " parseFloat(getComputedStyle(parts[0]).lineHeight)]; }"
        )
        assert round(height / line) <= lines, (path, height, line)


def tab_to(page: Page, expression: str, wanted: str) -> None:
    """Press Tab until the element that has the focus is the wanted one."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(expression) == wanted:
            return
    raise AssertionError(f"the keyboard does not reach {wanted}")


def test_the_keyboard_alone_chooses_a_time_and_comes_back(chromium: Browser, url: str, busy: Engine) -> None:
    page = opened(chromium)
    page.goto(url)
    then = NOW - 2 * DAY
    tab_to(page, "document.activeElement.name", "at")
    page.keyboard.type(f"{then:%m%d%Y}")
    page.keyboard.press("ArrowRight")
    page.keyboard.type(f"{then:%I%M%p}")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"at={then:%Y-%m-%dT%H}%3A{then:%M}"))
    expect(page.locator("#then")).to_contain_text("As of")
    tab_to(page, "document.activeElement.textContent", "Back to now")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/$"))
    expect(page.locator("#then")).to_have_count(0)


@pytest.mark.parametrize("path", ["/", "/clients/acme/orders?at=2h", "/errors?at=2h", RULE])
def test_the_keyboard_reaches_every_link_and_shows_where_it_is(
    chromium: Browser, url: str, busy: Engine, path: str
) -> None:
    page = opened(chromium)
    page.goto(url + path)
    wanted = page.evaluate("document.querySelectorAll('a[href], button, select, input:not([type=hidden])').length")
    reached = set()
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        place = page.evaluate(
            "() => { const e = document.activeElement; const all = [...document.querySelectorAll('*')];"
            " return [all.indexOf(e), e.matches('a, button, select, input'), getComputedStyle(e).outlineStyle]; }"
        )
        if place[1]:
            assert place[2] != "none", page.evaluate("document.activeElement.outerHTML")
            reached.add(place[0])
    assert len(reached) == wanted


def test_without_scripts_everything_is_there(chromium: Browser, url: str, busy: Engine) -> None:
    page = opened(chromium, java_script_enabled=False)
    page.goto(url)
    page.get_by_label("Environment").select_option("prod")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(re.compile("environment=prod"))
    page.get_by_role("link", name="1 pipeline failing").click()
    page.get_by_role("link", name="Acme / orders").click()
    expect(page.get_by_role("heading", name="orders")).to_be_visible()
    expect(page.locator("ol.runs a")).to_have_count(12)


def test_times_are_in_the_viewers_zone_with_utc_behind_them(chromium: Browser, url: str, busy: Engine) -> None:
    page = opened(chromium, timezone_id="Asia/Tokyo", locale="en-GB")
    page.goto(f"{url}/clients/acme/orders/run?id=run-11")
    started = page.locator("dt:text-is('Started') + dd time")
    utc = started.get_attribute("title") or ""
    hour = (int(utc[11:13]) + 9) % 24
    assert f"{hour:02}:{utc[14:16]}" in started.inner_text()
    assert utc.endswith(" UTC")


def test_an_open_page_is_refreshed_and_says_when_it_cannot_be(
    chromium: Browser, warehouse: Warehouse, engine: Engine
) -> None:
    watch(engine, "SSSS")
    page = opened(chromium)
    page.clock.install()
    with served(warehouse) as address:
        page.goto(address)
        expect(page.locator(".tile.is-healthy strong")).to_have_text("1")
        change(engine, "orders", "is_active = false")
        page.clock.fast_forward(31_000)
        expect(page.locator(".tile.is-paused strong")).to_have_text("1", timeout=60_000)
    page.clock.fast_forward(31_000)
    expect(page.locator(".stale")).to_contain_text("the server does not answer", timeout=60_000)


def test_hostile_texts_run_nothing(chromium: Browser, url: str, hostile: Engine) -> None:
    page = opened(chromium)
    alerts, refused = [], []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: refused.append(message.text) if "Security Policy" in message.text else None)
    for path in ("/", "/wall", "/pipelines", "/changes", "/errors", "/rules", "/partners", "/clients/acme/orders"):
        page.goto(url + path)
    page.locator("ol.runs a").last.click()
    page.wait_for_load_state()
    assert (alerts, refused) == ([], [])


def test_the_policy_stops_a_script_that_gets_into_a_page(chromium: Browser, url: str, busy: Engine) -> None:
    page = opened(chromium)
    page.goto(url)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None


def test_a_browser_signs_in_and_out(chromium: Browser, warehouse: Warehouse, busy: Engine) -> None:
    with served(warehouse, TOKEN) as address:
        page = opened(chromium)
        page.goto(f"{address}/clients/acme?health=failing")
        page.get_by_label("API token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/clients/acme?health=failing")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")


def test_pages_stay_small_however_many_pipelines_fail(url: str, engine: Engine) -> None:
    for client in range(70):
        watch(engine, "FFFFFFFFFF", "orders", f"Client-{client}")
    for number in range(60):
        watch(engine, "F" * 60, f"pipeline-{number}", "Acme")
    for path in (*PAGES, "/pipelines?client=acme"):
        answer = httpx.get(url + path, trust_env=False, timeout=60)
        assert len(answer.content) < MAX_PAGE_BYTES, (path, len(answer.content))
