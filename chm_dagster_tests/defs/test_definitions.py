"""Everything that Dagster shows, by name: nothing may disappear from the UI by accident."""

import dagster as dg
import pytest

from chm_dagster import settings as names
from chm_dagster.defs.ingestion import CONFIG


@pytest.fixture
def defs(monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    from chm_dagster.definitions import defs

    monkeypatch.setenv(names.DATABASE_URL, "postgresql://nobody@/none")
    monkeypatch.setenv(names.DAGSTER_DATABASE_URL, "postgresql+psycopg2://nobody@/none")
    monkeypatch.setenv(names.PARTNER_API_BASE_URL, "http://127.0.0.1:9")
    monkeypatch.setenv(names.PARTNER_API_TOKEN, "sentinel-token-5f1c")
    monkeypatch.setenv(names.SYNC_CRON, "*/7 * * * *")
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
        "alert_episodes",
        "alert_notifications",
        "client_report",
        "client_month_report",
    }
    assert {f"{k.asset_key.to_user_string()}:{k.name}" for k in graph.asset_check_keys} == {
        "runs:unique_external_run_ids",
        "runs:status_progression",
        "runs:every_record_accounted_for",
        "runs:replay_writes_nothing",
        "runs:no_unknown_statuses",
        "runs:no_rejected_records",
        "runs:clocks_agree",
        "runs:inventory_is_synced",
        "runs:due_times_are_current",
        "partner_runs:every_partner_answered",
        "alert_notifications:every_message_is_deliverable",
        "alert_episodes:no_open_episodes",
        "client_report:every_report_is_deliverable",
    }
    assert {j.name for j in defs.jobs or ()} == {"ingest", "deliver_alerts", "client_reports", "client_month_reports"}
    assert {s.name for s in defs.sensors or ()} == {"pipeline_partitions", "partner_news", "alerts", "reports_due"}
    assert set(defs.resources or {}) == {"warehouse", "partners", "landing", "channels", "operator", "io_manager"}


def test_the_cadence_comes_from_the_environment_and_automation_is_on(defs: dg.Definitions) -> None:
    schedule = defs.resolve_schedule_def("sync_schedule")
    assert schedule.cron_schedule == "*/7 * * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    for name in ("pipeline_partitions", "partner_news"):
        assert defs.resolve_sensor_def(name).default_status is dg.DefaultSensorStatus.RUNNING


def test_every_asset_and_check_has_a_description(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.owners and node.kinds, key
        assert node.group_name in ("ingestion", "health", "alerting", "reports"), key
    for check in graph.asset_check_keys:
        assert graph.get_check_spec(check).description, check


def test_a_run_s_config_has_nothing_of_authority_or_location(defs: dg.Definitions) -> None:
    for name, resource in (defs.resources or {}).items():
        assert isinstance(resource, dg.ResourceDefinition)
        assert vars(resource.config_schema.config_type)["fields"] == {}, name
    assert set(CONFIG) == {
        "pipelines",
        "everything",
        "connections",
        "scheduled",
        "since",
        "from_landing",
        "report_progress",
    }
