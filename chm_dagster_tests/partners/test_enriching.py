"""Errors and row counts that lists do not contain: failed runs first, within a budget, never failing a sync."""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pytest

from chm_dagster.domain.runs import KnownDetails, RunStatus
from chm_dagster.errors import AuthError, RemoteError, Transient
from chm_dagster.partners.engine.details import MAX_FAILURES, Budget, Found, RunDetails
from chm_dagster.partners.engine.mapping import DETAILS
from chm_dagster.partners.port import RecordBatch, SyncTarget
from chm_dagster_tests.http.fault_server import Reply, Request, json_reply, status_reply
from chm_dagster_tests.partners.recorded import body
from chm_dagster_tests.partners.scene import Synced, sync
from chm_dagster_tests.partners.scripts.orchestrators import Airflow, Dagster
from chm_dagster_tests.partners.scripts.script import Script, minutes_ago, ok, stage

SINCE = minutes_ago(90)

Run = Mapping[str, Any]


class Answers:
    """Returns why runs failed and how many rows they had; each lookup is one request."""

    def __init__(self, error: RemoteError | None = None) -> None:
        self.error = error
        self.asked: list[str] = []

    def key(self, record: Run) -> Hashable:
        return record["id"]

    def lacks_error(self, record: Run) -> bool:
        return bool(record["state"] == "failed")

    def lacks_rows(self, record: Run) -> bool:
        return bool(record["state"] == "ok")

    async def errors(self, runs: Sequence[Run], budget: Budget) -> Found:
        for run in runs:
            if not budget.take():
                return
            self.asked.append(run["id"])
            if self.error is not None:
                raise self.error
            yield run["id"], {"error": f"why {run['id']}"}

    async def rows(self, runs: Sequence[Run], budget: Budget) -> Found:
        for run in runs:
            if budget.take():
                self.asked.append(run["id"])
                yield run["id"], {"rows": 7}


def enriched(details: RunDetails, *records: Any) -> list[Any]:
    pairs = asyncio.run(details.add_to([("p", record) for record in records]))
    return [record.get(DETAILS) if isinstance(record, dict) else record for _, record in pairs]


def run(name: str, state: str = "failed") -> dict[str, Any]:
    return {"id": name, "state": state}


def test_failed_runs_come_first_and_records_keep_their_order() -> None:
    answers = Answers()
    details = RunDetails("acme", answers, errors=9, rows=9)
    found = enriched(details, run("a", "ok"), "odd", run("b"), run("c", "busy"))
    assert found == [{"rows": 7}, "odd", {"error": "why b"}, None]
    assert answers.asked == ["b", "a"]


def test_the_lookup_budget_covers_the_sync_and_not_the_page() -> None:
    answers = Answers()
    details = RunDetails("acme", answers, errors=3, rows=0)
    assert enriched(details, run("a"), run("b")) == [{"error": "why a"}, {"error": "why b"}]
    assert enriched(details, run("c"), run("d"), run("e", "ok")) == [{"error": "why c"}, None, None]
    assert answers.asked == ["a", "b", "c"]


def test_the_same_run_is_looked_up_once() -> None:
    answers = Answers()
    details = RunDetails("acme", answers, errors=9, rows=9)
    assert enriched(details, run("a")) == enriched(details, run("a")) == [{"error": "why a"}]
    assert answers.asked == ["a"]


def test_known_details_are_kept_without_a_lookup() -> None:
    answers = Answers()
    details = RunDetails("acme", answers, errors=9, rows=9)
    details.remember(run("a"), KnownDetails(None, "known", None))
    details.remember(run("b", "ok"), KnownDetails(None, None, 5))
    assert enriched(details, run("a"), run("b", "ok")) == [{"error": "known"}, {"rows": 5}]
    assert answers.asked == []


@pytest.mark.parametrize(("error", "tries"), [(AuthError("no"), 1), (Transient("busy"), MAX_FAILURES)])
def test_a_refused_lookup_costs_the_detail_and_not_the_sync(
    error: RemoteError, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(error)
    details = RunDetails("acme", answers, errors=99, rows=0)
    for n in range(10):
        assert enriched(details, run(f"r{n}")) == [None]
    assert len(answers.asked) == tries
    assert len([r for r in caplog.records if "no error of 1 runs" in r.getMessage()]) == tries


# Airflow


def synced(script: Script, api: str = "airflow", target: SyncTarget | None = None, **options: Any) -> Synced:
    script.__class__.options = options
    return sync(api, script, [target or SyncTarget("p1", SINCE)])


def extra(script: Script) -> list[Request]:
    return [r for r in script.requests if not script.is_for_runs(r) and not r.path.endswith(("/token", "/version"))]


def airflow(*states: str) -> Airflow:
    class Own(Airflow):
        pass

    script = Own()
    for n, state in enumerate(states):
        script.add("p1", f"r{n}", stage(state, started=60 - n, finished=50 - n))
    return script


def test_airflow_reports_the_exception_of_the_task_that_failed_first() -> None:
    script = airflow("failed", "success", "failed")
    found = synced(script).by_run
    assert found["r0"].error_message == "task load: ValueError: no space left"
    assert found["r1"].error_message is None
    assert [r.path.rpartition("/")[2] for r in extra(script)] == ["list", "1", "1"]
    assert extra(script)[0].json["dag_run_ids"] == ["r0", "r2"]


def test_the_recorded_log_contains_the_reason() -> None:
    script = airflow("failed")
    log = body("airflow", "ti_log_json_error_detail")
    script.fault = lambda r: ok(log) if "/logs/" in r.path else None
    assert (
        synced(script).by_run["r0"].error_message
        == "task load: ValueError: source table orders is missing column amount"
    )


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (status_reply(404), "task load failed; its log names no exception"),
        (json_reply({"content": []}), "task load failed; its log names no exception"),
        (
            json_reply({"content": [{"event": "x" * 5_000_000}, {"error_detail": [{"exc_type": "Unread"}]}]}),
            "task load failed; its log names no exception",
        ),
        (json_reply([1]), "task load failed; its log names no exception"),
        (json_reply({"content": [{"error_detail": [{"exc_type": None, "exc_value": ""}]}]}), "task load: an exception"),
        (status_reply(403), None),
    ],
)
def test_a_useless_log_leaves_known_details_unchanged(reply: Reply, text: str | None) -> None:
    script = airflow("failed", "failed")
    script.fault = lambda r: reply if "/logs/" in r.path else None
    result = synced(script)
    assert result.by_run["r0"].error_message == text
    assert result.errors == {}


def test_airflow_logs_are_read_within_the_budget() -> None:
    script = airflow(*["failed"] * 10)
    found = synced(script, error_lookups=4).by_run
    assert len(extra(script)) == 4
    texts = [run.error_message for run in found.values()]
    assert texts.count("task load: ValueError: no space left") == 3
    assert texts.count("task load failed") == 7


def test_a_run_with_a_known_reason_is_not_looked_up_again() -> None:
    script = airflow("failed", "failed")
    known = {
        "r0": KnownDetails(minutes_ago(50), "as before", None),
        "r1": KnownDetails(minutes_ago(7), "of another end", None),
    }
    found = synced(script, target=SyncTarget("p1", SINCE, (), known)).by_run
    assert found["r0"].error_message == "as before"
    assert found["r1"].error_message == "task load: ValueError: no space left"
    assert extra(script)[0].json["dag_run_ids"] == ["r1"]


def test_rows_are_counted_if_their_source_is_configured() -> None:
    script = airflow("success", "success", "failed")
    entries = [
        {"dag_id": "p1", "run_id": "r0", "task_id": "a", "map_index": -1},
        {"dag_id": "p1", "run_id": "r0", "task_id": "b", "map_index": -1},
        {"dag_id": "other", "run_id": "r1", "task_id": "a", "map_index": -1},
    ]

    def fault(request: Request) -> Reply | None:
        if request.path.endswith("/xcomEntries"):
            assert request.query["xcom_key"] == "rows"
            return ok({"xcom_entries": entries, "total_entries": 3})
        if request.path.endswith("/xcomEntries/rows"):
            return ok({"value": 40 if "/a/" in request.path else "2"})
        return None

    script.fault = fault
    found = synced(script, rows_xcom="rows").by_run
    assert {run_id: run.rows_processed for run_id, run in found.items()} == {"r0": 42, "r1": None, "r2": None}
    assert len([r for r in script.requests if "xcom" in r.path]) == 3


def test_a_partial_count_is_not_used() -> None:
    script = airflow("success")
    entries = [{"dag_id": "p1", "run_id": "r0", "task_id": name, "map_index": -1} for name in "ab"]
    script.fault = lambda r: (
        ok({"xcom_entries": entries, "total_entries": 2})
        if r.path.endswith("/xcomEntries")
        else (ok({"value": 5}) if r.path.endswith("/rows") else None)
    )
    assert synced(script, rows_xcom="rows", row_lookups=2).by_run["r0"].rows_processed is None


# Dagster


def dagster(*states: str) -> Dagster:
    class Own(Dagster):
        pass

    script = Own()
    for n, state in enumerate(states):
        script.add("p1", f"run-{n}", stage(state, started=60 - n, finished=50 - n))
    return script


def test_dagster_reports_the_cause_of_its_error() -> None:
    script = dagster("failed", "success")
    found = synced(script, "dagster").by_run
    assert found["run-0"].error_message == "step load: ValueError: no space left"
    assert found["run-1"].error_message is None
    assert len(extra(script)) == 1


def test_the_recorded_events_contain_the_reason() -> None:
    script = dagster("failed")
    events = body("dagster", "events_of_failed_run")["data"]["logsForRun"]["events"]

    def fault(request: Request) -> Reply | None:
        if request.json and "query Errors" in request.json["query"]:
            log = {"cursor": "c", "hasMore": False, "events": events}
            return ok({"data": {"runsOrError": {"results": [{"runId": "run-0", "eventConnection": log}]}}})
        return None

    script.fault = fault
    text = "step fail_op: ValueError: source table orders is missing column amount"
    assert synced(script, "dagster").by_run["run-0"].error_message == text


def test_a_long_log_is_read_up_to_the_failure() -> None:
    script = dagster("failed")
    failure = {"__typename": "RunFailureEvent", "message": "Steps failed: ['load']."}

    def fault(request: Request) -> Reply | None:
        query = (request.json or {}).get("query", "")
        if "query Errors" in query:
            log = {"cursor": "c1", "hasMore": True, "events": [{}]}
            return ok({"data": {"runsOrError": {"results": [{"runId": "run-0", "eventConnection": log}]}}})
        if "query More" in query:
            last = request.json["variables"]["after"] == "c2"
            log = {"cursor": "c2", "hasMore": not last, "events": [failure] if last else []}
            return ok({"data": {"logsForRun": {"__typename": "EventConnection", **log}}})
        return None

    script.fault = fault
    assert synced(script, "dagster").by_run["run-0"].error_message == "Steps failed: ['load']."
    assert len(extra(script)) == 3


def test_a_server_that_does_not_support_the_lookup_costs_only_the_detail() -> None:
    script = dagster("failed")
    script.fault = lambda r: (
        ok({"errors": [{"message": "no"}]}) if r.json and "query Errors" in r.json["query"] else None
    )
    result = synced(script, "dagster")
    assert result.by_run["run-0"].error_message is None
    assert result.errors == {}


def test_dagster_counts_rows_if_configured() -> None:
    entries = [{"label": "dagster/row_count", "intRepr": "30"}, {"label": "other", "intRepr": "1"}]

    def fault(request: Request) -> Reply | None:
        if not request.json or "query Rows" not in request.json["query"]:
            return None
        made = [{"metadataEntries": entries}, {"metadataEntries": entries[:1]}]
        ids = request.json["variables"]["ids"]
        return ok({"data": {"runsOrError": {"results": [{"runId": i, "assetMaterializations": made} for i in ids]}}})

    for options, rows in (({}, None), ({"count_rows": True}, 60)):
        script = dagster("success")
        script.fault = fault
        assert synced(script, "dagster", **options).by_run["run-0"].rows_processed == rows


def test_an_enriched_record_lands_with_its_details() -> None:
    script = airflow("failed")
    (page,) = [event for event in synced(script).events if isinstance(event, RecordBatch)]
    assert page.records[0][1][DETAILS] == {"error": "task load: ValueError: no space left"}
    assert synced(script).by_run["r0"].status is RunStatus.FAILED
