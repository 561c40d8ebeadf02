"""The guard in a real browser: what a page of another origin can do, and that the UI itself goes on working."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from chm_dagster.serving import serve_in_thread
from chm_dagster_tests.ui.conftest import TOKEN, Server, mutation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

# Everything that a page can send to another origin without being asked. Resolves with what became of each.
ATTACK = """async ([target, mutations]) => {
  const url = (query) => `${target}/graphql?query=${encodeURIComponent(query)}`;
  const outcome = (promise) => promise.then((v) => String(v), (e) => 'refused: ' + e);
  const image = (src) => new Promise((done) => { const i = new Image(); i.onload = i.onerror = () => done('sent'); i.src = src; });
  const frame = (src) => new Promise((done) => {
    const f = document.createElement('iframe'); f.onload = () => done('loaded'); f.src = src; document.body.append(f);
  });
  const form = (action, enctype) => new Promise((done) => {
    const f = document.createElement('iframe'); f.name = 'f' + Math.random(); document.body.append(f);
    f.onload = () => done('loaded');
    const form = document.createElement('form'); Object.assign(form, {method: 'post', action, enctype, target: f.name});
    document.body.append(form); form.submit();
  });
  const socket = () => new Promise((done) => {
    const s = new WebSocket(target.replace('http', 'ws') + '/graphql', 'graphql-ws');
    s.onopen = () => { s.close(); done('open'); }; s.onerror = () => done('closed');
  });
  const send = (init, query) => outcome(fetch(url(query), {mode: 'no-cors', credentials: 'include', ...init}).then(() => 'sent'));
  return {
    get: await send({}, mutations[0]),
    text: await send({method: 'POST', body: 'x', headers: {'Content-Type': 'text/plain'}}, mutations[1]),
    image: await image(url(mutations[2])),
    form: await form(url(mutations[3]), 'text/plain'),
    json: await outcome(fetch(target + '/graphql', {method: 'POST', credentials: 'include',
      headers: {'Content-Type': 'application/json'}, body: JSON.stringify({query: mutations[4]})}).then(() => 'sent')),
    beacon: String(navigator.sendBeacon(url(mutations[5]), 'x')),
    socket: await socket(),
    frame: await frame(target + '/runs'),
  };
}"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[BrowserContext]:
    """A browser with a profile of its own, which reaches nothing but this machine."""
    flags = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-sync", *flags],
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """A page of somebody else's, under another host name and port."""
    app = Starlette(routes=[Route("/", lambda _: HTMLResponse("<title>foreign</title><body></body>"))])
    with serve_in_thread(app) as url:
        yield url.replace("127.0.0.1", "localhost")


def attack(browser: BrowserContext, page_url: str, server: Server) -> dict[str, str]:
    """Let a page do its worst. Each way of sending has a mutation of its own."""
    page = browser.new_page()
    page.goto(page_url)
    outcome: dict[str, str] = page.evaluate(ATTACK, [server.url, [mutation(n) for n in range(101, 107)]])
    page.wait_for_timeout(500)  # a beacon has no end that a page could wait for
    page.close()
    return outcome


def test_a_foreign_page_changes_dagsters_own_server(browser: BrowserContext, foreign: str, bare: Server) -> None:
    outcome = attack(browser, foreign, bare)
    assert bare.slots() in range(101, 107)
    assert outcome["socket"] == "open"


def test_a_foreign_page_changes_nothing_behind_the_guard(
    browser: BrowserContext, foreign: str, guarded: Server
) -> None:
    before = guarded.slots()
    outcome = attack(browser, foreign, guarded)
    assert guarded.slots() == before
    assert outcome["socket"] == "closed"


def test_a_page_on_another_port_of_the_same_name_changes_nothing(
    browser: BrowserContext, foreign: str, guarded: Server
) -> None:
    before = guarded.slots()
    attack(browser, foreign.replace("localhost", "127.0.0.1"), guarded)
    assert guarded.slots() == before


def test_a_foreign_page_changes_nothing_while_somebody_is_signed_in(
    browser: BrowserContext, foreign: str, published: Server
) -> None:
    sign_in(browser, published).close()
    before = published.slots()
    outcome = attack(browser, foreign, published)
    assert published.slots() == before
    assert outcome["socket"] == "closed"


def sign_in(browser: BrowserContext, server: Server) -> Page:
    page = browser.new_page()
    page.goto(f"{server.url}/locations")
    page.get_by_label("API token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{server.url}/locations")
    return page


def use(page: Page, server: Server) -> None:
    """What an operator does: launch a run from the launchpad, and follow it as it goes."""
    frames: list[str | bytes] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(frame)))
    page.goto(f"{server.url}/locations/location.py/jobs/greet/playground")
    page.get_by_role("button", name="Launch run").click()
    page.wait_for_url("**/runs/*")
    # No daemon runs here that would take it out of the queue.
    expect(page.get_by_text("Run queued").first).to_be_visible(timeout=60_000)
    for _ in range(300):
        if any('"data"' in str(frame) for frame in frames):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"no data came over the subscription: {frames}")


def test_the_ui_works_behind_the_guard(browser: BrowserContext, guarded: Server) -> None:
    page = browser.new_page()
    use(page, guarded)
    assert guarded.ask("{ runsOrError { ... on Runs { results { jobName } } } }")["runsOrError"]["results"]


def test_the_ui_works_for_somebody_who_is_signed_in(browser: BrowserContext, published: Server) -> None:
    use(sign_in(browser, published), published)
