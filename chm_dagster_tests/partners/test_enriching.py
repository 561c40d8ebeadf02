"""Errors and row counts that no list holds: failed runs first, within a budget, and never at the cost of a sweep."""

import asyncio
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from typing import Any

import pytest

from chm_dagster.domain.runs import RunStatus, ToldRun
from chm_dagster.errors import AuthError, PartnerError, Transient
from chm_dagster.partners.declared.enriching import MAX_FAILURES, Budget, BudgetedEnricher
from chm_dagster.partners.declared.mapping import ENRICHED
from chm_dagster.partners.port import Page, Target
from chm_dagster_tests.partners.fault_server import Reply, Request, json_reply, status_reply
from chm_dagster_tests.partners.recorded import body
from chm_dagster_tests.partners.scene import Swept, sweep
from chm_dagster_tests.partners.scripts.orchestrators import Airflow, Dagster
from chm_dagster_tests.partners.scripts.script import Script, minutes_ago, ok, stage

SINCE = minutes_ago(90)

Run = Mapping[str, Any]


class Answers:
    """Says why runs failed, and how many rows they had; each answer is one request."""

    def __init__(self, error: PartnerError | None = None) -> None:
        self.error = error
        self.asked: list[str] = []

    def key(self, record: Run) -> Hashable:
        return record["id"]

    def failed(self, record: Run) -> bool:
        return bool(record["state"] == "failed")

    def succeeded(self, record: Run) -> bool:
        return bool(record["state"] == "ok")

    async def errors(self, runs: Sequence[Run], budget: Budget) -> AsyncGenerator[tuple[Hashable, str], None]:
        for run in runs:
            if not budget.take():
                return
            self.asked.append(run["id"])
            if self.error is not None:
                raise self.error
            yield run["id"], f"why {run['id']}"

    async def rows(self, runs: Sequence[Run], budget: Budget) -> AsyncGenerator[tuple[Hashable, int], None]:
        for run in runs:
            if budget.take():
                self.asked.append(run["id"])
                yield run["id"], 7


def enriched(enricher: BudgetedEnricher, *records: Any) -> list[Any]:
    pairs = asyncio.run(enricher.enrich([("p", record) for record in records]))
    return [record.get(ENRICHED) if isinstance(record, dict) else record for _, record in pairs]


def run(name: str, state: str = "failed") -> dict[str, Any]:
    return {"id": name, "state": state}


def test_failed_runs_come_first_and_records_keep_their_order() -> None:
    answers = Answers()
    enricher = BudgetedEnricher("acme", answers, errors=9, rows=9)
    found = enriched(enricher, run("a", "ok"), "odd", run("b"), run("c", "busy"))
    assert found == [{"rows": 7}, "odd", {"error": "why b"}, None]
    assert answers.asked == ["b", "a"]


def test_the_budget_is_of_the_sweep_and_not_of_the_page() -> None:
    answers = Answers()
    enricher = BudgetedEnricher("acme", answers, errors=3, rows=0)
    assert enriched(enricher, run("a"), run("b")) == [{"error": "why a"}, {"error": "why b"}]
    assert enriched(enricher, run("c"), run("d"), run("e", "ok")) == [{"error": "why c"}, None, None]
    assert answers.asked == ["a", "b", "c"]


def test_the_same_run_is_asked_about_once() -> None:
    answers = Answers()
    enricher = BudgetedEnricher("acme", answers, errors=9, rows=9)
    assert enriched(enricher, run("a")) == enriched(enricher, run("a")) == [{"error": "why a"}]
    assert answers.asked == ["a"]


def test_what_is_known_already_is_kept_without_a_question() -> None:
    answers = Answers()
    enricher = BudgetedEnricher("acme", answers, errors=9, rows=9)
    enricher.remember(run("a"), "known", None)
    enricher.remember(run("b", "ok"), None, 5)
    assert enriched(enricher, run("a"), run("b", "ok")) == [{"error": "known"}, {"rows": 5}]
    assert answers.asked == []


@pytest.mark.parametrize(("error", "tries"), [(AuthError("no"), 1), (Transient("busy"), MAX_FAILURES)])
def test_a_partner_that_says_no_costs_the_addition_and_not_the_sweep(
    error: PartnerError, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(error)
    enricher = BudgetedEnricher("acme", answers, errors=99, rows=0)
    for n in range(10):
        assert enriched(enricher, run(f"r{n}")) == [None]
    assert len(answers.asked) == tries
    assert len([r for r in caplog.records if "no error of 1 runs" in r.getMessage()]) == tries


# Airflow


def swept(script: Script, api: str = "airflow", target: Target | None = None, **options: Any) -> Swept:
    script.__class__.options = options
    return sweep(api, script, [target or Target("p1", SINCE)])


def extra(script: Script) -> list[Request]:
    return [r for r in script.requests if not script.is_for_runs(r) and not r.path.endswith(("/token", "/version"))]


def airflow(*states: str) -> Airflow:
    class Own(Airflow):
        pass

    script = Own()
    for n, state in enumerate(states):
        script.add("p1", f"r{n}", stage(state, started=60 - n, finished=50 - n))
    return script


def test_airflow_tells_the_exception_of_the_task_that_failed_first() -> None:
    script = airflow("failed", "success", "failed")
    found = swept(script).by_run
    assert found["r0"].error_message == "task load: ValueError: no space left"
    assert found["r1"].error_message is None
    assert [r.path.rpartition("/")[2] for r in extra(script)] == ["list", "1", "1"]
    assert extra(script)[0].json["dag_run_ids"] == ["r0", "r2"]


def test_the_recorded_log_tells_why() -> None:
    script = airflow("failed")
    log = body("airflow", "ti_log_json_error_detail")
    script.fault = lambda r: ok(log) if "/logs/" in r.path else None
    assert (
        swept(script).by_run["r0"].error_message
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
def test_a_log_that_is_of_no_use_leaves_what_is_known(reply: Reply, text: str | None) -> None:
    script = airflow("failed", "failed")
    script.fault = lambda r: reply if "/logs/" in r.path else None
    result = swept(script)
    assert result.by_run["r0"].error_message == text
    assert result.errors == {}


def test_airflow_logs_are_read_within_the_budget() -> None:
    script = airflow(*["failed"] * 10)
    found = swept(script, error_lookups=4).by_run
    assert len(extra(script)) == 4
    texts = [run.error_message for run in found.values()]
    assert texts.count("task load: ValueError: no space left") == 3
    assert texts.count("task load failed") == 7


def test_a_run_of_which_the_ledger_knows_why_is_not_asked_about_again() -> None:
    script = airflow("failed", "failed")
    told = {"r0": ToldRun(minutes_ago(50), "as before", None), "r1": ToldRun(minutes_ago(7), "of another end", None)}
    found = swept(script, target=Target("p1", SINCE, (), told)).by_run
    assert found["r0"].error_message == "as before"
    assert found["r1"].error_message == "task load: ValueError: no space left"
    assert extra(script)[0].json["dag_run_ids"] == ["r1"]


def test_rows_are_counted_where_somebody_says_where_they_are() -> None:
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
    found = swept(script, rows_xcom="rows").by_run
    assert {run_id: run.rows_processed for run_id, run in found.items()} == {"r0": 42, "r1": None, "r2": None}
    assert len([r for r in script.requests if "xcom" in r.path]) == 3


def test_half_a_count_is_no_count() -> None:
    script = airflow("success")
    entries = [{"dag_id": "p1", "run_id": "r0", "task_id": name, "map_index": -1} for name in "ab"]
    script.fault = lambda r: (
        ok({"xcom_entries": entries, "total_entries": 2})
        if r.path.endswith("/xcomEntries")
        else (ok({"value": 5}) if r.path.endswith("/rows") else None)
    )
    assert swept(script, rows_xcom="rows", row_lookups=2).by_run["r0"].rows_processed is None


# Dagster


def dagster(*states: str) -> Dagster:
    class Own(Dagster):
        pass

    script = Own()
    for n, state in enumerate(states):
        script.add("p1", f"run-{n}", stage(state, started=60 - n, finished=50 - n))
    return script


def test_dagster_tells_the_error_behind_its_own() -> None:
    script = dagster("failed", "success")
    found = swept(script, "dagster").by_run
    assert found["run-0"].error_message == "step load: ValueError: no space left"
    assert found["run-1"].error_message is None
    assert len(extra(script)) == 1


def test_the_recorded_events_tell_why() -> None:
    script = dagster("failed")
    events = body("dagster", "events_of_failed_run")["data"]["logsForRun"]["events"]

    def fault(request: Request) -> Reply | None:
        if request.json and "query Errors" in request.json["query"]:
            log = {"cursor": "c", "hasMore": False, "events": events}
            return ok({"data": {"runsOrError": {"results": [{"runId": "run-0", "eventConnection": log}]}}})
        return None

    script.fault = fault
    text = "step fail_op: ValueError: source table orders is missing column amount"
    assert swept(script, "dagster").by_run["run-0"].error_message == text


def test_a_long_log_is_read_on_until_the_failure() -> None:
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
    assert swept(script, "dagster").by_run["run-0"].error_message == "Steps failed: ['load']."
    assert len(extra(script)) == 3


def test_a_server_that_does_not_understand_the_question_costs_the_answer_only() -> None:
    script = dagster("failed")
    script.fault = lambda r: (
        ok({"errors": [{"message": "no"}]}) if r.json and "query Errors" in r.json["query"] else None
    )
    result = swept(script, "dagster")
    assert result.by_run["run-0"].error_message is None
    assert result.errors == {}


def test_dagster_counts_rows_for_those_who_ask() -> None:
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
        assert swept(script, "dagster", **options).by_run["run-0"].rows_processed == rows


def test_an_enriched_record_lands_with_what_was_added() -> None:
    script = airflow("failed")
    (page,) = [event for event in swept(script).events if isinstance(event, Page)]
    assert page.records[0][1][ENRICHED] == {"error": "task load: ValueError: no space left"}
    assert swept(script).by_run["r0"].status is RunStatus.FAILED
