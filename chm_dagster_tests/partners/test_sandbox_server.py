import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from chm_dagster.partners.sandbox import SettableClock, World, create_app, serve_in_thread
from chm_dagster_tests.conftest import PLAIN_HTTP

NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
TOKEN = "sandbox-test-token"
SCHEMA = json.loads((Path(__file__).parents[2] / "contracts" / "partner-runs.schema.json").read_text())


class Partner:
    """The sandbox over real HTTP, with its own clock."""

    def __init__(self, base_url: str, clock: SettableClock, world: World) -> None:
        self.clock = clock
        self.world = world
        self.http = httpx.Client(
            base_url=base_url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, verify=PLAIN_HTTP
        )

    def pages(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        for _ in range(200):
            answer = self.http.get(path, params=query)
            answer.raise_for_status()
            yield answer.json()
            if answer.json()["next_cursor"] is None:
                return
            query["cursor"] = answer.json()["next_cursor"]
        raise AssertionError("the listing does not end")

    def runs(self, path: str, **query: str) -> list[dict[str, Any]]:
        return [record for page in self.pages(path, **query) for record in page["runs"]]


@pytest.fixture(scope="module")
def served() -> Iterator[Partner]:
    clock, world = SettableClock(NOON), World(7)
    with serve_in_thread(create_app(world, TOKEN, now=clock)) as base_url:
        partner = Partner(base_url, clock, world)
        with partner.http:
            yield partner


@pytest.fixture
def partner(served: Partner) -> Partner:
    served.clock.time = NOON
    return served


def conforms(page: dict[str, Any], definition: str = "runs_page") -> None:
    schema = {**SCHEMA, "$ref": f"#/$defs/{definition}"}
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(
        page
    )


def test_the_contract_is_itself_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$ref"] == "#/$defs/runs_page"


@pytest.mark.parametrize("external_id", [p.external_id for p in World(7).pipelines()])
def test_responses_for_each_pipeline_conform_to_the_contract(partner: Partner, external_id: str) -> None:
    path = f"/pipelines/{external_id}/runs"
    recent = (NOON - timedelta(days=1, hours=1)).isoformat()
    pages = list(partner.pages(path, updated_since=recent, limit="1000"))
    assert pages[0]["runs"]
    for page in pages:
        conforms(page)


def test_account_wide_and_inventory_responses_conform_to_the_contract(partner: Partner) -> None:
    for page in partner.pages("/runs", updated_since="2026-03-09T12:00:00Z", limit="300"):
        conforms(page, "account_runs_page")
    for page in partner.pages("/pipelines", limit="7"):
        conforms(page, "pipelines_page")


def test_the_contract_rejects_what_is_not_a_page(partner: Partner) -> None:
    (good,) = partner.http.get("/runs", params={"limit": 1}).json()["runs"]
    bad: list[Any] = [
        {"runs": [], "next_cursor": ""},
        {"runs": []},
        {"runs": {}, "next_cursor": None},
        *(
            {"runs": [{**good, **wrong}], "next_cursor": None}
            for wrong in (
                {"id": None},
                {"id": ""},
                {"id": 1.5},
                {"status": None},
                {"started_at": "2026-01-31T10:00:00"},
                {"updated_at": 1767225600},
                {"duration_seconds": -1},
                {"duration_seconds": "NaN"},
                {"rows_processed": 1.5},
                {"attempt": -1},
            )
        ),
    ]
    conforms({"runs": [good], "next_cursor": None})
    for page in bad:
        with pytest.raises(jsonschema.ValidationError):
            conforms(page)
    without_pipeline = {name: value for name, value in good.items() if name != "pipeline_id"}
    conforms({"runs": [without_pipeline], "next_cursor": None})
    with pytest.raises(jsonschema.ValidationError):
        conforms({"runs": [without_pipeline], "next_cursor": None}, "account_runs_page")


def test_the_inventory_lists_every_pipeline_once(partner: Partner) -> None:
    listed = [p for page in partner.pages("/pipelines", limit="5") for p in page["pipelines"]]
    assert [p["id"] for p in listed] == [p.external_id for p in partner.world.pipelines()]
    assert listed[0] == {
        "id": "amberwick-orders-sync",
        "name": "orders_sync",
        "platform": "airbyte",
        "type": "ingestion",
        "client": "Amberwick Retail",
        "period_seconds": 120,
    }


def test_a_restarted_server_returns_the_same_bytes(partner: Partner) -> None:
    query = {"updated_since": "2026-03-10T10:00:00Z"}
    before = partner.http.get("/runs", params=query)
    with serve_in_thread(create_app(World(7), TOKEN, now=SettableClock(NOON))) as base_url:
        after = httpx.get(
            f"{base_url}/runs", params=query, headers=partner.http.headers, trust_env=False, verify=PLAIN_HTTP
        )
    old_host, new_host = str(partner.http.base_url).rstrip("/"), base_url
    assert after.content.replace(new_host.encode(), old_host.encode()) == before.content


def test_a_cursor_survives_a_restart(partner: Partner) -> None:
    query = {"limit": "50", "updated_since": "2026-03-10T06:00:00Z"}
    first, second, *_ = partner.pages("/runs", **query)
    with serve_in_thread(create_app(World(7), TOKEN, now=SettableClock(NOON + timedelta(hours=1)))) as base_url:
        query["cursor"] = first["next_cursor"]
        again = httpx.get(
            f"{base_url}/runs", params=query, headers=partner.http.headers, trust_env=False, verify=PLAIN_HTTP
        ).json()
    assert [r["id"] for r in again["runs"]] == [r["id"] for r in second["runs"]]


@pytest.mark.parametrize("path", ["/runs", "/pipelines/brindlemoor-shipment-events/runs"])
def test_pages_belong_to_one_snapshot_while_time_goes_by(partner: Partner, path: str) -> None:
    query = {"updated_since": "2026-03-10T06:00:00Z"}
    at_once = partner.runs(path, **query, limit="1000")
    slowly: list[dict[str, Any]] = []
    for page in partner.pages(path, **query, limit="20"):
        slowly += page["runs"]
        partner.clock.advance(timedelta(minutes=7))
    assert partner.clock.time > NOON + timedelta(minutes=14), "more than two pages"
    assert slowly == at_once


@pytest.mark.parametrize("path", ["/runs", "/pipelines/brindlemoor-shipment-events/runs"])
def test_incremental_polls_add_up_to_the_full_listing(partner: Partner, path: str) -> None:
    partner.clock.time = start = NOON - timedelta(hours=2)
    known: dict[Any, Any] = {}
    since = (start - timedelta(hours=1)).isoformat()
    while True:
        polled_at = partner.clock.time
        for record in partner.runs(path, updated_since=since, limit="40"):
            known[record["pipeline_id"], record["id"]] = record
        if polled_at == NOON:
            break
        since = polled_at.isoformat()
        partner.clock.advance(timedelta(minutes=10))
    full = partner.runs(path, updated_since=start.isoformat(), limit="1000")
    assert full
    assert {(r["pipeline_id"], r["id"]): r for r in full}.items() <= known.items()


def test_both_endpoints_return_the_same_runs(partner: Partner) -> None:
    since = "2026-03-10T09:00:00+00:00"
    each = [
        record
        for pipeline in partner.world.pipelines()
        for record in partner.runs(f"/pipelines/{pipeline.external_id}/runs", updated_since=since)
    ]
    assert each == partner.runs("/runs", updated_since=since)


def test_without_a_limit_pages_hold_200_runs(partner: Partner) -> None:
    assert len(partner.http.get("/runs").json()["runs"]) == 200
    assert len(partner.http.get("/runs", params={"limit": 5000}).json()["runs"]) == 5000


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/runs", "limit", "5001"),
        ("/runs", "limit", "0"),
        ("/runs", "limit", "-1"),
        ("/runs", "limit", "ten"),
        ("/runs", "limit", "9" * 5000),
        ("/runs", "limit", "\u0663"),
        ("/runs", "updated_since", "yesterday"),
        ("/runs", "updated_since", "2026-03-10T12:00:00"),
        ("/runs", "updated_since", ""),
        ("/runs", "cursor", "nonsense"),
        ("/runs", "cursor", ""),
        ("/runs", "cursor", "cjoxOjI6Mzo0OjU6YWJj"),
        ("/runs", "cursor", "\u00e9\ud7ff"),
        ("/pipelines", "cursor", "nonsense"),
        ("/pipelines", "limit", "1001"),
        ("/pipelines/amberwick-orders-sync/runs", "limit", "1001"),
        ("/pipelines/amberwick-orders-sync/runs", "cursor", "nonsense"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(partner: Partner, path: str, field: str, value: str) -> None:
    answer = partner.http.get(path, params={field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "validation_error"
    assert answer.json()["error"]["message"].startswith(f"{field}: ")


def test_a_cursor_of_another_list_is_rejected(partner: Partner) -> None:
    cursor = partner.http.get("/pipelines/amberwick-orders-sync/runs").json()["next_cursor"]
    inventory_cursor = partner.http.get("/pipelines", params={"limit": 1}).json()["next_cursor"]
    for path in ("/runs", "/pipelines/brindlemoor-shipment-events/runs", "/pipelines"):
        assert partner.http.get(path, params={"cursor": cursor}).status_code == 400
    assert partner.http.get("/runs", params={"cursor": inventory_cursor}).status_code == 400
    with serve_in_thread(create_app(World(8), TOKEN)) as other_world:
        path = f"{other_world}/pipelines/amberwick-orders-sync/runs"
        answer = httpx.get(
            path, params={"cursor": cursor}, headers=partner.http.headers, trust_env=False, verify=PLAIN_HTTP
        )
    assert answer.status_code == 400


def test_extreme_times_cause_no_crash(partner: Partner) -> None:
    for since in ("0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z"):
        answer = partner.http.get("/pipelines/cobaltfen-regulator-export/runs", params={"updated_since": since})
        assert len(answer.json()["runs"]) == 14
    answer = partner.http.get("/runs", params={"updated_since": "9999-12-31T23:59:59-12:00"})
    assert answer.json() == {"runs": [], "next_cursor": None}


def test_unknown_pipelines_and_paths_are_404_and_wrong_methods_405_in_json(partner: Partner) -> None:
    for path in ("/pipelines/no-such/runs", "/nowhere", "/ui/no-such/1", "/ui/amberwick-orders-sync/1"):
        answer = partner.http.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    answer = partner.http.post("/runs")
    assert (answer.status_code, list(answer.json())) == (405, ["error"])


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", TOKEN])
@pytest.mark.parametrize(
    "path", ["/runs", "/pipelines", "/pipelines/amberwick-orders-sync/runs", "/_sandbox/misbehave"]
)
def test_a_wrong_or_missing_token_is_a_401_with_a_challenge(partner: Partner, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(partner.http.base_url.join(path), headers=headers, trust_env=False, verify=PLAIN_HTTP)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN not in answer.text


def test_without_a_configured_token_no_token_is_required() -> None:
    with serve_in_thread(create_app(World(7), None)) as base_url:
        assert httpx.get(f"{base_url}/runs", trust_env=False, verify=PLAIN_HTTP).status_code == 200


def test_health_index_and_run_pages_need_no_token(partner: Partner) -> None:
    base_url = str(partner.http.base_url).rstrip("/")
    assert httpx.get(f"{base_url}/healthz", trust_env=False, verify=PLAIN_HTTP).json() == {"status": "ok"}
    index = httpx.get(base_url, trust_env=False, verify=PLAIN_HTTP).json()
    assert "GET /runs" in index["endpoints"]
    (record,) = partner.http.get("/runs", params={"limit": 1}).json()["runs"]
    assert record["url"].startswith(base_url)
    assert httpx.get(record["url"], trust_env=False, verify=PLAIN_HTTP).json() == record


def test_there_is_one_date_header_with_the_apps_clock(partner: Partner) -> None:
    partner.clock.time = NOON + timedelta(seconds=59, microseconds=999_999)
    for path in ("/runs", "/nowhere", "/healthz"):
        dates = partner.http.get(path).headers.get_list("date")
        assert [parsedate_to_datetime(date) for date in dates] == [NOON + timedelta(seconds=59)]


def test_a_partner_without_the_account_wide_list_returns_404_for_it() -> None:
    with serve_in_thread(create_app(World(7), None, account_wide=False)) as base_url:
        assert httpx.get(f"{base_url}/runs", trust_env=False, verify=PLAIN_HTTP).status_code == 404
        assert httpx.get(f"{base_url}/pipelines", trust_env=False, verify=PLAIN_HTTP).status_code == 200


def test_a_bench_world_brings_500_new_runs_when_its_clock_advances_by_a_window() -> None:
    # Off the grid of slots, since `updated_since` is inclusive: a run on the instant itself would be listed twice.
    clock = SettableClock(NOON + timedelta(seconds=0.1))
    world = World.bench(7, 10_000, runs_per_pipeline=2)
    with serve_in_thread(create_app(world, None, now=clock)) as base_url:
        for _ in range(2):
            since = clock.time
            clock.advance(timedelta(minutes=5))
            query = {"updated_since": since.isoformat(), "limit": "5000"}
            page = httpx.get(f"{base_url}/runs", params=query, trust_env=False, verify=PLAIN_HTTP).json()
            assert (len(page["runs"]), page["next_cursor"]) == (500, None)
    assert world.generated == 1_000
