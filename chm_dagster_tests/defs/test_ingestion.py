"""The ingestion graph as an operator meets it: partitions, events, failures."""

import dagster as dg

from chm_dagster.defs.ingestion.automation import fail_leftovers
from chm_dagster.errors import AuthError
from chm_dagster.partners.port import Done, Failed, Page, Target
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.defs.conftest import Deployment
from chm_dagster_tests.factories import record, rows, told

ASSETS = ("partner_runs", "canonical_runs", "runs")


def b_fails(target: Target) -> list[Page | Done | Failed]:
    if target.external_id == "acme-b":
        return [Failed(["acme-b"], AuthError("connection default: credentials refused (401)"))]
    return told(target.external_id, record(), record("r2"))


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
    result = deployment.sweep(pipelines=["acme/a", "acme/c"])
    assert result.success
    assert [t.external_id for t in deployment.feed.asked] == ["acme-a", "acme-c"]
    assert deployment.statuses("runs") == {"acme/a": "MATERIALIZED", "acme/b": "MISSING", "acme/c": "MATERIALIZED"}


def test_a_sweep_without_news_leaves_no_event_on_any_partition(deployment: Deployment) -> None:
    deployment.sweep()
    again = deployment.sweep()
    assert again.success
    assert [p for asset in ASSETS for p in materialized(again, asset) if p] == []


def test_in_a_sweep_a_failed_pipeline_is_red_and_the_run_too_while_health_goes_on(deployment: Deployment) -> None:
    deployment.says(b_fails)
    result = deployment.sweep()
    assert not result.success
    for asset in ASSETS:
        assert deployment.statuses(asset) == {"acme/a": "MATERIALIZED", "acme/b": "FAILED", "acme/c": "MATERIALIZED"}
    assert materialized(result, "health_snapshot")
    answered = deployment.check(result, "every_partner_answered")
    assert not answered.passed
    assert "401" in str(answered.metadata["pipelines"].value)
    deployment.says(lambda t: told(t.external_id, record()))
    assert deployment.sweep().success
    assert deployment.statuses("runs")["acme/b"] == "MATERIALIZED"


def test_a_partition_is_red_no_longer_once_its_partner_answers_again_even_without_news(deployment: Deployment) -> None:
    deployment.sweep()
    deployment.says(b_fails)
    deployment.sweep()
    assert deployment.statuses("runs")["acme/b"] == "FAILED"
    deployment.says(lambda t: told(t.external_id, record()))
    again = deployment.sweep()
    for asset in ASSETS:
        assert deployment.statuses(asset)["acme/b"] == "MATERIALIZED"
    assert [p for p in materialized(again, "runs") if p] == ["acme/b"]


def test_in_a_chosen_range_a_failed_pipeline_is_red_and_its_neighbours_green(deployment: Deployment) -> None:
    deployment.says(b_fails)
    result = deployment.choose("acme/a", "acme/c")
    assert not result.success
    for asset in ASSETS:
        assert deployment.statuses(asset) == {"acme/a": "MATERIALIZED", "acme/b": "FAILED", "acme/c": "MATERIALIZED"}
    failure = result.failure_data_for_node("ingest_runs")
    assert failure is not None and failure.user_failure_data is not None
    assert "1 of 3 pipelines could not be read" in str(failure.user_failure_data.description)


def test_a_pipeline_that_does_not_exist_is_named(deployment: Deployment) -> None:
    failure = deployment.sweep(pipelines=["acme/zzz"]).failure_data_for_node("ingest_runs")
    assert failure is not None and failure.user_failure_data is not None
    assert failure.user_failure_data.description == "not ingested pipelines: acme/zzz"


def test_a_landing_is_mapped_again_without_the_partner(deployment: Deployment) -> None:
    first = deployment.sweep()
    with deployment.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM runs")
    deployment.says(lambda t: [Failed([t.external_id], AuthError("the partner was asked"))])
    again = deployment.sweep(everything=True, from_landing=first.run_id)
    assert again.success
    assert rows(deployment.engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 3


def test_the_run_is_started_by_a_schedule_that_waits_for_the_one_before(deployment: Deployment) -> None:
    schedule = deployment.defs.resolve_schedule_def("sweep")
    context = dg.build_schedule_context(instance=deployment.instance)
    (request,) = schedule.evaluate_tick(context).run_requests or ()
    assert request.run_config == {"ops": {"ingest_runs": {"config": {"everything": True}}}}
    job = deployment.defs.resolve_job_def("ingest")
    deployment.instance.create_run_for_job(
        job, tags={"dagster/schedule_name": "sweep"}, status=dg.DagsterRunStatus.STARTED
    )
    tick = schedule.evaluate_tick(context)
    assert not tick.run_requests
    assert "still at work" in (tick.skip_message or "")


def test_a_sweep_that_a_crash_cut_off_does_not_hold_the_schedule_up(deployment: Deployment) -> None:
    job = deployment.defs.resolve_job_def("ingest")
    tags = {"dagster/schedule_name": "sweep"}
    cut = deployment.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert fail_leftovers(deployment.instance) == 1
    found = deployment.instance.get_run_by_id(cut.run_id)
    assert found is not None and found.status == dg.DagsterRunStatus.FAILURE
    schedule = deployment.defs.resolve_schedule_def("sweep")
    assert schedule.evaluate_tick(dg.build_schedule_context(instance=deployment.instance)).run_requests


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
    deployment.instance.delete_dynamic_partition("pipelines", "acme/b")
    with deployment.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE pipelines SET is_active = true")
    assert tick() == (["acme/b"], [])
