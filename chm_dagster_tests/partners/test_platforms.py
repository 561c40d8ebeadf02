"""What each vendor's API is known to do besides lists and pages: one test for each fact that a file relies on."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chm_dagster.domain.runs import KnownDetails, RunStatus
from chm_dagster.errors import NotAtPartner, RateLimited
from chm_dagster.partners.port import SourcePipeline, SyncTarget
from chm_dagster_tests.http.fault_server import Reply, Request, json_reply, status_reply
from chm_dagster_tests.partners.scene import open_run, sync, with_feed
from chm_dagster_tests.partners.scripts import SCRIPTS
from chm_dagster_tests.partners.scripts.script import NOW, Script, Stage, iso, minutes_ago, ok, stage

SINCE = minutes_ago(90)
LONG_AGO = stage("failed", started=60 * 24 * 5, finished=60 * 24 * 5 - 10)


def one(api: str, script: Script, **target: Any) -> Any:
    """The only observation of a sync of the first pipeline."""
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE, **target)])
    (found,) = synced.by_run.values()
    return found


def jobs(script: Script) -> list[Request]:
    return [request for request in script.requests if request.path.endswith("/jobs")]


# GitHub Actions


def test_a_github_run_ends_with_its_last_job_and_not_with_its_last_change() -> None:
    script = SCRIPTS["github_actions"]()
    touched = {"updated_at": iso(minutes_ago(1))}
    script.add("901", "run-1", stage("success", started=60, finished=54), touched)
    found = one("github_actions", script)
    assert (found.finished_at, found.duration_seconds) == (minutes_ago(54), 360)


def test_a_failed_github_run_names_its_job_and_step() -> None:
    script = SCRIPTS["github_actions"]()
    script.add("901", "run-1", stage("failed", started=60, finished=54))
    assert one("github_actions", script).error_message == "job build, step tests: failure"


def test_the_end_of_a_github_run_is_unknown_without_its_jobs_and_nobody_makes_it_up() -> None:
    script = SCRIPTS["github_actions"]()
    script.fault = lambda request: status_reply(404) if request.path.endswith("/jobs") else None
    script.add("901", "run-1", stage("failed", started=60, finished=54))
    found = one("github_actions", script)
    assert (found.status, found.finished_at, found.duration_seconds) == (RunStatus.FAILED, None, None)


def test_a_github_run_whose_end_is_known_costs_no_request_until_it_is_run_again() -> None:
    script = SCRIPTS["github_actions"]()
    run = script.add("901", "run-1", stage("success", started=60, finished=54))
    first = one("github_actions", script)
    known = {"1": KnownDetails(first.finished_at, None, None, first.source_version)}
    script.requests.clear()
    assert one("github_actions", script, known_details=known).finished_at == first.finished_at
    assert jobs(script) == []
    run.stage = stage("failed", started=30, finished=20, attempt=1)
    again = one("github_actions", script, known_details=known)
    assert (again.finished_at, again.status) == (minutes_ago(20), RunStatus.FAILED)


def test_the_ends_of_github_runs_are_requested_within_a_budget_failed_runs_first() -> None:
    script = SCRIPTS["github_actions"]()
    for n in range(6):
        script.add("901", f"run-{n}", stage("failed" if n == 4 else "success", started=60 - n, finished=50 - n))
    options = {**script.options, "error_lookups": 2}
    synced = sync("github_actions", script, [SyncTarget("901", SINCE)], options=options)
    assert len(jobs(script)) == 2
    assert synced.by_run["4"].finished_at == minutes_ago(46)


def test_a_github_run_that_waits_for_an_approval_is_not_running() -> None:
    script = SCRIPTS["github_actions"]()
    script.add("901", "run-1", stage("completed/action_required", started=60, finished=60))
    found = one("github_actions", script)
    assert (found.status, found.status_reason) == (RunStatus.SKIPPED, "waits for an approval")


@pytest.mark.parametrize("headers", [{"X-RateLimit-Remaining": "0"}, {"Retry-After": "900"}])
def test_a_github_rate_limit_is_not_taken_for_refused_credentials(headers: dict[str, str]) -> None:
    script = SCRIPTS["github_actions"]()
    reset = {"X-RateLimit-Reset": str(int((datetime.now(UTC) + timedelta(seconds=900)).timestamp()))}
    script.fault = lambda _: status_reply(403, {**headers, **reset})
    (error,) = sync("github_actions", script, [SyncTarget("901", SINCE)]).errors.values()
    assert isinstance(error, RateLimited)
    assert error.retry_after == pytest.approx(900, abs=120)
    assert len(script.requests) == 1


def test_a_github_workflow_named_by_its_file_is_not_at_the_partner() -> None:
    script = SCRIPTS["github_actions"]()
    synced = sync("github_actions", script, [SyncTarget("ci.yml", SINCE), SyncTarget("901", SINCE)])
    assert isinstance(synced.errors["ci.yml"], NotAtPartner)
    assert set(synced.done) == {"901"}


# Runs that are run again after days


@pytest.mark.parametrize("api", ["github_actions", "databricks", "prefect", "prefect_cloud"])
def test_a_failing_run_that_is_run_again_after_days_is_found(api: str) -> None:
    script = SCRIPTS[api]()
    run = script.add(script.pipelines[0], "run-1001", LONG_AGO)
    run_id = "1001" if script.record(run).get("id", script.record(run).get("run_id")) != "run-1001" else "run-1001"
    again = Stage("success", LONG_AGO.started, LONG_AGO.finished, minutes_ago(5), 1)
    run.stage = again
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE)])
    assert run_id not in synced.by_run, "no list contains it"
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE, failing_runs=(run_id,))])
    assert synced.by_run[run_id].status is RunStatus.SUCCESS


def test_a_fivetran_sync_of_days_is_followed_to_its_end() -> None:
    script = SCRIPTS["fivetran"]()
    started = minutes_ago(60 * 50)
    script.add("p1", "s-1", Stage("failed", started, minutes_ago(5), minutes_ago(5)))
    assert sync("fivetran", script, [SyncTarget("p1", SINCE)]).mapped == []
    known = dataclasses.replace(open_run("s-1"), started_at=started)
    assert one("fivetran", script, open_runs=(known,)).status is RunStatus.FAILED


# Records


def test_a_fivetran_sync_without_an_id_is_known_by_its_start() -> None:
    script = SCRIPTS["fivetran"]()
    script.add("p1", "s-1", stage("success", started=60, finished=50), {"sync_id": None})
    found = one("fivetran", script)
    assert (found.external_run_id, found.status) == (iso(minutes_ago(60)), RunStatus.SUCCESS)


def test_a_cancelled_data_factory_run_ends_with_its_last_change() -> None:
    script = SCRIPTS["azure_data_factory"]()
    at = Stage("canceled", minutes_ago(60), None, minutes_ago(50))
    script.add(script.pipelines[0], "r-1", at, {"runEnd": None, "durationInMs": None})
    found = one("azure_data_factory", script)
    assert (found.status, found.finished_at) == (RunStatus.CANCELED, minutes_ago(50))


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        ("TERMINATED", "SUCCESS", RunStatus.SUCCESS),
        ("TERMINATED", "RUN_EXECUTION_ERROR", RunStatus.FAILED),
        ("TERMINATED", "USER_CANCELED", RunStatus.CANCELED),
        ("TERMINATED", "MAX_CONCURRENT_RUNS_EXCEEDED", RunStatus.SKIPPED),
        ("RUNNING", None, RunStatus.RUNNING),
    ],
)
def test_a_databricks_run_is_understood_without_its_deprecated_state(state: str, code: Any, status: RunStatus) -> None:
    script = SCRIPTS["databricks"]()
    details = {"code": code, "type": "CLIENT_ERROR", "message": "no such cluster"} if code else None
    new = {"state": None, "status": {"state": state, "termination_details": details}}
    script.add("501", "run-1", stage("success", started=60, finished=50), new)
    found = one("databricks", script)
    assert (found.status, found.unknown_status) == (status, False)
    assert found.error_message == ("no such cluster" if status is RunStatus.FAILED else None)


@pytest.mark.parametrize("name", ["AwaitingConcurrencySlot", "Late", "AwaitingRetry", "Resuming"])
def test_a_prefect_run_that_waits_shows_as_running_with_the_reason(name: str) -> None:
    script = SCRIPTS["prefect"]()
    script.add(script.pipelines[0], "r-1", Stage(f"SCHEDULED/{name}", None, None, NOW + timedelta(minutes=30)))
    found = one("prefect", script)
    assert (found.status, found.status_reason, found.unknown_status) == (RunStatus.RUNNING, name, False)


def test_a_cleared_run_of_airflow_2_that_waits_is_newer_than_the_failure() -> None:
    script = SCRIPTS["airflow_2"]()
    run = script.add("p1", "r-1", stage("failed", started=60, finished=50))
    failed = one("airflow_2", script)
    run.stage = Stage("queued", None, None, minutes_ago(1))
    queued = one("airflow_2", script)
    assert queued.status is RunStatus.RUNNING
    assert queued.knowledge > failed.knowledge
    assert queued.source_version == NOW
    run.stage = Stage("success", NOW + timedelta(seconds=1), NOW + timedelta(seconds=9), NOW)
    assert one("airflow_2", script).knowledge > queued.knowledge


def test_a_dag_that_airflow_2_does_not_know_is_not_at_the_partner() -> None:
    script = SCRIPTS["airflow_2"]()

    def empty(request: Request) -> Reply | None:
        unknown = "/dags/typo/" in request.path
        return json_reply({"dag_runs": [], "total_entries": 0}) if unknown else None

    script.fault = empty
    synced = sync("airflow_2", script, [SyncTarget("typo", SINCE), SyncTarget("p1", SINCE)])
    assert isinstance(synced.errors["typo"], NotAtPartner)
    assert set(synced.done) == {"p1"}


def test_a_databricks_service_principal_signs_in_with_http_basic() -> None:
    script = SCRIPTS["databricks"]()
    seen = []

    def fault(request: Request) -> Reply | None:
        if not request.path.endswith("/oidc/v1/token"):
            return None
        seen.append((request.headers["authorization"], request.body))
        return ok({"access_token": "good-secret"})

    script.fault = fault
    credentials = {"client_id": "sp", "client_secret": "s3cret"}
    script.credentials = credentials  # type: ignore[misc]
    synced = sync("databricks", script, [SyncTarget("501", SINCE)])
    assert set(synced.done) == {"501"}
    assert seen == [("Basic c3A6czNjcmV0", b"grant_type=client_credentials&scope=all-apis")]


# Discovery


@pytest.mark.parametrize(
    ("api", "item"),
    [
        ("airbyte", {"connectionId": "c-2", "name": "old", "status": "inactive"}),
        ("github_actions", {"id": 12, "name": "Old", "state": "disabled_manually"}),
        ("databricks", {"job_id": 7, "settings": {"name": "n", "schedule": {"pause_status": "PAUSED"}}}),
        ("databricks", {"job_id": 7, "settings": {"name": "n", "trigger": {"pause_status": "PAUSED"}}}),
    ],
)
def test_a_switched_off_pipeline_is_listed_as_inactive(api: str, item: dict[str, Any]) -> None:
    script = SCRIPTS[api]()
    lists = {"airbyte": "data", "github_actions": "workflows", "databricks": "jobs"}

    def fault(request: Request) -> Reply | None:
        is_list = request.path.endswith(("/connections", "/workflows", "/jobs/list"))
        page = [] if request.query.get("offset", "0") != "0" else [item]
        return ok({lists[api]: page, "total_count": 1}) if is_list else None

    script.fault = fault
    (found,) = with_feed(api, script, lambda feed: feed.discover())
    assert isinstance(found, SourcePipeline)
    assert not found.is_active


# Airflow's sort order


def test_airflow_before_3_3_is_asked_for_one_sort_order_only() -> None:
    script = SCRIPTS["airflow"](page=3)
    for n in range(10):
        script.add("p1", f"r{n}", stage("success", started=60 - n, finished=50 - n))
    sync("airflow", script, [SyncTarget(pipeline, SINCE) for pipeline in script.pipelines])
    orders = {request.query["order_by"] for request in script.for_runs if "order_by" in request.query}
    assert len(orders) == 1


# Airflow's causes


def failed_task(run: str, task: str, minutes: float, index: int = -1) -> dict[str, Any]:
    end = iso(minutes_ago(minutes))
    names = {"dag_id": "p1", "dag_run_id": run, "task_id": task, "map_index": index}
    return {**names, "state": "failed", "try_number": 1, "end_date": end}


@pytest.mark.parametrize("sorts", [True, False])
def test_the_cause_is_the_task_that_failed_first_of_thousands_and_neighbours_keep_theirs(sorts: bool) -> None:
    script = SCRIPTS["airflow"]()
    script.add("p1", "wide", stage("failed", started=80, finished=50))
    script.add("p1", "small", stage("failed", started=70, finished=40))
    tasks = [failed_task("wide", "load", 60 - n / 1000, n) for n in range(3_000)]
    tasks += [failed_task("wide", "extract", 75), failed_task("small", "only", 45)]

    def fault(request: Request) -> Reply | None:
        if not request.path.endswith("/taskInstances/list"):
            return None
        body = request.json
        rows = [task for task in tasks if task["dag_run_id"] in body["dag_run_ids"]]
        if sorts:
            rows.sort(key=lambda task: str(task[body["order_by"]]))
        limit = min(body["page_limit"], 100 if sorts else 1_000)
        return ok({"task_instances": rows[body["page_offset"] :][:limit], "total_entries": len(rows)})

    script.fault = fault
    found = sync("airflow", script, [SyncTarget("p1", SINCE)]).by_run
    assert found["wide"].error_message == "task extract: ValueError: no space left"
    assert found["small"].error_message == "task only: ValueError: no space left"
