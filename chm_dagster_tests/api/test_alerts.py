"""What alert rules have found, over HTTP."""

from datetime import UTC, datetime

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.api.app import create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.outbox import Outbox
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.conftest import PLAIN_HTTP


@pytest.fixture
def failing(api: httpx.Client, engine: sa.Engine) -> httpx.Client:
    """Acme has an open episode, and a message about it waits."""
    api.post("/api/v1/clients", json={"name": "Acme"})
    new = {"name": "Orders", "platform": "cron", "pipeline_type": "export"}
    api.post("/api/v1/clients/acme/pipelines", json=new)
    run = {"status": "failed", "started_at": "1h", "finished_at": "50m", "error_message": "no"}
    api.post("/api/v1/pipelines/acme/orders/runs", json=run)
    rule = {"client_id": "acme", "rule_type": "on_failure", "channel": "slack", "destination": "#ops"}
    assert api.post("/api/v1/alert_rules", json=rule).status_code == 201
    assert evaluate_rules(engine, datetime.now(UTC)) is not None
    return api


def test_an_open_episode_is_listed_and_acknowledged(failing: httpx.Client) -> None:
    answer = failing.get("/api/v1/alerts", params={"pipeline_id": "acme/orders"})
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["items"]
    assert (found["rule_type"], found["state"], found["failures"]) == ("on_failure", "announced", 1)
    path = f"/api/v1/alerts/{found['episode_id']}/ack"
    assert failing.post(path, params={"by": "Sam"}).status_code == 204
    [found] = failing.get("/api/v1/alerts").json()["items"]
    assert (found["state"], found["acknowledged_by"]) == ("acknowledged", "Sam")
    assert failing.post(path).status_code == 400
    assert failing.get("/api/v1/alerts", params={"client_id": "nobody"}).status_code == 404


def test_a_message_is_retried_and_dropped(failing: httpx.Client, engine: sa.Engine) -> None:
    [found] = failing.get("/api/v1/alerts/messages", params={"client_id": "acme"}).json()["items"]
    assert (found["state"], found["destination"], found["notices"]) == ("waiting", "#ops", 1)
    [rule] = failing.get("/api/v1/alert_rules").json()["items"]
    failing.patch(f"/api/v1/alert_rules/{rule['id']}", json={"destination": "#other"})
    path = f"/api/v1/alerts/messages/{found['message_id']}"
    assert failing.post(f"{path}/retry").status_code == 204
    assert [m.destination for m in Outbox(engine).messages()] == ["#other"]
    assert failing.delete(path).status_code == 204
    assert failing.get("/api/v1/alerts/messages").json()["items"] == []
    assert failing.delete(path).status_code == failing.post(f"{path}/retry").status_code == 404


def test_what_is_over_is_in_the_history(failing: httpx.Client, engine: sa.Engine) -> None:
    run = {"status": "success", "started_at": "5m", "finished_at": "4m"}
    assert failing.post("/api/v1/pipelines/acme/orders/runs", json=run).status_code == 201
    assert evaluate_rules(engine, datetime.now(UTC)) is not None
    [found] = failing.get("/api/v1/alerts/history").json()["items"]
    assert (found["outcome"], found["pipeline_slug"]) == ("recovered", "orders")
    assert failing.get("/api/v1/alerts").json()["items"] == []


@pytest.mark.parametrize("what", ["0197a000-0000-7000-8000-000000000001", "nothing", "%00"])
def test_what_does_not_exist_is_not_found(api: httpx.Client, what: str) -> None:
    assert api.post(f"/api/v1/alerts/{what}/ack", params={"by": "Sam"}).status_code == 404
    assert api.post(f"/api/v1/alerts/messages/{what}/retry").status_code == 404
    assert api.delete(f"/api/v1/alerts/messages/{what}").status_code == 404


def test_the_metrics_count_episodes_and_messages(failing: httpx.Client) -> None:
    text = failing.get("/metrics").text
    assert 'chm_alert_open_episodes{rule_type="on_failure",state="announced"} 1.0' in text
    assert 'chm_alert_open_episodes{rule_type="missed_run",state="announced"} 0.0' in text
    assert 'chm_alert_messages{state="waiting"} 1.0' in text
    assert 'chm_alert_messages{state="undeliverable"} 0.0' in text
    assert "chm_alert_oldest_waiting_message_seconds 0." in text


def test_a_back_test_does_not_hold_the_server_for_longer_than_it_may(
    failing: httpx.Client, warehouse: Warehouse
) -> None:
    [rule] = failing.get("/api/v1/alert_rules").json()["items"]
    app = create_app(warehouse)
    app.state.longest_back_test = 0.0
    with serve_in_thread(app) as url, httpx.Client(base_url=url, trust_env=False, verify=PLAIN_HTTP) as client:
        for path in (f"alert_rules/{rule['id']}/test", "back_tests"):
            answer = client.post(f"/api/v1/{path}", json={"rule_type": "on_failure"}, timeout=30)
            assert answer.status_code == 400, path
            assert [detail["field"] for detail in answer.json()["error"]["details"]] == ["days"]


def test_a_rule_is_tested_over_the_last_days(failing: httpx.Client) -> None:
    [rule] = failing.get("/api/v1/alert_rules").json()["items"]
    found = failing.post(f"/api/v1/alert_rules/{rule['id']}/test", json={}).json()
    assert (found["pipelines"], found["episodes"], found["difference"]) == (1, 1, None)
    assert found["noisiest"][0]["pipeline"] == found["latest"][0]["pipeline"] == "acme/orders"
    changed = {"rule_type": "consecutive_failures", "threshold": 2, "days": 7}
    found = failing.post(f"/api/v1/alert_rules/{rule['id']}/test", json=changed).json()
    assert (found["episodes"], found["difference"]["removed"]) == (0, 1)
    new = {"rule_type": "on_failure", "client_id": "acme"}
    assert failing.post("/api/v1/back_tests", json=new).json()["messages"] == 1
    assert failing.post("/api/v1/back_tests", json={}).status_code == 400
    assert failing.post("/api/v1/back_tests", json={**new, "client_id": "nobody"}).status_code == 404
    assert failing.post("/api/v1/alert_rules/0197a000-0000-7000-8000-000000000001/test", json={}).status_code == 404
