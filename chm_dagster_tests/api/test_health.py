"""The health questions over HTTP return exactly the rows of the SQL contract."""

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from chm_dagster.api.health import QUESTIONS
from chm_dagster.warehouse.named_queries import queries
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.api.calls import add_client, add_pipeline, refused

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def world(api: httpx.Client) -> httpx.Client:
    """Acme's orders have been failing since yesterday, its bills are flaky, Bolt's orders are fine, one pipeline never ran."""
    orders, bills, fine = "acme/orders", "acme/bills", "bolt/orders"
    for client, name, fields in [
        ("Acme", "Orders", {"platform": "airflow", "external_id": "orders_daily"}),
        ("Acme", "Bills", {"environment": "dev"}),
        ("Bolt", "Orders", {}),
        ("Bolt", "New", {}),
    ]:
        add_pipeline(api, client, name, **fields)
    history = [
        (orders, 50, "success"),
        (orders, 20, "failed"),
        (orders, 10, "failed"),
        *((bills, 40 - n, "failed" if n % 2 else "success") for n in range(12)),
        (fine, 5, "success"),
    ]
    for number, (pipeline, hours, status) in enumerate(history):
        start = NOW - timedelta(hours=hours)
        body = {
            "external_run_id": str(number),
            "status": status,
            "started_at": start.isoformat(),
            "finished_at": (start + timedelta(minutes=10)).isoformat(),
        }
        assert api.post(f"/api/v1/pipelines/{pipeline}/runs", json=body).status_code == 201
    return api


def items(api: httpx.Client, question: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = api.get(f"/api/v1/health/{question}", params=parameters)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"items", "next_cursor"}
    assert answer.json()["next_cursor"] is None
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def keys(found: list[dict[str, Any]]) -> list[str]:
    return [f"{row['client_slug']}/{row['pipeline_slug']}" for row in found]


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_endpoint_returns_the_columns_of_its_query(
    world: httpx.Client, warehouse: Warehouse, question: str
) -> None:
    name = QUESTIONS[question].query
    found = items(world, question)
    assert found
    assert [list(row) for row in found] == [[c.name for c in queries()[name].columns]] * len(found)
    assert len(found) == len(warehouse.ask(name))


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_endpoint_takes_the_parameters_of_its_query(api: httpx.Client, question: str) -> None:
    add_pipeline(api, "Acme", "Orders")
    given: dict[str, Any] = {
        "client_slug": ("client_id", "acme"),
        "pipeline_slug": ("pipeline_id", "acme/orders"),
        "environment": ("environment", "prod"),
        "platform": ("platform", "airflow"),
        "since": ("since", "2026-01-01T00:00:00Z"),
        "until": ("until", "2026-01-02T00:00:00Z"),
        "at": ("at", "2026-01-02T00:00:00Z"),
        "bucket": ("bucket", "week"),
        "timezone": ("timezone", "Europe/Berlin"),
        "threshold": ("threshold", "0.5"),
        "groups": ("groups", "5"),
        "runs": ("runs", "5"),
        "error_id": ("error_id", "none"),
    }
    items(api, question, **dict(given[parameter.name] for parameter in queries()[QUESTIONS[question].query].parameters))


def test_failing_changed_and_flaky_pipelines_are_returned(world: httpx.Client) -> None:
    assert keys(items(world, "failing")) == ["acme/bills", "acme/orders"]
    (orders,) = items(world, "failing", environment="prod")
    assert (orders["failures"], orders["platform"]) == (2, "airflow")
    assert datetime.fromisoformat(orders["failing_since"]) == NOW - timedelta(hours=20)
    assert keys(items(world, "flaky")) == ["acme/bills"]
    since = (NOW - timedelta(hours=45)).isoformat()
    changes = {
        key: row["change"]
        for key, row in zip(
            keys(items(world, "changed", since=since)), items(world, "changed", since=since), strict=True
        )
    }
    assert changes["acme/orders"] == "regression"
    assert changes["bolt/orders"] == "new"
    assert keys(items(world, "latest")) == ["acme/bills", "acme/orders", "bolt/new", "bolt/orders"]
    assert [row["failing"] for row in items(world, "clients")] == [2, 0]


def test_errors_are_grouped_and_their_runs_are_listed(world: httpx.Client) -> None:
    errors = items(world, "errors")
    assert [(row["fingerprint"], row["failures"], row["pipelines"]) for row in errors] == [("", 8, 2)]
    assert len(items(world, "failed_runs", error_id=errors[0]["error_id"], runs=5)) == 5
    assert items(world, "failed_runs", error_id="none") == []


def test_failures_platforms_and_durations_cover_a_window(world: httpx.Client) -> None:
    window = {"since": (NOW - timedelta(hours=25)).isoformat(), "until": NOW.isoformat()}
    assert sum(row["failures"] for row in items(world, "failures", bucket="hour", **window)) == 2
    assert {row["platform"]: row["failures"] for row in items(world, "platforms", **window)} == {
        "airflow": 2,
        "custom": 0,
    }
    buckets = items(world, "durations", pipeline_id="acme/orders", **window)
    assert sum(row["failed"] for row in buckets) == 2
    assert next(row for row in buckets if row["failed"])["from_seconds"] <= 600


def test_a_client_or_pipeline_is_named_by_id_or_slug(world: httpx.Client) -> None:
    client = world.get("/api/v1/clients/acme").json()["id"]
    pipeline = world.get("/api/v1/pipelines/acme/orders").json()["id"]
    for ref in (client, "acme"):
        assert keys(items(world, "failing", client_id=ref)) == ["acme/bills", "acme/orders"]
    assert items(world, "failing", client_id="bolt") == []
    by_id, by_slug = (items(world, "durations", pipeline_id=ref) for ref in (pipeline, "acme/orders"))
    assert by_id == by_slug != items(world, "durations")


def test_bad_parameters_are_rejected_by_name(api: httpx.Client) -> None:
    add_pipeline(api, "Acme", "Orders")
    add_client(api, "Bolt")

    def ask(question: str, **parameters: str) -> httpx.Response:
        return api.get(f"/api/v1/health/{question}", params=parameters)

    refused(ask("failing", client_id="nobody"), 404)
    refused(ask("durations", pipeline_id="acme/nope"), 404)
    assert refused(ask("durations", pipeline_id="acme/orders", client_id="bolt"), 400) == {"pipeline_id"}
    assert refused(ask("changed", since="soon"), 400) == {"since"}
    assert refused(ask("changed", since="2999-01-01T00:00:00Z"), 400) == {"since"}
    assert refused(ask("changed", since="tomorrow"), 400) == {"since"}
    assert refused(ask("failures", since="2026-01-02T00:00:00Z", until="2026-01-01T00:00:00Z"), 400) == {"since"}
    assert refused(ask("failures", bucket="year"), 400) == {"bucket"}
    for threshold in ("nan", "3", "-0.1"):
        assert refused(ask("flaky", threshold=threshold), 400) == {"threshold"}
    assert refused(ask("flaky", threshold="much"), 400) == {"threshold"}
    assert refused(ask("latest", environment="live"), 400) == {"environment"}
    assert refused(ask("latest", client_slug="acme"), 400) == {"client_slug"}
    assert refused(ask("durations", platform="a\0b"), 400) == {"platform"}
    refused(ask("everything"), 404)


def test_times_may_be_relative_as_on_the_command_line(world: httpx.Client) -> None:
    exact = (NOW - timedelta(hours=45)).isoformat()
    assert keys(items(world, "changed", since="45h")) == keys(items(world, "changed", since=exact))
    assert items(world, "failures", since="25h", until="now", bucket="day")


def test_days_begin_in_the_time_zone_that_is_named(world: httpx.Client) -> None:
    # 14 hours apart: somewhere in the world it is another day, whatever the time of the test.
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Berlin"):
        place = ZoneInfo(zone)
        today = datetime.combine(datetime.now(place).date(), time(), place)
        found = items(world, "failures", since="yesterday", until="now", timezone=zone)
        assert datetime.fromisoformat(found[-1]["bucket"]) == today
        first = datetime.fromisoformat(found[0]["bucket"])
        assert (today - first, len(found)) == (timedelta(days=1), 2)
        exact = f"{datetime.now(place).date() - timedelta(days=1)}T00:00:00"
        assert items(world, "failures", since=exact, until="now", timezone=zone) == found
    assert refused(world.get("/api/v1/health/changed", params={"timezone": "Berlin"}), 400) == {"timezone"}


def test_short_names_of_filters_are_accepted(world: httpx.Client) -> None:
    assert keys(items(world, "failing", client="acme")) == keys(items(world, "failing", client_id="acme"))
    assert items(world, "durations", pipeline="acme/orders") == items(world, "durations", pipeline_id="acme/orders")
    both = world.get("/api/v1/health/failing", params={"client": "acme", "client_id": "acme"})
    assert refused(both, 400) == {"client"}


def test_a_question_can_be_about_a_time(world: httpx.Client) -> None:
    for question in ("failing", "attention", "changed", "latest", "clients", "flaky"):
        assert items(world, question, at=NOW.isoformat())
        assert refused(world.get(f"/api/v1/health/{question}", params={"at": "2999-01-01T00:00:00Z"}), 400)
    assert keys(items(world, "failing", at=(NOW - timedelta(hours=15)).isoformat(), client_id="acme")) == [
        "acme/bills",
        "acme/orders",
    ]
    assert items(world, "failing", at="2020-01-01T00:00", timezone="Europe/Berlin") == []
