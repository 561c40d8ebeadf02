"""Who may see the board, and how a browser signs in."""

import time
from collections.abc import Iterator

import httpx
import pytest

from chm_dagster.api.app import bare_app
from chm_dagster.api.pages import COOKIE, is_page, router
from chm_dagster.sessions import Sessions, local_path
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.board.conftest import PAGES, TOKEN, browser, served

FOREIGN = "http://evil.example"


@pytest.fixture
def locked(warehouse: Warehouse) -> Iterator[httpx.Client]:
    """A browser before a server that has a token."""
    with served(warehouse, TOKEN) as url, browser(url) as client:
        yield client


def sign_in(board: httpx.Client, token: str = TOKEN, **headers: str) -> httpx.Response:
    return board.post("/login", data={"token": token, "next": "/rules"}, headers=headers)


@pytest.mark.parametrize("path", [path for path in PAGES if ".." not in path])
def test_a_page_asks_to_sign_in_and_comes_back(locked: httpx.Client, path: str) -> None:
    answer = locked.get(path)
    assert answer.status_code == 303
    assert httpx.URL(answer.headers["location"]).path == "/login"
    assert httpx.URL(answer.headers["location"]).params["next"] == path
    assert "API token" in locked.get(answer.headers["location"]).text


def test_the_token_begins_a_session_whose_cookie_no_script_and_no_other_site_gets(locked: httpx.Client) -> None:
    answer = sign_in(locked)
    assert (answer.status_code, answer.headers["location"]) == (303, "/rules")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert TOKEN not in cookie
    assert locked.get("/").status_code == 200


def test_over_tls_the_cookie_is_for_tls_only(locked: httpx.Client) -> None:
    host = locked.base_url.netloc.decode()
    assert "Secure" in sign_in(locked, origin=f"https://{host}").headers["set-cookie"]
    assert "Secure" not in sign_in(locked, origin=f"http://{host}").headers["set-cookie"]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN.upper(), TOKEN + "x", "é"])
def test_another_token_begins_none(locked: httpx.Client, token: str) -> None:
    answer = sign_in(locked, token)
    assert answer.status_code == 401
    assert "That is not the token." in answer.text
    assert "set-cookie" not in answer.headers


def test_a_session_opens_pages_and_nothing_else(locked: httpx.Client) -> None:
    sign_in(locked)
    for path in ("/api/v1/clients", "/ping/acme/orders", "/metrics", "/api/v1/health/failing"):
        assert locked.get(path).status_code == 401, path
    assert locked.post("/", content=b"").status_code == 401


@pytest.mark.parametrize(
    "headers", [{"origin": FOREIGN}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
)
def test_a_page_of_another_site_neither_begins_nor_ends_a_session(
    locked: httpx.Client, headers: dict[str, str]
) -> None:
    answer = sign_in(locked, **headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "set-cookie" not in locked.post("/logout", headers=headers).headers


def test_signing_out_ends_the_session(locked: httpx.Client) -> None:
    sign_in(locked)
    assert locked.post("/logout").headers["location"] == "/login"
    assert locked.get("/").status_code == 303


def test_a_cookie_that_is_forged_or_expired_is_none() -> None:
    sessions, others = Sessions(TOKEN, COOKIE), Sessions("another", COOKIE)
    good = f"{int(time.time()) + 60}"
    signed = sessions._signature(good)
    assert sessions.is_open({COOKIE: f"{good}.{signed}"})
    past = f"{int(time.time()) - 1}"
    for value in (
        "",
        "x",
        f"{good}.",
        f"{int(good) + 1}.{signed}",
        f"{past}.{sessions._signature(past)}",
        f"é.{signed}",
    ):
        assert not sessions.is_open({COOKIE: value}), value
    assert not others.is_open({COOKIE: f"{good}.{signed}"})
    assert not sessions.is_open({})


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example", "", None, "/a\nb"])
def test_signing_in_leads_nowhere_else(path: str | None) -> None:
    assert local_path(path) == "/"


def test_every_page_needs_the_session_and_no_address_of_the_api_is_a_page() -> None:
    app = bare_app()
    own = {route.path for route in router.routes}  # type: ignore[attr-defined]
    for path in app.openapi()["paths"]:
        assert not is_page(path), path
    assert {path for path in own if not is_page(path)} == {"/login", "/logout"}


def test_without_a_token_a_link_elsewhere_may_open_the_board_and_no_page_may_read_it(board: httpx.Client) -> None:
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert board.get("/", headers=visit).status_code == 200
    assert board.get("/healthz", headers=visit).status_code == 200
    assert board.get("/api/v1/clients", headers=visit).status_code == 403
    for change in (
        {"sec-fetch-mode": "cors"},
        {"sec-fetch-dest": "iframe"},
        {"host": "evil.example"},
        {"origin": FOREIGN},
    ):
        assert board.get("/", headers={**visit, **change}).status_code == 403, change


def test_the_script_and_the_style_are_for_everybody_and_kept(locked: httpx.Client) -> None:
    text = locked.get("/login").text
    address = text.partition('rel="stylesheet" href="')[2].partition('"')[0]
    answer = locked.get(address)
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]
    assert locked.get("/board/../pages.py").status_code in (401, 404)
