"""Asking by POST, signing in, and the other things that partners want: as safe as a GET with a token."""

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

from chm_dagster.errors import AuthError, ConfigError, PartnerError, Permanent, SchemaDrift, Transient
from chm_dagster.partners.credentials import Credentials, Fixed, Session, basic, header
from chm_dagster.partners.http import DEFAULT_POLICY, Answer, Ask, HttpPolicy, PartnerHttp
from chm_dagster.partners.verdicts import Refused
from chm_dagster_tests.partners.fault_server import FaultServer, Reply, Request, in_turn, json_reply, status_reply
from chm_dagster_tests.partners.http_setup import NOW, Slept

GOOD = json_reply({"runs": []})
SECRET = "sentinel-secret"


def asked(
    answer: Callable[[Request], Reply],
    *asks: Ask,
    credentials: Credentials | None = None,
    headers: dict[str, str] | None = None,
    policy: HttpPolicy = DEFAULT_POLICY,
    slept: Slept | None = None,
) -> tuple[list[Answer | PartnerError], list[Request]]:
    """The outcomes of these requests, one after the other, and what the server saw."""

    async def scene() -> tuple[list[Answer | PartnerError], list[Request]]:
        outcomes: list[Answer | PartnerError] = []
        async with FaultServer(answer) as server:
            http = PartnerHttp(
                "acme",
                server.base_url,
                credentials=credentials,
                headers=headers,
                policy=policy,
                clock=lambda: NOW,
                sleep=slept or Slept(),
                random=lambda: 1.0,
            )
            async with http:
                for ask in asks:
                    try:
                        outcomes.append(await http.ask(ask))
                    except PartnerError as error:
                        outcomes.append(error)
            return outcomes, server.requests

    return asyncio.run(scene())


# What is sent


def test_a_query_goes_out_as_json() -> None:
    body = {"ids": [1, "ä"], "nested": {"since": None}}
    _, requests = asked(in_turn(GOOD), Ask(["runs", "list"], method="POST", body=body))
    assert (requests[0].method, requests[0].path, requests[0].json) == ("POST", "/base/runs/list", body)
    assert requests[0].headers["content-type"] == "application/json"


def test_a_form_goes_out_as_a_form() -> None:
    _, requests = asked(in_turn(GOOD), Ask(["token"], method="POST", form={"scope": "a b", "secret": "x&y=z"}))
    assert parse_qs(requests[0].body.decode()) == {"scope": ["a b"], "secret": ["x&y=z"]}
    assert requests[0].headers["content-type"] == "application/x-www-form-urlencoded"


def test_a_get_has_no_body_and_no_type_of_one() -> None:
    _, requests = asked(in_turn(GOOD), Ask(["runs"]))
    assert requests[0].body == b""
    assert "content-type" not in requests[0].headers


def test_a_parameter_may_stand_several_times() -> None:
    _, requests = asked(in_turn(GOOD), Ask(["runs"], [("state", "queued"), ("state", "running")]))
    assert requests[0].lists == {"state": ["queued", "running"]}


def test_a_slash_at_the_end_stays() -> None:
    _, requests = asked(in_turn(GOOD), Ask(["accounts", "7"], slash=True))
    assert requests[0].path == "/base/accounts/7/"


def test_headers_of_the_connection_and_of_the_request_go_out_together() -> None:
    ask = Ask(["runs"], headers={"X-Version": "2"})
    _, requests = asked(in_turn(GOOD), ask, headers={"Accept": "application/vnd.acme+json", "X-Version": "1"})
    assert (requests[0].headers["accept"], requests[0].headers["x-version"]) == ("application/vnd.acme+json", "2")


def test_what_json_cannot_hold_is_not_sent() -> None:
    outcomes, requests = asked(in_turn(GOOD), Ask(["runs"], method="POST", body={"ids": ["\ud800"]}))
    assert str(outcomes[0]) == "connection acme: /runs: the ids do not fit into JSON"
    assert requests == []


# What comes back


def test_a_created_answer_is_an_answer() -> None:
    outcomes, _ = asked(in_turn(json_reply({"access_token": "x"}, 201)), Ask(["token"], method="POST", body={}))
    assert isinstance(outcomes[0], Answer)


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
def test_an_answer_must_have_the_shape_that_was_asked_for(shape: Any, body: Any, accepted: bool) -> None:
    outcomes, _ = asked(in_turn(json_reply(body)), Ask(["runs"], shape=shape))
    assert isinstance(outcomes[0], Answer if accepted else SchemaDrift)


def test_a_post_is_repeated_like_a_get() -> None:
    answers = in_turn(status_reply(503), status_reply(502), GOOD)
    outcomes, requests = asked(answers, Ask(["runs"], method="POST", body={"page": 1}))
    assert isinstance(outcomes[0], Answer)
    assert [request.json for request in requests] == [{"page": 1}] * 3


def test_a_request_may_have_a_smaller_cap_than_the_connection() -> None:
    big = json_reply({"log": "x" * 2_000})
    outcomes, _ = asked(in_turn(big), Ask(["log"], max_body_bytes=1_000), Ask(["log"]))
    assert str(outcomes[0]) == "connection acme: /log: the answer is larger than 1000 bytes"
    assert isinstance(outcomes[1], Answer)


def test_the_next_page_may_be_named_in_a_header() -> None:
    linked = json_reply({}, headers={"Link": '<https://other.example/runs?page=2>; rel="next", </x>; rel="last"'})
    outcomes, _ = asked(in_turn(linked, GOOD), Ask(["runs"]), Ask(["runs"]))
    assert [answer.next_link for answer in outcomes if isinstance(answer, Answer)] == [
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
    http = PartnerHttp("acme", "https://acme.example/api/v1/")
    if path is None:
        with pytest.raises(SchemaDrift, match="leads away from base_url"):
            http.below(link)
    else:
        assert http.below(link) == (path, params)


# Pace


def test_requests_are_spaced_to_stay_below_the_limit() -> None:
    slept = Slept()
    asked(in_turn(GOOD), *[Ask(["runs"])] * 4, policy=HttpPolicy(requests_per_minute=60), slept=slept)
    assert len(slept.seconds) == 3
    assert [round(seconds) for seconds in slept.seconds] == [1, 2, 3]


# Who asks


def test_fixed_proofs_go_out_with_every_request() -> None:
    for proof, name, value in [
        (basic("acme", "user:p:ä"), "authorization", "Basic dXNlcjpwOsOk"),
        (header("acme", "X-Api-Key", "k y"), "x-api-key", "k y"),
        (header("acme", "Authorization", "Token t"), "authorization", "Token t"),
    ]:
        _, requests = asked(in_turn(GOOD), Ask(["a"]), Ask(["b"], method="POST", body={}), credentials=proof)
        assert [request.headers[name] for request in requests] == [value] * 2
    _, requests = asked(in_turn(GOOD), Ask(["a"], [("n", "1")]), credentials=Fixed(params=[("key", "s&t")]))
    assert requests[0].query == {"n": "1", "key": "s&t"}


@pytest.mark.parametrize("value", ["", "a\n", "ä", "a\r\nX: 1", " a"])
def test_a_proof_that_is_no_header_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        header("acme", "X-Key", value)
    assert str(caught.value) == "connection acme: a credential is empty or holds a special character"
    with pytest.raises(ConfigError, match="user:password"):
        basic("acme", "sentinel")


class Door:
    """A server with a sign-in: `POST /base/token` gives t1, t2, ...; everything else wants the newest one."""

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


def session(ticks: Ticks | None = None) -> Session:
    async def sign_in(transport: Any) -> Any:
        answer = await transport(Ask(["token"], method="POST", body={"password": SECRET}))
        return answer.body.get("access_token")

    return Session("acme", sign_in, hint="check ACME_PASSWORD", clock=ticks or Ticks())


def paths(requests: list[Request]) -> list[str]:
    return [request.path.removeprefix("/base/") for request in requests]


def test_one_sign_in_serves_all_requests() -> None:
    outcomes, requests = asked(Door(), Ask(["a"]), Ask(["b"]), credentials=session())
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert paths(requests) == ["token", "a", "b"]
    assert "authorization" not in requests[0].headers


def test_workers_that_start_together_wait_for_one_sign_in() -> None:
    async def scene() -> list[Request]:
        async with FaultServer(Door()) as server, PartnerHttp("acme", server.base_url, credentials=session()) as http:
            await asyncio.gather(*(http.ask(Ask(["runs"])) for _ in range(10)))
            return server.requests

    assert sorted(paths(asyncio.run(scene()))) == ["runs"] * 10 + ["token"]


def test_a_single_slot_is_enough_to_sign_in() -> None:
    outcomes, _ = asked(Door(), Ask(["a"]), credentials=session(), policy=HttpPolicy(concurrency=1))
    assert isinstance(outcomes[0], Answer)


def test_a_session_that_ended_is_opened_once_more() -> None:
    door = Door()
    first = in_turn(*[json_reply({"access_token": "stale"}), json_reply({"access_token": "t0"})])
    door.token_answers = first
    outcomes, requests = asked(door, Ask(["a"]), Ask(["b"]), credentials=session())
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert paths(requests) == ["token", "a", "token", "a", "b"]


def test_a_401_that_stays_ends_after_one_more_sign_in() -> None:
    door = Door()
    door.closed = True
    outcomes, requests = asked(door, Ask(["a"]), credentials=session())
    assert isinstance(outcomes[0], AuthError)
    assert str(outcomes[0]) == "connection acme: credentials refused (401); check ACME_PASSWORD"
    assert paths(requests) == ["token", "a", "token", "a"]


def test_a_403_on_a_young_session_is_a_lack_of_rights() -> None:
    door = Door(refuse=403)
    door.closed = True
    outcomes, requests = asked(door, Ask(["a"]), credentials=session())
    assert isinstance(outcomes[0], Refused)
    assert outcomes[0].status == 403
    assert "the credentials are accepted, but they may not read this" in str(outcomes[0])
    assert paths(requests) == ["token", "a"]


def test_a_403_on_an_old_session_may_mean_that_it_ended() -> None:
    ticks = Ticks()
    door = Door(refuse=403)

    def answer(request: Request) -> Reply:
        if paths([request]) == ["b"] and ticks.now == 0.0:
            ticks.now = 61.0
            door.given += 1
            return status_reply(403)
        return door(request)

    outcomes, requests = asked(answer, Ask(["a"]), Ask(["b"]), credentials=session(ticks))
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert paths(requests) == ["token", "a", "b", "token", "b"]


def test_a_403_about_one_thing_leaves_the_others_alone() -> None:
    answers = in_turn(GOOD, status_reply(403), GOOD)
    outcomes, _ = asked(answers, Ask(["a"]), Ask(["b"]), Ask(["c"]), credentials=Fixed({"X-Key": "k"}))
    assert [type(outcome) for outcome in outcomes] == [Answer, Refused, Answer]


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (status_reply(401), AuthError, "credentials refused (401); check ACME_PASSWORD"),
        (status_reply(422), AuthError, "refused (422); signing in failed; check ACME_PASSWORD"),
        (status_reply(404), AuthError, "/token: refused (404); signing in failed"),
        (status_reply(503), Transient, "/token: answered 503"),
        (json_reply({"token": SECRET}), SchemaDrift, "signing in gave no usable token"),
        (json_reply({"access_token": SECRET + "\n"}), SchemaDrift, "signing in gave no usable token"),
        (json_reply([SECRET]), AuthError, "signing in failed"),
    ],
)
def test_a_sign_in_that_fails_says_so_and_shows_nothing(
    reply: Reply, kind: type[PartnerError], words: str, all_logs: pytest.LogCaptureFixture
) -> None:
    door = Door()
    door.token_answers = in_turn(reply)
    outcomes, requests = asked(door, Ask(["a"]), credentials=session())
    assert isinstance(outcomes[0], kind)
    assert words in str(outcomes[0])
    assert set(paths(requests)) == {"token"}
    shown = [str(outcomes[0]), repr(outcomes[0]), *all_logs.messages, repr(outcomes[0].__context__)]
    assert not [text for text in shown if "sentinel" in text]


def test_nothing_shows_a_secret() -> None:
    for proof in (basic("acme", f"user:{SECRET}"), header("acme", "X-Key", SECRET), Fixed(params=[("key", SECRET)])):
        http = PartnerHttp("acme", "http://127.0.0.1:9", credentials=proof)
        assert SECRET not in f"{proof!r} {http!r} {proof}"


def test_secrets_in_a_query_stay_out_of_errors_and_logs(all_logs: pytest.LogCaptureFixture) -> None:
    outcomes, _ = asked(in_turn(status_reply(400)), Ask(["a"]), credentials=Fixed(params=[("key", SECRET)]))
    assert isinstance(outcomes[0], Permanent)
    assert SECRET not in json.dumps([str(outcomes[0]), *all_logs.messages])
