"""Heartbeats as a cron job sends them, with a line of curl."""

import httpx
import pytest

from chm_dagster.api.runs import MAX_MESSAGE_BYTES
from chm_dagster_tests.api.calls import add_pipeline, refused

PING = "/ping/acme/backup"


@pytest.fixture
def cron(api: httpx.Client) -> httpx.Client:
    """An API client whose job is in the inventory."""
    add_pipeline(api, "Acme", "Backup", platform="cron")
    return api


def latest(api: httpx.Client) -> dict[str, object]:
    run: dict[str, object] = api.get("/api/v1/pipelines/acme/backup/runs/latest").json()
    return run


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_job_reports_its_start_and_its_end(cron: httpx.Client, method: str) -> None:
    began = cron.request(method, f"{PING}/start")
    assert began.status_code == 200
    assert {k: began.json()[k] for k in ("pipeline", "status", "outcome")} == {
        "pipeline": "acme/backup",
        "status": "running",
        "outcome": "inserted",
    }
    ended = cron.request(method, f"{PING}/success").json()
    assert (ended["run_id"], ended["status"]) == (began.json()["run_id"], "success")
    assert latest(cron)["external_run_id"] == ended["run_id"]
    alone = cron.request(method, f"{PING}/fail").json()
    assert alone["run_id"] != ended["run_id"]
    assert latest(cron)["status"] == "failed"


def test_with_a_run_id_a_ping_can_be_repeated(cron: httpx.Client) -> None:
    outcomes = [
        cron.post(f"{PING}/{signal}", params={"rid": "monday"}).json()["outcome"]
        for signal in ("start", "start", "success", "success")
    ]
    assert outcomes == ["inserted", "unchanged", "updated", "unchanged"]
    assert cron.get(f"{PING}/success", params={"run_id": "monday"}).json()["outcome"] == "unchanged"
    assert cron.get(f"{PING}/success", params={"run_id": "monday", "rid": "monday"}).json()["outcome"] == "unchanged"
    assert len(cron.get("/api/v1/pipelines/acme/backup/runs").json()["items"]) == 1


def test_a_failure_carries_its_exit_status_and_its_log(cron: httpx.Client) -> None:
    cron.post(f"{PING}/fail", params={"exit_status": 28}, content="tar: no space left\n")
    assert latest(cron)["error_message"] == "exit status 28\ntar: no space left"
    cron.get(f"{PING}/fail", params={"exit_status": -9})
    assert latest(cron)["error_message"] == "exit status -9"
    cron.post(f"{PING}/fail", json={"why": "disk"})
    assert latest(cron)["error_message"] == '{"why":"disk"}'
    cron.post(
        f"{PING}/fail", content=b"caf\xe9 \x00 password=hunter2", headers={"Content-Type": "application/octet-stream"}
    )
    assert latest(cron)["error_message"] == "caf\ufffd \ufffd password=***"


def test_the_end_of_a_long_log_is_kept(cron: httpx.Client) -> None:
    log = b"line\n" * 100_000 + b"the error"
    assert cron.post(f"{PING}/fail", content=log).status_code == 200
    message = str(latest(cron)["error_message"])
    assert message.startswith("... ")
    assert MAX_MESSAGE_BYTES <= len(message.encode()) <= 8_000
    assert message.endswith("the error")


def test_rejected_pings_say_why(cron: httpx.Client) -> None:
    assert refused(cron.get(f"{PING}/start", params={"rid": "a", "run_id": "b"}), 400) == {"run_id"}
    assert refused(cron.get(f"{PING}/start", params={"rid": ""}), 400) == {"run_id"}
    assert refused(cron.get(f"{PING}/start", params={"rid": "x" * 513}), 400) == {"rid"}
    assert refused(cron.get(f"{PING}/start", params={"runid": "x"}), 400) == {"runid"}
    assert refused(cron.get(f"{PING}/success", params={"exit_status": 1}), 400) == {"exit_status"}
    assert refused(cron.get(f"{PING}/fail", params={"exit_status": "x"}), 400) == {"exit_status"}
    refused(cron.get("/ping/acme/nope/start"), 404)
    refused(cron.get(f"{PING}/stop"), 404)
    refused(cron.get(f"{PING}/256"), 400)
    cron.delete("/api/v1/pipelines/acme/backup")
    assert refused(cron.get(f"{PING}/start"), 409) == {"pipeline"}
    assert cron.get("/api/v1/pipelines/acme/backup/runs").json()["items"] == []


def test_a_start_after_the_end_is_a_new_attempt(cron: httpx.Client) -> None:
    for signal in ("start", "fail", "start"):
        answer = cron.post(f"{PING}/{signal}", params={"rid": "monday"}).json()
    assert (answer["status"], latest(cron)["attempt"]) == ("running", 1)


@pytest.mark.parametrize("method", ["HEAD", "GET", "POST"])
def test_the_paths_and_methods_of_healthchecks_are_understood(cron: httpx.Client, method: str) -> None:
    for path, status in (("/start", "running"), ("", "success"), ("/fail", "failed"), ("/0", "success")):
        assert cron.request(method, PING + path).status_code == 200
        assert latest(cron)["status"] == status
    cron.request(method, f"{PING}/3")
    assert (latest(cron)["status"], latest(cron)["error_message"]) == ("failed", "exit status 3")
    assert cron.request("HEAD", f"{PING}/start").content == b""


def test_an_exit_status_takes_the_log_along(cron: httpx.Client) -> None:
    cron.post(f"{PING}/28", params={"rid": "monday"}, content="tar: no space left")
    run = latest(cron)
    assert (run["external_run_id"], run["error_message"]) == ("monday", "exit status 28\ntar: no space left")


def test_a_pipeline_is_pinged_by_its_id_too(cron: httpx.Client) -> None:
    pipeline = cron.get("/api/v1/pipelines/acme/backup").json()["id"]
    for path in ("", "/0", "/success"):
        assert cron.get(f"/ping/{pipeline}{path}").json()["status"] == "success"
