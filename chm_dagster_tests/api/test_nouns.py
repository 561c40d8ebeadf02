"""Clients, pipelines, runs and rules over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from chm_dagster_tests.api.calls import add_client, add_pipeline, details, refused

Api = httpx.Client
PIPELINE = {"name": "Orders", "platform": "airflow", "pipeline_type": "ingestion"}


# --- clients -------------------------------------------------------------------------------------------------------


def test_a_client_is_created_read_renamed_disabled_and_enabled(api: Api) -> None:
    made = api.post("/api/v1/clients", json={"name": "Café Nord"})
    assert made.status_code == 201
    client = made.json()
    assert (client["slug"], client["name"], client["is_active"]) == ("cafe-nord", "Café Nord", True)
    assert api.get(f"/api/v1/clients/{client['id']}").json() == client == api.get("/api/v1/clients/cafe-nord").json()

    renamed = api.patch("/api/v1/clients/cafe-nord", json={"name": "Café Süd"})
    assert (renamed.status_code, renamed.json()["name"], renamed.json()["slug"]) == (200, "Café Süd", "cafe-nord")

    gone = api.delete("/api/v1/clients/cafe-nord")
    assert (gone.status_code, gone.content) == (204, b"")
    assert api.get("/api/v1/clients/cafe-nord").json()["is_active"] is False
    assert api.get("/api/v1/clients").json()["items"] == []
    assert api.patch("/api/v1/clients/cafe-nord", json={"is_active": True}).json()["is_active"] is True


def test_clients_are_listed_page_by_page(api: Api) -> None:
    for name in ("Delta", "Acme", "Bolt"):
        add_client(api, name)
    api.delete("/api/v1/clients/bolt")

    def slugs(**query: Any) -> tuple[list[str], str | None]:
        page = api.get("/api/v1/clients", params=query).json()
        return [client["slug"] for client in page["items"]], page["next_cursor"]

    first, cursor = slugs(limit=1)
    assert first == ["acme"]
    assert slugs(limit=1, cursor=cursor) == (["delta"], None)
    assert slugs(is_active="all") == (["acme", "bolt", "delta"], None)
    assert slugs(is_active="false") == (["bolt"], None)


def test_a_name_or_slug_that_is_taken_is_a_conflict(api: Api) -> None:
    add_client(api, "Acme")
    add_client(api, "Bolt")
    assert refused(api.post("/api/v1/clients", json={"name": "Acme"}), 409) == {"name"}
    assert refused(api.post("/api/v1/clients", json={"name": "Other", "slug": "acme"}), 409) == {"slug"}
    assert refused(api.patch("/api/v1/clients/bolt", json={"name": "Acme"}), 409) == {"name"}


def test_all_mistakes_in_a_body_are_reported_at_once(api: Api) -> None:
    answer = api.post("/api/v1/clients", json={"slug": "Not A Slug", "nmae": "Acme"})
    assert refused(answer, 400) == {"name", "slug", "nmae"}
    assert details(answer)["nmae"] == "unknown field; did you mean name?"


def test_creating_what_is_disabled_says_how_to_enable_it(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    api.delete("/api/v1/pipelines/acme/orders")
    answer = api.post("/api/v1/clients/acme/pipelines", json=PIPELINE)
    assert refused(answer, 409) == {"name"}
    assert 'PATCH /api/v1/pipelines/acme/orders with {"is_active": true}' in details(answer)["name"]
    assert api.patch("/api/v1/pipelines/acme/orders", json={"is_active": True}).status_code == 200
    assert "disabled" not in api.post("/api/v1/clients/acme/pipelines", json=PIPELINE).text


def test_a_name_that_differs_by_case_only_is_warned_of(api: Api) -> None:
    assert "x-chm-warning" not in api.post("/api/v1/clients", json={"name": "Acme"}).headers
    twin = api.post("/api/v1/clients", json={"name": "ACME"})
    assert (twin.status_code, twin.headers["x-chm-warning"]) == (201, "client acme has the same name in another case")


def test_a_client_may_be_created_disabled(api: Api) -> None:
    assert api.post("/api/v1/clients", json={"name": "Acme", "is_active": False}).json()["is_active"] is False


def test_a_slug_does_not_change(api: Api) -> None:
    add_client(api, "Acme")
    assert refused(api.patch("/api/v1/clients/acme", json={"slug": "other"}), 400) == {"slug"}


# --- pipelines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
def test_a_pipeline_is_created_on_either_path(api: Api, nested: bool) -> None:
    client = add_client(api, "Acme")
    if nested:
        made = api.post("/api/v1/clients/acme/pipelines", json=PIPELINE)
    else:
        made = api.post("/api/v1/pipelines", json={**PIPELINE, "client_id": client["id"]})
    assert made.status_code == 201
    pipeline = made.json()
    assert (pipeline["client_id"], pipeline["key"]) == (client["id"], "acme/orders")
    assert (pipeline["platform"], pipeline["environment"]) == ("airflow", "prod")
    assert api.get(f"/api/v1/pipelines/{pipeline['id']}").json() == pipeline


def test_a_pipeline_needs_a_client_that_exists(api: Api) -> None:
    assert refused(api.post("/api/v1/pipelines", json=PIPELINE), 400) == {"client_id"}
    assert refused(api.post("/api/v1/pipelines", json={**PIPELINE, "client_id": 7}), 400) == {"client_id"}
    refused(api.post("/api/v1/pipelines", json={**PIPELINE, "client_id": "nobody"}), 404)
    refused(api.post("/api/v1/clients/nobody/pipelines", json=PIPELINE), 404)
    refused(api.get("/api/v1/clients/nobody/pipelines"), 404)
    refused(api.get("/api/v1/pipelines", params={"client_id": "nobody"}), 404)


def test_a_pipeline_is_changed_cleared_and_disabled(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    path = "/api/v1/pipelines/acme/orders"
    expected = {"schedule_cron": "0 6 * * 1-5", "schedule_timezone": "Europe/Berlin", "grace_minutes": 30}
    changed = api.patch(path, json=expected)
    assert changed.status_code == 200
    assert {name: changed.json()[name] for name in expected} == expected
    cleared = api.patch(path, json={"schedule_timezone": None, "schedule_cron": None})
    assert (cleared.json()["schedule_cron"], cleared.json()["grace_minutes"]) == (None, 30)
    assert refused(api.patch(path, json={"name": None}), 400) == {"name"}
    assert api.delete(path).status_code == 204
    assert api.get(path).json()["is_active"] is False
    assert api.get("/api/v1/pipelines").json()["items"] == []


def test_pipelines_are_filtered(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders", platform="airflow", environment="dev")
    add_pipeline(api, "Acme", "Bills", platform="dbt", connection="acme-dbt", pipeline_type="quality")
    add_pipeline(api, "Bolt", "Orders", platform="airflow")
    api.delete("/api/v1/clients/bolt")

    def keys(path: str = "/api/v1/pipelines", **query: str) -> list[str]:
        return [p["key"] for p in api.get(path, params=query).json()["items"]]

    assert keys() == ["acme/bills", "acme/orders"]
    assert keys(is_active="all") == ["acme/bills", "acme/orders", "bolt/orders"]
    assert keys(is_active="false") == ["bolt/orders"]
    assert keys(platform="airflow") == keys(environment="dev") == ["acme/orders"]
    assert keys(connection="acme-dbt") == keys(pipeline_type="quality") == ["acme/bills"]
    assert (
        keys(client_id="bolt", is_active="all")
        == keys("/api/v1/clients/bolt/pipelines", is_active="all")
        == ["bolt/orders"]
    )
    assert keys("/api/v1/clients/acme/pipelines", platform="dbt") == ["acme/bills"]


# --- runs ----------------------------------------------------------------------------------------------------------

RUNS = "/api/v1/pipelines/acme/orders/runs"
T0 = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)


def record(api: Api, run_id: str, hours: float, status: str = "success", **more: Any) -> dict[str, Any]:
    body = {
        "external_run_id": run_id,
        "status": status,
        "started_at": (T0 + timedelta(hours=hours)).isoformat(),
        **more,
    }
    answer = api.post(RUNS, json=body)
    assert answer.status_code == 201, answer.text
    run: dict[str, Any] = answer.json()
    return run


def test_a_run_recorded_by_hand_gets_an_id_if_it_has_none(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    run = api.post(RUNS, json={"status": "success", "rows_processed": 3, "payload": {"by": "hand"}})
    assert run.status_code == 201
    assert run.json()["external_run_id"]
    assert (run.json()["outcome"], run.json()["payload"]) == ("inserted", {"by": "hand"})
    assert api.get(f"{RUNS}/latest").json() == {k: v for k, v in run.json().items() if k != "outcome"}


def test_a_run_that_is_posted_again_is_the_same_run(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    first = record(api, "monday", 0, "running")
    ended = record(api, "monday", 0, "success")
    assert (first["outcome"], ended["outcome"], record(api, "monday", 0)["outcome"]) == (
        "inserted",
        "updated",
        "unchanged",
    )
    late = api.post(RUNS, json={"external_run_id": "monday", "status": "running"}).json()
    assert (late["outcome"], late["status"]) == ("stale", "success")
    assert len(api.get(RUNS).json()["items"]) == 1


def test_an_idempotency_key_finds_its_run_again(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    body, key = {"status": "failed", "error_message": "disk full"}, {"Idempotency-Key": str(uuid4())}
    first = api.post(RUNS, json=body, headers=key)
    again = api.post(RUNS, json=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == {**first.json(), "outcome": "unchanged"}
    assert refused(api.post(RUNS, json={**body, "rows_processed": 1}, headers=key), 409) == {"idempotency_key"}
    assert refused(api.post(RUNS, json=body, headers={"Idempotency-Key": "x" * 256}), 400) == {"Idempotency-Key"}
    assert api.post(RUNS, json=body, headers={"Idempotency-Key": "x" * 255}).status_code == 201
    assert len(api.get(RUNS).json()["items"]) == 2


def test_runs_are_listed_by_status_window_and_order(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    for number, status in enumerate(["success", "failed", "success", "running"]):
        record(api, f"r{number}", number, status)

    def ids(**query: Any) -> list[str]:
        answer = api.get(RUNS, params=query)
        assert answer.status_code == 200, answer.text
        return [run["external_run_id"] for run in answer.json()["items"]]

    assert ids() == ["r3", "r2", "r1", "r0"]
    assert ids(order="asc") == ["r0", "r1", "r2", "r3"]
    assert ids(status="success") == ["r2", "r0"]
    assert ids(since="2026-03-01T07:00:00Z", until="2026-03-01T09:00:00Z") == ["r2", "r1"]
    assert ids(since="2026-03-01T08:00:00+01:00") == ["r3", "r2", "r1"]
    page = api.get(RUNS, params={"limit": 3}).json()
    assert [r["external_run_id"] for r in page["items"]] == ["r3", "r2", "r1"]
    assert ids(limit=3, cursor=page["next_cursor"]) == ["r0"]
    assert "payload" not in page["items"][0]


def test_an_unencoded_plus_sign_in_a_time_is_understood(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    record(api, "r0", 0)
    assert len(api.get(f"{RUNS}?since=2026-03-01T07:00:00+01:00").json()["items"]) == 1
    assert len(api.get(f"{RUNS}?since=2026-03-01T07:00:01+01:00").json()["items"]) == 0


def test_a_window_may_be_relative(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    for number, hours in enumerate((50, 3)):
        body = {"external_run_id": f"r{number}", "status": "success", "started_at": f"{hours}h"}
        assert api.post(RUNS, json=body).status_code == 201
    assert [r["external_run_id"] for r in api.get(RUNS, params={"since": "24h"}).json()["items"]] == ["r1"]
    assert [r["external_run_id"] for r in api.get(RUNS, params={"until": "2d"}).json()["items"]] == ["r0"]
    assert api.get("/api/v1/clients/acme/runs/summary?since=7d").json()["status_counts"]["success"] == 2


def test_filters_have_short_names_too(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    api.delete("/api/v1/clients/acme")
    for query in ("client=acme&active=all", "client_id=acme&is_active=all"):
        assert [p["key"] for p in api.get(f"/api/v1/pipelines?{query}").json()["items"]] == ["acme/orders"]
    rule = api.post("/api/v1/alert_rules", json={**RULE, "is_enabled": False}).json()
    found = api.get("/api/v1/alert_rules?client=acme&enabled=false").json()["items"]
    assert [r["id"] for r in found] == [rule["id"]]


BAD_QUERIES = [
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=1_0", "limit"),
    ("limit=+5", "limit"),
    ("limit=5.0", "limit"),
    ("limit=", "limit"),
    ("order=up", "order"),
    ("status=broken", "status"),
    ("since=2026-03-01", "since"),
    ("since=9 days", "since"),
    ("since=2026-03-01T00:00:00", "since"),
    ("since=1767225600", "since"),
    ("since=0001-01-01T00:00:00%2B14:00", "since"),
    ("since=0001-01-02T00:00:00Z", "since"),
    ("since=2026-03-02T00:00:00Z&until=2026-03-01T00:00:00Z", "since"),
    ("cursor=nonsense", "cursor"),
    ("cursor=", "cursor"),
    ("statsu=failed", "statsu"),
]


def test_a_bad_query_parameter_is_rejected_by_name(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    for query, field in BAD_QUERIES:
        assert refused(api.get(f"{RUNS}?{query}"), 400) == {field}, query


def test_the_latest_run_of_a_pipeline_that_never_ran_is_not_found(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    assert "never ran" in api.get(f"{RUNS}/latest").json()["error"]["message"]
    refused(api.get(f"{RUNS}/latest"), 404)
    refused(api.get("/api/v1/pipelines/acme/nope/runs/latest"), 404)


def test_a_client_has_a_summary(api: Api) -> None:
    orders = add_pipeline(api, "Acme", "Orders")
    bills = add_pipeline(api, "Acme", "Bills")
    record(api, "r0", 0, "success")
    record(api, "r1", 1, "failed")
    record(api, "r2", 2, "failed")
    answer = api.get(
        "/api/v1/clients/acme/runs/summary", params={"since": T0.isoformat(), "until": "2026-03-01T08:00:00Z"}
    )
    assert answer.json() == {
        "client_id": orders["client_id"],
        "client_slug": "acme",
        "since": "2026-03-01T06:00:00Z",
        "until": "2026-03-01T08:00:00Z",
        "status_counts": {"running": 0, "success": 1, "failed": 1, "canceled": 0, "skipped": 0},
        "latest_by_pipeline": [
            {
                "pipeline_id": pipeline["id"],
                "pipeline_slug": pipeline["slug"],
                "pipeline_name": pipeline["name"],
                "platform": "custom",
                "latest_status": status,
                "latest_run_at": at,
            }
            for pipeline, status, at in [(bills, None, None), (orders, "failed", "2026-03-01T08:00:00Z")]
        ],
    }
    recent = api.get("/api/v1/clients/acme/runs/summary").json()
    assert datetime.fromisoformat(recent["until"]) - datetime.fromisoformat(recent["since"]) == timedelta(days=30)
    assert refused(
        api.get("/api/v1/clients/acme/runs/summary?since=2026-03-01T00:00:00Z&until=2026-02-01T00:00:00Z"), 400
    )
    refused(api.get("/api/v1/clients/nobody/runs/summary"), 404)


# --- rules ---------------------------------------------------------------------------------------------------------

RULE = {
    "client_id": "acme",
    "rule_type": "consecutive_failures",
    "threshold": 3,
    "channel": "slack",
    "destination": "#data",
}


def test_a_rule_is_created_changed_muted_and_deleted(api: Api) -> None:
    pipeline = add_pipeline(api, "Acme", "Orders")
    made = api.post("/api/v1/alert_rules", json=RULE)
    assert made.status_code == 201
    rule = made.json()
    assert (rule["client_id"], rule["pipeline_id"], rule["is_enabled"]) == (pipeline["client_id"], None, True)
    path = f"/api/v1/alert_rules/{rule['id']}"
    assert api.get(path).json() == rule
    muted = api.patch(path, json={"threshold": 5, "muted_until": "2026-03-02T08:00:00+01:00"}).json()
    assert (muted["threshold"], muted["muted_until"]) == (5, "2026-03-02T07:00:00Z")
    narrowed = api.patch(path, json={"pipeline_id": "acme/orders", "client_id": None}).json()
    assert (narrowed["pipeline_id"], narrowed["client_id"]) == (pipeline["id"], None)
    assert api.delete(path).status_code == 204
    refused(api.get(path), 404)
    refused(api.delete(path), 404)
    refused(api.patch(path, json={}), 404)


def test_rules_are_filtered(api: Api) -> None:
    add_pipeline(api, "Acme", "Orders")
    add_client(api, "Bolt")
    of_client = api.post("/api/v1/alert_rules", json=RULE).json()["id"]
    narrow = {**RULE, "client_id": None, "pipeline_id": "acme/orders", "rule_type": "on_failure", "threshold": None}
    of_pipeline = api.post("/api/v1/alert_rules", json=narrow).json()["id"]
    elsewhere = api.post("/api/v1/alert_rules", json={**RULE, "client_id": "bolt", "is_enabled": False}).json()["id"]

    def ids(**query: Any) -> list[str]:
        return [rule["id"] for rule in api.get("/api/v1/alert_rules", params=query).json()["items"]]

    assert ids() == [of_client, of_pipeline, elsewhere]
    assert ids(client_id="acme") == [of_client, of_pipeline]
    assert ids(pipeline_id="acme/orders") == ids(rule_type="on_failure") == [of_pipeline]
    assert ids(is_enabled="false") == [elsewhere]
    page = api.get("/api/v1/alert_rules", params={"limit": 2}).json()
    assert ids(limit=2, cursor=page["next_cursor"]) == [elsewhere]
    refused(api.get("/api/v1/alert_rules", params={"client_id": "nobody"}), 404)


def test_a_duplicate_or_meaningless_rule_is_rejected(api: Api) -> None:
    add_client(api, "Acme")
    api.post("/api/v1/alert_rules", json=RULE)
    assert refused(api.post("/api/v1/alert_rules", json=RULE), 409) == {"destination"}
    assert refused(api.post("/api/v1/alert_rules", json={**RULE, "threshold": None}), 400) == {"threshold"}
    assert refused(api.post("/api/v1/alert_rules", json={**RULE, "client_id": None}), 400) == {"client_id"}
    refused(api.post("/api/v1/alert_rules", json={**RULE, "client_id": "nobody"}), 404)
    for unknown in (str(UUID(int=0)), "nope"):
        refused(api.get(f"/api/v1/alert_rules/{unknown}"), 404)
