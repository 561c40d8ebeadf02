import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from chm_dagster.errors import InputError
from chm_dagster.partners.sandbox import SettableClock, World, create_app, serve_in_thread
from chm_dagster.partners.sandbox.misbehaviour import Kind, Misbehaviour
from chm_dagster_tests.conftest import PLAIN_HTTP

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
ONE = "/pipelines/amberwick-orders-sync/runs"
OTHER = "/pipelines/brindlemoor-shipment-events/runs"
CONTROL = "/_sandbox/misbehave"


@pytest.fixture(scope="module")
def served() -> Iterator[httpx.Client]:
    with (
        serve_in_thread(create_app(World(7), "t", now=SettableClock(NOON))) as base_url,
        httpx.Client(
            base_url=base_url, headers={"Authorization": "Bearer t"}, trust_env=False, verify=PLAIN_HTTP
        ) as http,
    ):
        yield http


@pytest.fixture
def partner(served: httpx.Client) -> Iterator[httpx.Client]:
    yield served
    served.delete(CONTROL)


def misbehave(partner: httpx.Client, kind: str, **options: Any) -> None:
    assert partner.post(CONTROL, json={"kind": kind, **options}).status_code == 200


def test_rate_limit_names_seconds(partner: httpx.Client) -> None:
    misbehave(partner, "rate_limit", seconds=7)
    for path in (ONE, "/runs", "/pipelines"):
        answer = partner.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_rate_limit_date_names_a_date_after_the_answers_own(partner: httpx.Client) -> None:
    misbehave(partner, "rate_limit_date", seconds=30)
    answer = partner.get("/runs")
    assert answer.status_code == 429
    wait = parsedate_to_datetime(answer.headers["retry-after"]) - parsedate_to_datetime(answer.headers["date"])
    assert wait == timedelta(seconds=30)


def test_server_error_is_a_500(partner: httpx.Client) -> None:
    misbehave(partner, "server_error")
    assert partner.get("/runs").status_code == 500


def test_slow_responses_are_correct_but_late(partner: httpx.Client) -> None:
    quick = partner.get(ONE)
    misbehave(partner, "slow", seconds=0.3)
    started = time.monotonic()
    late = partner.get(ONE)
    assert time.monotonic() - started >= 0.3
    assert late.content == quick.content


def test_truncated_promises_more_than_it_sends(partner: httpx.Client) -> None:
    misbehave(partner, "truncated")
    for path in (ONE, "/runs", "/pipelines"):
        with pytest.raises(httpx.RemoteProtocolError):
            partner.get(path)


def test_garbage_claims_to_be_json_and_is_not(partner: httpx.Client) -> None:
    misbehave(partner, "garbage")
    answer = partner.get("/runs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        json.loads(answer.content)


def test_html_is_a_sign_in_page_with_status_200(partner: httpx.Client) -> None:
    misbehave(partner, "html")
    answer = partner.get("/runs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.startswith("<!doctype html>")


def test_unauthorized_refuses_a_good_token(partner: httpx.Client) -> None:
    misbehave(partner, "unauthorized")
    answer = partner.get("/runs")
    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers


def test_bad_records_are_mixed_with_all_the_good_ones(partner: httpx.Client) -> None:
    for path in (ONE, "/runs", f"{ONE}?updated_since=2030-01-01T00:00:00Z", f"{ONE}?limit=2"):
        good = partner.get(path).json()
        misbehave(partner, "bad_records")
        mixed = partner.get(path).json()
        partner.delete(CONTROL)
        bad = [r for r in mixed["runs"] if r not in good["runs"]]
        assert [r for r in mixed["runs"] if r not in bad] == good["runs"]
        assert mixed["next_cursor"] == good["next_cursor"]
        assert sum("id" not in r for r in bad) == 1
        assert sum("id" in r and r["id"] is None for r in bad) == 1
        assert {r["status"] for r in bad if r.get("id") == "sandbox-unknown-status"} == {"hibernating"}
        assert {r["duration_seconds"] for r in bad if r.get("id") == "sandbox-nan"} == {"NaN"}
        (naive,) = (r["started_at"] for r in bad if r.get("id") == "sandbox-naive-time")
        assert datetime.fromisoformat(naive).tzinfo is None
        assert all(r["pipeline_id"] for r in bad)


def test_cursor_loop_never_ends(partner: httpx.Client) -> None:
    for path in (ONE, "/runs"):
        misbehave(partner, "cursor_loop")
        first = partner.get(path, params={"limit": 3}).json()
        again = partner.get(path, params={"limit": 3, "cursor": first["next_cursor"]}).json()
        assert first["next_cursor"] == again["next_cursor"] is not None
        assert first["runs"] == again["runs"]
        partner.delete(CONTROL)


def test_a_missing_pipeline_is_a_404_while_others_respond(partner: httpx.Client) -> None:
    misbehave(partner, "missing_pipeline", external_id="amberwick-orders-sync")
    assert partner.get(ONE).status_code == 404
    assert partner.get(OTHER).status_code == 200
    assert partner.get("/runs").status_code == 200


def test_missing_pipelines_do_not_affect_account_wide_lists(partner: httpx.Client) -> None:
    misbehave(partner, "missing_pipeline", times=2)
    assert [partner.get(path).status_code for path in ("/runs", "/pipelines", ONE, OTHER, ONE)] == [
        200,
        200,
        404,
        404,
        200,
    ]


@pytest.mark.parametrize("kind", list(Kind))
def test_a_scoped_misbehaviour_touches_only_its_pipelines_endpoint(partner: httpx.Client, kind: Kind) -> None:
    good = {path: partner.get(path).content for path in (OTHER, "/runs", "/pipelines")}
    misbehave(partner, kind, external_id="amberwick-orders-sync", times=1, seconds=0)
    assert {path: partner.get(path).content for path in good} == good
    assert len(partner.get(CONTROL).json()["misbehaviours"]) == 1


def test_a_misbehaviour_ends_after_the_given_number_of_times(partner: httpx.Client) -> None:
    misbehave(partner, "server_error", times=2)
    assert partner.get("/runs").status_code == 500
    (left,) = partner.get(CONTROL).json()["misbehaviours"]
    assert left == {"kind": "server_error", "external_id": None, "times": 1, "seconds": 2.0}
    assert [partner.get("/runs").status_code for _ in range(2)] == [500, 200]
    assert partner.get(CONTROL).json() == {"misbehaviours": []}


def test_without_a_number_of_times_it_lasts_until_cleared(partner: httpx.Client) -> None:
    misbehave(partner, "server_error")
    assert {partner.get("/runs").status_code for _ in range(5)} == {500}
    assert partner.delete(CONTROL).json() == {"misbehaviours": []}
    assert partner.get("/runs").status_code == 200


def test_the_oldest_rule_that_applies_goes_first(partner: httpx.Client) -> None:
    misbehave(partner, "server_error", times=1)
    misbehave(partner, "unauthorized", times=1)
    assert [partner.get("/runs").status_code for _ in range(3)] == [500, 401, 200]


def test_health_and_control_never_misbehave(partner: httpx.Client) -> None:
    misbehave(partner, "server_error")
    assert partner.get("/healthz").status_code == 200
    assert partner.get(CONTROL).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "lazy"}, "kind"),
        ({}, "kind"),
        ({"kind": ["slow"]}, "kind"),
        ({"kind": "slow", "external_id": "no-such"}, "external_id"),
        ({"kind": "slow", "times": 0}, "times"),
        ({"kind": "slow", "times": True}, "times"),
        ({"kind": "slow", "times": "2"}, "times"),
        ({"kind": "slow", "seconds": -1}, "seconds"),
        ({"kind": "slow", "seconds": 1e9}, "seconds"),
        ({"kind": "slow", "often": True}, "body"),
        (["slow"], "body"),
    ],
)
def test_a_wrong_request_to_misbehave_is_a_400_that_names_the_field(
    partner: httpx.Client, body: Any, field: str
) -> None:
    answer = partner.post(CONTROL, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{field}: ")
    assert partner.post(CONTROL, content=b"{").status_code == 400
    assert partner.get(CONTROL).json() == {"misbehaviours": []}


def test_the_short_form_reads_kind_pipeline_and_times() -> None:
    known = {"a-b"}
    assert Misbehaviour.from_text("slow", known) == Misbehaviour(Kind.SLOW)
    assert Misbehaviour.from_text("slow@a-b*3", known) == Misbehaviour(Kind.SLOW, "a-b", 3)
    assert Misbehaviour.from_text("html*1", known) == Misbehaviour(Kind.HTML, None, 1)
    for wrong in ("", "lazy", "slow@c", "slow*", "slow*x", "slow*0", "slow*-1"):
        with pytest.raises(InputError):
            Misbehaviour.from_text(wrong, known)
