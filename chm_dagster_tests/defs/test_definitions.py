"""What Dagster is shown, to the name: nothing may vanish from the UI by accident."""

import dagster as dg
import pytest

from chm_dagster import settings as names


@pytest.fixture
def defs(monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    from chm_dagster.definitions import defs

    monkeypatch.setenv(names.DATABASE_URL, "postgresql://nobody@/none")
    monkeypatch.setenv(names.DAGSTER_DATABASE_URL, "postgresql+psycopg2://nobody@/none")
    monkeypatch.setenv(names.PARTNER_API_BASE_URL, "http://127.0.0.1:9")
    monkeypatch.setenv(names.PARTNER_API_TOKEN, "sentinel-token-5f1c")
    monkeypatch.setenv(names.SWEEP_CRON, "*/7 * * * *")
    loaded = defs()
    assert isinstance(loaded, dg.Definitions)
    return loaded


def test_exactly_these_things_are_defined(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    assert {k.to_user_string() for k in graph.get_all_asset_keys()} == {
        "partner_runs",
        "canonical_runs",
        "runs",
        "health_snapshot",
    }
    assert {f"{k.asset_key.to_user_string()}:{k.name}" for k in graph.asset_check_keys} == {
        "runs:unique_external_run_ids",
        "runs:status_progression",
        "runs:every_record_accounted_for",
        "runs:replay_writes_nothing",
        "runs:no_unknown_statuses",
        "runs:no_rejected_records",
        "runs:inventory_is_synced",
        "partner_runs:every_partner_answered",
    }
    assert {j.name for j in defs.jobs or ()} == {"ingest"}
    assert {s.name for s in defs.sensors or ()} == {"pipeline_partitions"}
    assert set(defs.resources or {}) == {"warehouse", "partners", "landing"}


def test_the_cadence_comes_from_the_environment_and_automation_is_on(defs: dg.Definitions) -> None:
    schedule = defs.resolve_schedule_def("sweep")
    assert schedule.cron_schedule == "*/7 * * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert defs.resolve_sensor_def("pipeline_partitions").default_status is dg.DefaultSensorStatus.RUNNING


def test_every_asset_and_check_tells_the_operator_what_it_is(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.owners and node.kinds and node.group_name in ("ingestion", "health"), key
    for check in graph.asset_check_keys:
        assert graph.get_check_spec(check).description, check


def test_no_secret_is_in_what_dagster_knows_of_the_resources(defs: dg.Definitions) -> None:
    shown = repr(defs.resources)
    assert "sentinel-token-5f1c" not in shown
    assert names.PARTNER_API_TOKEN in shown
