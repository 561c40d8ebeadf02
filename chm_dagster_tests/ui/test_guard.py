"""The guard before Dagster's UI, by raw requests: each attack works without it, and none does with it."""

import contextlib
import json
from collections.abc import Mapping
from itertools import count
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from chm_dagster.sessions import Sessions
from chm_dagster_tests.ui.conftest import TOKEN, Server, mutation

_slots = count(2)
JSON = {"Content-Type": "application/json"}
FOREIGN = "http://evil.example"


def send(server: Server, method: str, path: str, headers: Mapping[str, str], body: str = "") -> httpx.Response:
    return httpx.request(method, server.url + path, headers=dict(headers), content=body, timeout=60, trust_env=False)


def in_url(slots: int) -> str:
    return f"/graphql?query={quote(mutation(slots))}"


def as_json(slots: int) -> str:
    return json.dumps({"query": mutation(slots)})


ATTACKS: dict[str, Any] = {
    "a mutation by GET": lambda n: ("GET", in_url(n), {}, ""),
    "a mutation by GET that accepts anything": lambda n: ("GET", in_url(n), {"Accept": "image/*,*/*"}, ""),
    "a plain-text POST": lambda n: ("POST", in_url(n), {"Content-Type": "text/plain"}, "x"),
    "a form": lambda n: ("POST", in_url(n), {"Content-Type": "application/x-www-form-urlencoded"}, "a=b"),
    "no content type": lambda n: ("POST", in_url(n), {}, ""),
    "plain text that mentions JSON": lambda n: (
        "POST",
        "/graphql",
        {"Content-Type": "text/plain; x=application/json"},
        as_json(n),
    ),
    "a bare query": lambda n: ("POST", "/graphql", {"Content-Type": "application/graphql"}, mutation(n)),
    "an encoded path": lambda n: ("GET", in_url(n).replace("graphql", "%67raphql"), {}, ""),
    "JSON of a foreign origin": lambda n: ("POST", "/graphql", {**JSON, "Origin": FOREIGN}, as_json(n)),
    "JSON of no origin at all": lambda n: ("POST", "/graphql", {**JSON, "Origin": "null"}, as_json(n)),
    "JSON of another port of this machine": lambda n: (
        "POST",
        "/graphql",
        {**JSON, "Origin": "http://127.0.0.1:1"},
        as_json(n),
    ),
    "JSON across sites": lambda n: ("POST", "/graphql", {**JSON, "Sec-Fetch-Site": "cross-site"}, as_json(n)),
    "JSON within one site": lambda n: ("POST", "/graphql", {**JSON, "Sec-Fetch-Site": "same-site"}, as_json(n)),
    "a name that points to this machine": lambda n: (
        "POST",
        "/graphql",
        {**JSON, "Host": "evil.example", "Origin": FOREIGN, "Sec-Fetch-Site": "same-origin"},
        as_json(n),
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_attack_works_on_dagsters_own_server(attack: str, bare: Server) -> None:
    slots = next(_slots)
    send(bare, *ATTACKS[attack](slots))
    assert bare.slots() == slots


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_works_on_the_guarded_one(attack: str, guarded: Server) -> None:
    before = guarded.slots()
    response = send(guarded, *ATTACKS[attack](before + 1))
    assert response.status_code in (400, 403, 415)
    assert guarded.slots() == before


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_works_with_the_cookie_of_somebody_who_is_signed_in(attack: str, published: Server) -> None:
    before = published.slots()
    method, path, headers, body = ATTACKS[attack](before + 1)
    response = send(published, method, path, {**headers, "Cookie": session(published)}, body)
    assert response.status_code in (400, 403, 415)
    assert published.slots() == before


def test_the_ui_s_own_requests_and_programs_are_served(guarded: Server) -> None:
    own = {**JSON, "Origin": guarded.url, "Sec-Fetch-Site": "same-origin"}
    for headers in (JSON, own, {"Content-Type": "application/json; charset=utf-8"}):
        slots = guarded.slots() + 1
        assert send(guarded, "POST", "/graphql", headers, as_json(slots)).status_code == 200
        assert guarded.slots() == slots
    page = send(guarded, "GET", "/", {"Accept": "text/html", "Sec-Fetch-Site": "cross-site"})
    assert (page.status_code, 'id="initialization-data"' in page.text) == (200, True), (
        "a link from elsewhere opens the UI"
    )
    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    assert "graphiql" in send(guarded, "GET", "/graphql", {"Accept": "text/html"}).text
    assert send(guarded, "GET", "/server_info", {"Host": "localhost:3000"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:3000", "localhost.evil.example", "192.0.2.1", "[::2]", ""]
)
def test_a_server_of_this_machine_answers_to_no_other_name(host: str, guarded: Server, bare: Server) -> None:
    assert send(bare, "GET", "/server_info", {"Host": host}).status_code == 200
    assert send(guarded, "GET", "/server_info", {"Host": host}).status_code == 403


# --- subscriptions -------------------------------------------------------------------------------------------------------


def handshake(server: Server, **headers: str) -> int:
    """The status of a websocket's handshake, 101 if it is open and answers."""
    address = server.url.replace("http", "ws", 1) + "/graphql"
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with connect(address, additional_headers=given, subprotocols=["graphql-ws"], proxy=None) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"type": "connection_init"}))
            assert json.loads(socket.recv(timeout=30))["type"] == "connection_ack"
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_only_the_ui_s_own_pages_subscribe(guarded: Server, bare: Server) -> None:
    for headers in ({"Origin": FOREIGN}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        assert handshake(bare, **headers) == 101
        assert handshake(guarded, **headers) == 403
    assert handshake(guarded) == 101
    assert handshake(guarded, Origin=guarded.url) == 101


def test_a_subscription_needs_the_token_too(published: Server) -> None:
    assert handshake(published) == 403
    assert handshake(published, Authorization=f"Bearer {TOKEN}") == 101
    assert handshake(published, Cookie=session(published), Origin=published.url) == 101


# --- signing in ------------------------------------------------------------------------------------------------------------


def sign_in(server: Server, token: str = TOKEN, target: str = "/runs", **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/login", data={"token": token, "next": target}, headers=headers, timeout=60, trust_env=False
    )


def session(server: Server) -> str:
    return sign_in(server).headers["set-cookie"].partition(";")[0]


def test_nothing_is_shown_to_whoever_has_no_token(published: Server) -> None:
    for path in ("/", "/server_info", "/graphql", "/logs/x/y", "/download_debug/x", "/favicon.png"):
        assert send(published, "GET", path, {}).status_code == 401, path
    assert send(published, "POST", "/graphql", JSON, as_json(1)).status_code == 401
    assert send(published, "POST", "/report_asset_materialization/x", JSON, "{}").status_code == 401
    for wrong in ("Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer"):
        assert send(published, "GET", "/server_info", {"Authorization": wrong}).status_code == 401
    assert send(published, "GET", "/healthz", {}).text == "ok"
    assert send(published, "GET", "/server_info", {"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_is_sent_to_the_login_and_back(published: Server) -> None:
    sent = send(published, "GET", "/runs?q=a%20b", {"Accept": "text/html"})
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=%2Fruns%3Fq%3Da%2520b")
    page = send(published, "GET", sent.headers["location"], {"Accept": "text/html"})
    assert 'value="/runs?q=a%20b"' in page.text
    done = sign_in(published, target="/runs?q=a%20b")
    assert (done.status_code, done.headers["location"]) == (303, "/runs?q=a%20b")
    cookie = done.headers["set-cookie"]
    assert TOKEN not in cookie and "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    assert send(published, "GET", "/server_info", {"Cookie": session(published)}).status_code == 200


def test_behind_tls_the_cookie_never_travels_in_the_clear(published: Server) -> None:
    cookie = sign_in(published, Host="chm.example.com", Origin="https://chm.example.com").headers["set-cookie"]
    assert "Secure" in cookie


def test_a_wrong_token_a_foreign_page_and_a_forged_cookie_do_not_sign_in(published: Server) -> None:
    for wrong in ("", "x", TOKEN + "x", "ä" * 5_000):
        refused = sign_in(published, wrong)
        assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
    assert sign_in(published, Origin=FOREIGN).status_code == 403
    expires, _, signature = session(published).partition("=")[2].partition(".")
    for forged in (
        f"{int(expires) + 1}.{signature}",
        f"{expires}.{signature[:-1]}",
        f"{expires}.",
        f".{signature}",
        "1.x",
        "",
        "²." + signature,
    ):
        with contextlib.suppress(UnicodeEncodeError):
            cookie = {"Cookie": f"chm_dagster_ui={forged}"}
            assert send(published, "GET", "/server_info", cookie).status_code == 401, forged


def test_a_session_ends(published: Server) -> None:
    from chm_dagster.ui import COOKIE

    sign = Sessions(TOKEN, COOKIE)._signature
    past = f"{COOKIE}=1000.{sign('1000')}"
    assert send(published, "GET", "/server_info", {"Cookie": past}).status_code == 401
    future = f"{COOKIE}=99999999999.{sign('99999999999')}"
    assert send(published, "GET", "/server_info", {"Cookie": future}).status_code == 200


@pytest.mark.parametrize("target", ["//evil.example", "/\\evil.example", "http://evil.example", "/a\nb", "evil", ""])
def test_the_login_leads_nowhere_else(target: str, published: Server) -> None:
    assert sign_in(published, target=target).headers["location"] == "/"


def test_the_login_page_shows_no_html_of_others(published: Server) -> None:
    page = send(published, "GET", "/login?next=/%22%3E%3Cscript%3E", {})
    assert "<script>" not in page.text and "&lt;script&gt;" in page.text


@pytest.mark.parametrize(("host", "status"), [("chm.example.com", 200), ("192.0.2.1:3000", 200), ("evil.example", 403)])
def test_a_published_server_answers_to_its_names_and_addresses(host: str, status: int, published: Server) -> None:
    headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
    assert send(published, "GET", "/server_info", headers).status_code == status


def test_a_proxy_may_keep_the_origin_and_change_the_host(published: Server) -> None:
    headers = {**JSON, "Authorization": f"Bearer {TOKEN}", "Origin": "https://chm.example.com"}
    slots = published.slots() + 1
    assert send(published, "POST", "/graphql", headers, as_json(slots)).status_code == 200
    assert published.slots() == slots
