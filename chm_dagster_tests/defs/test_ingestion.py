"""The ingestion graph as an operator sees it: partitions, events, failures."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from chm_dagster.definitions import assembled
from chm_dagster.defs.automation import ALERT_STEPS, MAX_SYNCS, STEPS, fail_leftovers, news_config, sync_partitions
from chm_dagster.errors import AuthError, Transient
from chm_dagster.partners.port import PipelinesFailed, PipelinesSynced, RecordBatch, SyncTarget
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.ledger.syncs import reading_claims
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.defs.conftest import Deployment
from chm_dagster_tests.factories import add_pipeline, fake_partner, one_page, record, rows

ASSETS = ("partner_runs", "canonical_runs", "runs")


def b_fails(target: SyncTarget) -> list[RecordBatch | PipelinesSynced | PipelinesFailed]:
    if target.external_id == "acme-b":
        return [PipelinesFailed(["acme-b"], AuthError("connection default: credentials refused (401)"))]
    return one_page(target.external_id, record(), record("r2"))


def materialized(result: dg.ExecuteInProcessResult, asset: str) -> list[str | None]:
    events = result.get_asset_materialization_events()
    return sorted(e.partition or "" for e in events if e.asset_key == dg.AssetKey(asset))


def test_one_partition_is_ingested_alone(deployment: Deployment) -> None:
    result = deployment.choose("acme/b")
    assert result.success
    assert [t.external_id for t in deployment.feed.asked] == ["acme-b"]
    for asset in ASSETS:
        assert deployment.statuses(asset) == {"acme/a": "MISSING", "acme/b": "MATERIALIZED", "acme/c": "MISSING"}


def test_a_range_of_partitions_is_one_run_with_metadata_for_each(deployment: Deployment) -> None:
    result = deployment.choose("acme/a", "acme/c")
    assert result.success
    assert materialized(result, "runs") == ["acme/a", "acme/b", "acme/c"]
    for event in result.get_asset_materialization_events():
        metadata = {name: value.value for name, value in event.materialization.metadata.items()}
        if event.asset_key == dg.AssetKey("runs"):
            assert {name: metadata[name] for name in ("inserted", "updated", "unchanged", "stale", "rejected")} == {
                "inserted": 1,
                "updated": 0,
                "unchanged": 0,
                "stale": 0,
                "rejected": 0,
            }
            assert "newest run" in metadata


def test_scattered_partitions_are_one_run_by_config(deployment: Deployment) -> None:
    result = deployment.sync(pipelines=["acme/a", "acme/c"])
    assert result.success
    assert [t.external_id for t in deployment.feed.asked] == ["acme-a", "acme-c"]
    assert deployment.statuses("runs") == {"acme/a": "MATERIALIZED", "acme/b": "MISSING", "acme/c": "MATERIALIZED"}


def test_a_sync_without_news_emits_no_partition_event(deployment: Deployment) -> None:
    deployment.sync()
    again = deployment.sync()
    assert again.success
    assert [p for asset in ASSETS for p in materialized(again, asset) if p] == []


def test_in_a_sync_a_failed_pipeline_is_red_and_so_is_the_run_while_health_continues(deployment: Deployment) -> None:
    deployment.says(b_fails)
    result = deployment.sync()
    assert not result.success
    for asset in ASSETS:
        assert deployment.statuses(asset) == {"acme/a": "MATERIALIZED", "acme/b": "FAILED", "acme/c": "MATERIALIZED"}
    assert materialized(result, "health_snapshot")
    answered = deployment.check(result, "every_partner_answered")
    assert not answered.passed
    assert answered.metadata["reasons"].value == {"connection default: credentials refused (401)": "1 pipeline: acme/b"}
    deployment.says(lambda t: one_page(t.external_id, record()))
    assert deployment.sync().success
    assert deployment.statuses("runs")["acme/b"] == "MATERIALIZED"


def test_a_partition_is_no_longer_red_once_its_partner_responds_again_even_without_news(deployment: Deployment) -> None:
    deployment.sync()
    deployment.says(b_fails)
    deployment.sync()
    assert deployment.statuses("runs")["acme/b"] == "FAILED"
    deployment.says(lambda t: one_page(t.external_id, record()))
    again = deployment.sync()
    for asset in ASSETS:
        assert deployment.statuses(asset)["acme/b"] == "MATERIALIZED"
    assert [p for p in materialized(again, "runs") if p] == ["acme/b"]


def all_fail(target: SyncTarget) -> list[RecordBatch | PipelinesSynced | PipelinesFailed]:
    return [PipelinesFailed([target.external_id], Transient("connection default: timed out"))]


def events(deployment: Deployment, result: dg.ExecuteInProcessResult) -> int:
    return len(deployment.instance.all_logs(result.run_id))


@pytest.mark.slow
def test_a_partner_that_stays_dead_is_reported_once(deployment: Deployment) -> None:
    quiet = events(deployment, deployment.sync())
    for number in range(40):
        add_pipeline(deployment.engine, f"p{number}")
    sync_partitions(deployment.instance, deployment.engine)
    deployment.says(all_fail)
    first = deployment.sync()
    assert not first.success
    assert set(deployment.statuses("runs").values()) == {"FAILED"}
    again = deployment.sync()
    # The partitions stay red and so does the check; the run has nothing new to report.
    assert again.success
    assert set(deployment.statuses("runs").values()) == {"FAILED"}
    check = deployment.check(again, "every_partner_answered")
    assert not check.passed
    assert check.metadata["could not be read"].value == 43
    (reason,) = check.metadata["reasons"].value.items()
    assert reason[0] == "connection default: timed out"
    assert reason[1].startswith("43 pipelines: acme/a, acme/b") and reason[1].endswith(" and 33 more")
    assert events(deployment, again) <= quiet + 5
    assert events(deployment, first) > quiet + 3 * 40


def test_one_more_failed_pipeline_fails_the_run_and_turns_red(deployment: Deployment) -> None:
    deployment.says(b_fails)
    deployment.sync()
    assert deployment.sync().success
    deployment.says(all_fail)
    assert not deployment.sync().success
    assert set(deployment.statuses("runs").values()) == {"FAILED"}


def test_the_run_shows_the_reason_in_words_without_a_stack_trace(deployment: Deployment) -> None:
    deployment.says(b_fails)
    result = deployment.sync()
    failed = [event for event in result.all_events if event.event_type is dg.DagsterEventType.STEP_FAILURE]
    failed += [event for event in result.all_events if event.event_type is dg.DagsterEventType.RUN_FAILURE]
    errors = [event.event_specific_data.error for event in failed]  # type: ignore[union-attr]
    words = "1 of 3 pipelines could not be read:\nconnection default: credentials refused (401) (acme/b)"
    assert [(error.message, error.stack, error.cause) for error in errors] == [(words, [], None)] * 2
    assert not any("Stack Trace" in entry.message for entry in deployment.instance.all_logs(result.run_id))


@pytest.mark.slow
def test_asset_keys_may_have_a_prefix(deployment: Deployment) -> None:
    deployment.defs = assembled(deployment.defs.resources or {}, "*/5 * * * *", ["chm", "prod"])
    deployment.job = "chm_prod_ingest"
    deployment.says(b_fails)
    assert not deployment.sync().success
    for asset in ASSETS:
        assert deployment.statuses(f"chm/prod/{asset}")["acme/b"] == "FAILED"
        assert deployment.statuses(f"chm/prod/{asset}")["acme/a"] == "MATERIALIZED"
    assert deployment.sync().success
    deployment.says(lambda t: one_page(t.external_id, record()))
    assert deployment.choose("acme/a", "acme/c").success
    assert set(deployment.statuses("chm/prod/runs").values()) == {"MATERIALIZED"}
    keys = {key.to_user_string() for key in deployment.defs.resolve_asset_graph().get_all_asset_keys()}
    assert all(key.startswith("chm/prod/") for key in keys)


def test_in_a_chosen_range_a_failed_pipeline_is_red_and_its_neighbours_green(deployment: Deployment) -> None:
    deployment.says(b_fails)
    result = deployment.choose("acme/a", "acme/c")
    assert not result.success
    for asset in ASSETS:
        assert deployment.statuses(asset) == {"acme/a": "MATERIALIZED", "acme/b": "FAILED", "acme/c": "MATERIALIZED"}
    failure = result.failure_data_for_node("ingest_runs")
    assert failure is not None and failure.user_failure_data is not None
    assert "1 of 3 pipelines could not be read" in str(failure.user_failure_data.description)


def test_an_unknown_pipeline_is_named(deployment: Deployment) -> None:
    failure = deployment.sync(pipelines=["acme/zzz"]).failure_data_for_node("ingest_runs")
    assert failure is not None and failure.user_failure_data is not None
    assert failure.user_failure_data.description == "pipelines: not ingested: acme/zzz"


def test_a_landing_is_remapped_without_the_partner(deployment: Deployment) -> None:
    first = deployment.sync()
    with deployment.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    deployment.says(lambda t: [PipelinesFailed([t.external_id], AuthError("the partner was asked"))])
    again = deployment.sync(everything=True, from_landing=first.run_id)
    assert again.success
    assert rows(deployment.engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 3


def tick(deployment: Deployment) -> Any:
    schedule = deployment.defs.resolve_schedule_def("sync_schedule")
    resources = {"warehouse": Warehouse(deployment.engine)}
    return schedule.evaluate_tick(dg.build_schedule_context(instance=deployment.instance, resources=resources))


def started(deployment: Deployment, ago: timedelta = timedelta(0)) -> str:
    """A scheduled Dagster run that is at work, whose last event is that long ago."""
    job = deployment.defs.resolve_job_def("ingest")
    tags = {"dagster/schedule_name": "sync_schedule"}
    run = deployment.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    deployment.instance.handle_new_event(
        dg.EventLogEntry(
            error_info=None,
            level=20,
            user_message="at work",
            run_id=run.run_id,
            timestamp=(datetime.now(UTC) - ago).timestamp(),
        )
    )
    return run.run_id


def test_the_schedule_runs_beside_a_slow_sync_and_waits_for_three(deployment: Deployment) -> None:
    (request,) = tick(deployment).run_requests or ()
    assert request.run_config == {"ops": {"ingest_runs": {"config": {"everything": True, "scheduled": True}}}}
    for _ in range(2):
        started(deployment)
    assert tick(deployment).run_requests
    started(deployment)
    skipped = tick(deployment)
    assert not skipped.run_requests
    assert "3 earlier syncs are still running" in (skipped.skip_message or "")


def test_a_run_whose_process_is_gone_is_failed_at_once_and_one_that_ingests_is_not(deployment: Deployment) -> None:
    old = timedelta(minutes=11)
    gone, quiet, busy = started(deployment, old), started(deployment, timedelta(minutes=9)), started(deployment, old)
    with reading_claims(deployment.engine, busy):
        assert tick(deployment).run_requests
        statuses = [deployment.instance.get_run_by_id(run).status for run in (gone, quiet, busy)]  # type: ignore[union-attr]
    assert statuses == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTED]


def test_a_sync_that_was_cut_off_by_a_crash_does_not_block_the_schedule(deployment: Deployment) -> None:
    job = deployment.defs.resolve_job_def("ingest")
    tags = {"dagster/schedule_name": "sync_schedule"}
    cut = deployment.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert fail_leftovers(deployment.instance) == 1
    found = deployment.instance.get_run_by_id(cut.run_id)
    assert found is not None and found.status == dg.DagsterRunStatus.FAILURE
    assert tick(deployment).run_requests


def runs_in(deployment: Deployment) -> int:
    return int(rows(deployment.engine, "SELECT count(*) AS n FROM runs")[0]["n"])


def news_tick(deployment: Deployment, cursor: str | None = None) -> tuple[list[dg.RunRequest], str | None, str | None]:
    """A tick of the sensor: its run requests, the next cursor, and why there are none."""
    sensor = deployment.defs.resolve_sensor_def("partner_news")
    partners = fake_partner(deployment.feed)
    context = dg.build_sensor_context(
        instance=deployment.instance,
        cursor=cursor,
        resources={"warehouse": Warehouse(deployment.engine), "partners": lambda: partners},
    )
    data = sensor.evaluate_tick(context)
    return list(data.run_requests or ()), data.cursor, data.skip_message


def run_requested(deployment: Deployment, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    assert request.asset_selection is not None
    return deployment.defs.resolve_job_def(deployment.job).execute_in_process(
        instance=deployment.instance, run_config=request.run_config, asset_selection=list(request.asset_selection)
    )


def test_news_of_a_partner_starts_a_sync_of_its_connection_at_once(deployment: Deployment) -> None:
    (request,), cursor, _ = news_tick(deployment)
    assert request.run_config == news_config(["default"])
    assert run_requested(deployment, request).success
    assert runs_in(deployment) == 3
    requests, cursor, why = news_tick(deployment, cursor)
    assert (requests, why) == ([], "1 connection without news")
    deployment.says(lambda t: one_page(t.external_id, record(), record("r2", "failed")))
    (request,), cursor, _ = news_tick(deployment, cursor)
    assert news_tick(deployment, cursor)[0] == [], "a run for this is on its way"
    assert run_requested(deployment, request).success
    assert runs_in(deployment) == 6
    assert {key.to_user_string() for key in request.asset_selection or ()} == {*STEPS, *ALERT_STEPS}
    assert news_tick(deployment, cursor)[0] == []


def test_a_sync_for_news_runs_the_checks_and_forgets_nothing_that_others_could_not_read(deployment: Deployment) -> None:
    deployment.says(b_fails)
    scheduled = {check.check_name for check in deployment.sync().get_asset_check_evaluations()}
    deployment.says(lambda t: one_page(t.external_id, record("r2")))
    (request,), _, _ = news_tick(deployment)
    only_a = {**request.run_config["ops"]["ingest_runs"]["config"], "connections": [], "pipelines": ["acme/a"]}
    request = dg.RunRequest(
        run_config={"ops": {"ingest_runs": {"config": only_a}}}, asset_selection=request.asset_selection
    )
    result = run_requested(deployment, request)
    assert result.success
    assert request.asset_check_keys is None, "Dagster then runs the checks of the assets that it selects"
    assert {check.check_name for check in result.get_asset_check_evaluations()} == scheduled
    answered = deployment.check(result, "every_partner_answered")
    assert not answered.passed
    assert answered.metadata["reasons"].value == {"connection default: credentials refused (401)": "1 pipeline: acme/b"}


def test_a_sync_for_news_evaluates_the_alert_rules_and_sends_what_follows(deployment: Deployment) -> None:
    rule = {"rule_type": "on_failure", "channel": "slack", "destination": "#data", "client_id": "acme"}
    Warehouse(deployment.engine).rules.create(rule)
    deployment.says(lambda t: one_page(t.external_id, record(), record("r2", "failed")))
    (request,), _, _ = news_tick(deployment)
    result = run_requested(deployment, request)
    (shown,) = result.asset_materializations_for_node("alert_episodes")
    assert shown.metadata["open"].value == 3
    (sent,) = result.asset_materializations_for_node("alert_notifications")
    assert sent.metadata["errors"].value == [
        "slack #data: slack: neither CHM_SLACK_WEBHOOK_URL nor CHM_SLACK_BOT_TOKEN is set"
    ]


def test_partners_are_not_asked_while_several_syncs_for_news_are_running(deployment: Deployment) -> None:
    job = deployment.defs.resolve_job_def(deployment.job)
    for _ in range(MAX_SYNCS):
        tags = {"dagster/sensor_name": "partner_news"}
        deployment.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    requests, _, why = news_tick(deployment)
    assert (requests, why, deployment.feed.asked) == ([], "3 earlier syncs are still running", [])


def test_a_sensor_that_cannot_ask_says_why(deployment: Deployment) -> None:
    deployment.engine.dispose()
    sensor = deployment.defs.resolve_sensor_def("partner_news")
    gone = Warehouse(make_engine("postgresql://nobody@127.0.0.1:1/none"))
    context = dg.build_sensor_context(
        instance=deployment.instance,
        resources={"warehouse": gone, "partners": lambda: fake_partner(deployment.feed)},
    )
    why = sensor.evaluate_tick(context).skip_message or ""
    assert why.startswith("the partners could not be asked: ")


def test_partitions_follow_the_inventory(deployment: Deployment) -> None:
    sensor = deployment.defs.resolve_sensor_def("pipeline_partitions")

    def tick() -> tuple[list[str], list[str]]:
        context = dg.build_sensor_context(
            instance=deployment.instance, resources={"warehouse": Warehouse(deployment.engine)}
        )
        added: list[str] = []
        removed: list[str] = []
        for request in sensor.evaluate_tick(context).dynamic_partitions_requests or ():
            (added if isinstance(request, dg.AddDynamicPartitionsRequest) else removed).extend(request.partition_keys)
        return added, removed

    assert tick() == ([], [])
    with deployment.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE pipelines SET is_active = false WHERE slug = 'b'")
    assert tick() == ([], ["acme/b"])
    deployment.instance.delete_dynamic_partition("chm_pipelines", "acme/b")
    with deployment.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE pipelines SET is_active = true")
    assert tick() == (["acme/b"], [])
