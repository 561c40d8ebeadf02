"""POST requests, logins and other things that partners need, as safe as a GET with a token."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

from chm_dagster.errors import AuthError, ConfigError, Permanent, RemoteError, SchemaDrift, Transient
from chm_dagster.http.auth import Auth, LoginSession, StaticAuth, Token, basic, header
from chm_dagster.http.client import DEFAULT_POLICY, HttpClient, HttpPolicy, Response
from chm_dagster.http.client import Request as HttpRequest
from chm_dagster.http.failures import StatusError
from chm_dagster.http.pace import Pace
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, in_turn, json_reply, status_reply
from chm_dagster_tests.http.setup import NOW, Slept

GOOD = json_reply({"runs": []})
SECRET = "sentinel-secret"


def asked(
    answer: Callable[[Request], Reply],
    *asks: HttpRequest,
    auth: Auth | None = None,
    headers: dict[str, str] | None = None,
    policy: HttpPolicy = DEFAULT_POLICY,
    slept: Slept | None = None,
) -> tuple[list[Response | RemoteError], list[Request]]:
    """The results of these requests in order, and what the server received."""

    async def scene() -> tuple[list[Response | RemoteError], list[Request]]:
        outcomes: list[Response | RemoteError] = []
        async with FaultServer(answer) as server:
            http = HttpClient(
                "connection acme",
                server.base_url,
                auth=auth,
                headers=headers,
                policy=policy,
                clock=lambda: NOW,
                sleep=slept or Slept(),
                random=lambda: 1.0,
            )
            async with http:
                for ask in asks:
                    try:
                        outcomes.append(await http.send(ask))
                    except RemoteError as error:
                        outcomes.append(error)
            return outcomes, server.requests

    return asyncio.run(scene())


# What is sent


def test_a_query_goes_out_as_json() -> None:
    body = {"ids": [1, "ä"], "nested": {"since": None}}
    _, requests = asked(in_turn(GOOD), HttpRequest(["runs", "list"], method="POST", body=body))
    assert (requests[0].method, requests[0].path, requests[0].json) == ("POST", "/base/runs/list", body)
    assert requests[0].headers["content-type"] == "application/json"


def test_a_form_goes_out_as_a_form() -> None:
    _, requests = asked(in_turn(GOOD), HttpRequest(["token"], method="POST", form={"scope": "a b", "secret": "x&y=z"}))
    assert parse_qs(requests[0].body.decode()) == {"scope": ["a b"], "secret": ["x&y=z"]}
    assert requests[0].headers["content-type"] == "application/x-www-form-urlencoded"


def test_a_get_has_no_body_and_no_content_type() -> None:
    _, requests = asked(in_turn(GOOD), HttpRequest(["runs"]))
    assert requests[0].body == b""
    assert "content-type" not in requests[0].headers


def test_a_parameter_can_be_repeated() -> None:
    _, requests = asked(in_turn(GOOD), HttpRequest(["runs"], [("state", "queued"), ("state", "running")]))
    assert requests[0].lists == {"state": ["queued", "running"]}


def test_a_trailing_slash_is_kept() -> None:
    _, requests = asked(in_turn(GOOD), HttpRequest(["accounts", "7"], slash=True))
    assert requests[0].path == "/base/accounts/7/"


def test_headers_of_the_connection_and_of_the_request_go_out_together() -> None:
    ask = HttpRequest(["runs"], headers={"X-Version": "2"})
    _, requests = asked(in_turn(GOOD), ask, headers={"Accept": "application/vnd.acme+json", "X-Version": "1"})
    assert (requests[0].headers["accept"], requests[0].headers["x-version"]) == ("application/vnd.acme+json", "2")


def test_values_that_json_cannot_express_are_not_sent() -> None:
    outcomes, requests = asked(in_turn(GOOD), HttpRequest(["runs"], method="POST", body={"ids": ["\ud800"]}))
    assert str(outcomes[0]) == "connection acme: /runs: the ids cannot be written as JSON"
    assert requests == []


# What comes back


def test_a_201_response_is_accepted() -> None:
    outcomes, _ = asked(in_turn(json_reply({"access_token": "x"}, 201)), HttpRequest(["token"], method="POST", body={}))
    assert isinstance(outcomes[0], Response)


@pytest.mark.parametrize(
    ("shape", "body", "accepted"),
    [
        ("list", [1], True),
        ("list", {}, False),
        ("object", [1], False),
        ("any", "3.9.1", True),
        ("any", [1], True),
        ("any", None, True),
    ],
)
def test_a_response_must_have_the_requested_shape(shape: Any, body: Any, accepted: bool) -> None:
    outcomes, _ = asked(in_turn(json_reply(body)), HttpRequest(["runs"], shape=shape))
    assert isinstance(outcomes[0], Response if accepted else SchemaDrift)


def test_a_post_is_repeated_like_a_get() -> None:
    answers = in_turn(status_reply(503), status_reply(502), GOOD)
    outcomes, requests = asked(answers, HttpRequest(["runs"], method="POST", body={"page": 1}))
    assert isinstance(outcomes[0], Response)
    assert [request.json for request in requests] == [{"page": 1}] * 3


def test_a_request_can_have_a_smaller_cap_than_the_connection() -> None:
    big = json_reply({"log": "x" * 2_000})
    outcomes, _ = asked(in_turn(big), HttpRequest(["log"], max_body_bytes=1_000), HttpRequest(["log"]))
    assert str(outcomes[0]) == "connection acme: /log: the response is larger than 1000 bytes"
    assert isinstance(outcomes[1], Response)


def test_the_next_page_can_be_named_in_a_header() -> None:
    linked = json_reply({}, headers={"Link": '<https://other.example/runs?page=2>; rel="next", </x>; rel="last"'})
    outcomes, _ = asked(in_turn(linked, GOOD), HttpRequest(["runs"]), HttpRequest(["runs"]))
    assert [answer.next_link for answer in outcomes if isinstance(answer, Response)] == [
        "https://other.example/runs?page=2",
        None,
    ]


@pytest.mark.parametrize(
    ("link", "path", "params"),
    [
        ("https://acme.example/api/v1/runs?page=2&q=a%20b", ["runs"], [("page", "2"), ("q", "a b")]),
        ("https://acme.example:443/api/v1/runs/x%2Fy", ["runs", "x/y"], []),
        ("/api/v1/runs?cursor=", ["runs"], [("cursor", "")]),
        ("https://evil.example/api/v1/runs", None, None),
        ("http://acme.example/api/v1/runs", None, None),
        ("https://acme.example:8443/api/v1/runs", None, None),
        ("//evil.example/api/v1/runs", None, None),
        ("https://u:p@acme.example/api/v1/runs", None, None),
        ("https://acme.example/admin/runs", None, None),
        ("https://acme.example/api/v1x/runs", None, None),
        ("https://acme.example:x/api/v1/runs", None, None),
    ],
)
def test_a_link_is_followed_only_below_the_base_url(link: str, path: Any, params: Any) -> None:
    http = HttpClient("connection acme", "https://acme.example/api/v1/")
    if path is None:
        with pytest.raises(SchemaDrift, match="leads away from base_url"):
            http.parse_link(link)
    else:
        assert http.parse_link(link) == (path, params)


# Pace


def test_requests_are_spaced_to_stay_below_the_limit() -> None:
    slept = Slept()
    asked(in_turn(GOOD), *[HttpRequest(["runs"])] * 4, policy=HttpPolicy(requests_per_minute=60), slept=slept)
    assert len(slept.seconds) == 3
    assert [round(seconds) for seconds in slept.seconds] == [1, 2, 3]


def test_clients_of_one_quota_are_given_one_place_each() -> None:
    now = [100.0]
    pace = Pace(lambda: now[0])
    assert [pace.seconds_to_wait(rate) for rate in (60, 60, 30, 60)] == [0, 1, 2, 4]
    now[0] = 200.0
    assert pace.seconds_to_wait(60) == 0


# Authentication


def test_fixed_credentials_are_sent_with_every_request() -> None:
    for proof, name, value in [
        (basic("connection acme", "user:p:ä"), "authorization", "Basic dXNlcjpwOsOk"),
        (header("connection acme", "X-Api-Key", "k y"), "x-api-key", "k y"),
        (header("connection acme", "Authorization", "Token t"), "authorization", "Token t"),
    ]:
        _, requests = asked(in_turn(GOOD), HttpRequest(["a"]), HttpRequest(["b"], method="POST", body={}), auth=proof)
        assert [request.headers[name] for request in requests] == [value] * 2
    _, requests = asked(in_turn(GOOD), HttpRequest(["a"], [("n", "1")]), auth=StaticAuth(params=[("key", "s&t")]))
    assert requests[0].query == {"n": "1", "key": "s&t"}


@pytest.mark.parametrize("value", ["", "a\n", "ä", "a\r\nX: 1", " a"])
def test_a_credential_that_is_not_a_valid_header_is_rejected_without_showing_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        header("connection acme", "X-Key", value)
    assert str(caught.value) == "connection acme: a credential is empty or holds a special character"
    with pytest.raises(ConfigError, match="user:password"):
        basic("connection acme", "sentinel")


class Door:
    """A server with a login: `POST /base/token` returns t1, t2, ...; all other paths require the newest one."""

    def __init__(self, *, refuse: int = 401) -> None:
        self.refuse = refuse
        self.given = 0
        self.token_answers: Callable[[Request], Reply] | None = None
        self.closed = False

    def __call__(self, request: Request) -> Reply:
        if request.path == "/base/token":
            if self.token_answers is not None:
                return self.token_answers(request)
            self.given += 1
            return json_reply({"access_token": f"t{self.given}"}, 201)
        wanted = f"Bearer t{self.given}"
        if self.closed or request.headers.get("authorization") != wanted:
            return status_reply(self.refuse)
        return GOOD


class Ticks:
    """A clock of seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def session(ticks: Ticks | None = None) -> LoginSession:
    async def sign_in(transport: Any) -> Token:
        answer = await transport(HttpRequest(["token"], method="POST", body={"password": SECRET}))
        return Token(answer.body.get("access_token"), answer.body.get("expires_in"))

    return LoginSession("connection acme", sign_in, hint="check ACME_PASSWORD", clock=ticks or Ticks())


def paths(requests: list[Request]) -> list[str]:
    return [request.path.removeprefix("/base/") for request in requests]


def test_one_login_serves_all_requests() -> None:
    outcomes, requests = asked(Door(), HttpRequest(["a"]), HttpRequest(["b"]), auth=session())
    assert all(isinstance(outcome, Response) for outcome in outcomes)
    assert paths(requests) == ["token", "a", "b"]
    assert "authorization" not in requests[0].headers


def test_workers_that_start_together_share_one_login() -> None:
    async def scene() -> list[Request]:
        async with (
            FaultServer(Door()) as server,
            HttpClient("connection acme", server.base_url, auth=session()) as http,
        ):
            await asyncio.gather(*(http.send(HttpRequest(["runs"])) for _ in range(10)))
            return server.requests

    assert sorted(paths(asyncio.run(scene()))) == ["runs"] * 10 + ["token"]


def test_a_concurrency_of_one_is_enough_to_log_in() -> None:
    outcomes, _ = asked(Door(), HttpRequest(["a"]), auth=session(), policy=HttpPolicy(concurrency=1))
    assert isinstance(outcomes[0], Response)


def test_an_expired_session_is_renewed_once() -> None:
    door = Door()
    first = in_turn(*[json_reply({"access_token": "stale"}), json_reply({"access_token": "t0"})])
    door.token_answers = first
    outcomes, requests = asked(door, HttpRequest(["a"]), HttpRequest(["b"]), auth=session())
    assert all(isinstance(outcome, Response) for outcome in outcomes)
    assert paths(requests) == ["token", "a", "token", "a", "b"]


def test_a_permanent_401_ends_after_one_more_login() -> None:
    door = Door()
    door.closed = True
    outcomes, requests = asked(door, HttpRequest(["a"]), auth=session())
    assert isinstance(outcomes[0], AuthError)
    assert str(outcomes[0]) == "connection acme: credentials refused (401); check ACME_PASSWORD"
    assert paths(requests) == ["token", "a", "token", "a"]


def test_a_403_on_a_fresh_session_means_missing_rights() -> None:
    door = Door(refuse=403)
    door.closed = True
    outcomes, requests = asked(door, HttpRequest(["a"]), auth=session())
    assert isinstance(outcomes[0], StatusError)
    assert outcomes[0].status == 403
    assert "the credentials are accepted, but they may not read this" in str(outcomes[0])
    assert paths(requests) == ["token", "a"]


def test_a_403_on_an_old_session_may_mean_that_it_expired() -> None:
    ticks = Ticks()
    door = Door(refuse=403)

    def answer(request: Request) -> Reply:
        if paths([request]) == ["b"] and ticks.now == 0.0:
            ticks.now = 61.0
            door.given += 1
            return status_reply(403)
        return door(request)

    outcomes, requests = asked(answer, HttpRequest(["a"]), HttpRequest(["b"]), auth=session(ticks))
    assert all(isinstance(outcome, Response) for outcome in outcomes)
    assert paths(requests) == ["token", "a", "b", "token", "b"]


def test_a_403_for_one_resource_does_not_affect_others() -> None:
    answers = in_turn(GOOD, status_reply(403), GOOD)
    outcomes, _ = asked(
        answers, HttpRequest(["a"]), HttpRequest(["b"]), HttpRequest(["c"]), auth=StaticAuth({"X-Key": "k"})
    )
    assert [type(outcome) for outcome in outcomes] == [Response, StatusError, Response]


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (status_reply(401), AuthError, "credentials refused (401); check ACME_PASSWORD"),
        (status_reply(422), AuthError, "refused (422); login failed; check ACME_PASSWORD"),
        (status_reply(404), AuthError, "/token: refused (404); login failed"),
        (status_reply(503), Transient, "/token: answered 503"),
        (json_reply({"token": SECRET}), SchemaDrift, "the login response holds no usable token"),
        (json_reply({"access_token": SECRET + "\n"}), SchemaDrift, "the login response holds no usable token"),
        (json_reply([SECRET]), AuthError, "login failed"),
    ],
)
def test_a_failed_login_is_reported_without_secrets(
    reply: Reply, kind: type[RemoteError], words: str, all_logs: pytest.LogCaptureFixture
) -> None:
    door = Door()
    door.token_answers = in_turn(reply)
    outcomes, requests = asked(door, HttpRequest(["a"]), auth=session())
    assert isinstance(outcomes[0], kind)
    assert words in str(outcomes[0])
    assert set(paths(requests)) == {"token"}
    shown = [str(outcomes[0]), repr(outcomes[0]), *all_logs.messages, repr(outcomes[0].__context__)]
    assert not [text for text in shown if "sentinel" in text]


def test_no_secret_is_ever_shown() -> None:
    for proof in (
        basic("connection acme", f"user:{SECRET}"),
        header("connection acme", "X-Key", SECRET),
        StaticAuth(params=[("key", SECRET)]),
    ):
        http = HttpClient("connection acme", "http://127.0.0.1:9", auth=proof)
        assert SECRET not in f"{proof!r} {http!r} {proof}"


def test_secrets_in_a_query_stay_out_of_errors_and_logs(all_logs: pytest.LogCaptureFixture) -> None:
    outcomes, _ = asked(in_turn(status_reply(400)), HttpRequest(["a"]), auth=StaticAuth(params=[("key", SECRET)]))
    assert isinstance(outcomes[0], Permanent)
    assert SECRET not in json.dumps([str(outcomes[0]), *all_logs.messages])
