"""Each check turns red when its invariant is violated, and gates keep health from materializing."""

from typing import Any

import dagster as dg
import orjson
import pytest
import sqlalchemy as sa

from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.defs.conftest import Deployment
from chm_dagster_tests.factories import one_page, record, rows

CHECKS = {
    "unique_external_run_ids",
    "status_progression",
    "every_record_accounted_for",
    "replay_writes_nothing",
    "no_unknown_statuses",
    "no_rejected_records",
    "clocks_agree",
    "inventory_is_synced",
    "due_times_are_current",
    "every_partner_answered",
}


def run_checks(deployment: Deployment) -> dict[str, Any]:
    """Execute all checks without ingesting, as the button in the UI does."""
    result = (
        deployment.defs.resolve_implicit_global_asset_job_def()
        .get_subset(
            asset_selection=set(),
            asset_check_selection={
                dg.AssetCheckKey(dg.AssetKey("partner_runs" if name == "every_partner_answered" else "runs"), name)
                for name in CHECKS
            },
        )
        .execute_in_process(instance=deployment.instance, raise_on_error=False)
    )
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def execute(deployment: Deployment, *statements: str) -> None:
    with deployment.engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def health_is_blocked(deployment: Deployment) -> bool:
    """Whether the next sync leaves the health snapshot as it is."""
    result = deployment.sync()
    return not any(e.asset_key == dg.AssetKey("health_snapshot") for e in result.get_asset_materialization_events())


def test_all_checks_pass_on_a_healthy_ledger(deployment: Deployment) -> None:
    result = deployment.sync()
    passed = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    # The scripted partner's clock is frozen, so its watermarks are behind ours.
    about_alerts = {"every_message_is_deliverable", "no_open_episodes"}
    assert passed == {**dict.fromkeys(CHECKS | about_alerts, True), "inventory_is_synced": False}
    assert not health_is_blocked(deployment)


@pytest.mark.alone
def test_a_duplicate_run_closes_the_gate(deployment: Deployment) -> None:
    deployment.sync()
    execute(
        deployment,
        "ALTER TABLE runs DROP CONSTRAINT uq_runs_pipeline_id_external_run_id",
        "INSERT INTO runs (pipeline_id, external_run_id, status, started_at)"
        " SELECT pipeline_id, external_run_id, status, started_at FROM runs LIMIT 1",
    )
    check = run_checks(deployment)["unique_external_run_ids"]
    assert not check.passed
    assert check.metadata["count"].value == 1
    assert check.blocking


@pytest.mark.alone
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE runs SET status = 'running', finished_at = NULL, duration_seconds = NULL, error_fingerprint = NULL, progress = 1",
        "UPDATE runs SET error_message = 'no disk'",
        "UPDATE runs SET started_at = now() + interval '9 days', finished_at = NULL",
    ],
)
def test_a_run_in_an_impossible_state_closes_the_gate(deployment: Deployment, damage: str) -> None:
    deployment.sync()
    # The constraints forbid two of the three.
    for constraint in ("running_is_not_finished", "error_message_fits_status"):
        execute(deployment, f"ALTER TABLE runs DROP CONSTRAINT ck_runs_{constraint}")
    execute(deployment, damage + " WHERE pipeline_id = (SELECT id FROM pipelines WHERE slug = 'b')")
    check = run_checks(deployment)["status_progression"]
    assert not check.passed
    assert check.metadata["pipelines"].value == ["acme/b"]


def test_a_finished_run_without_any_time_closes_no_gate(deployment: Deployment) -> None:
    # Such as a queued run that was deleted at its partner: it takes its place by when CHM first saw it.
    deployment.sync()
    execute(
        deployment,
        "UPDATE runs SET status = 'canceled', started_at = NULL, finished_at = NULL, duration_seconds = NULL,"
        " error_fingerprint = NULL",
    )
    assert run_checks(deployment)["status_progression"].passed


@pytest.mark.alone
def test_a_closed_gate_keeps_health_from_materializing(deployment: Deployment) -> None:
    deployment.sync()
    # A trigger that corrupts what is written: the ledger itself is broken, not the partner.
    execute(
        deployment,
        "ALTER TABLE runs DROP CONSTRAINT ck_runs_error_message_fits_status",
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.error_message := 'no disk'; RETURN NEW; END$$",
        "CREATE TRIGGER spoil BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    # The run of `a` is spoiled, the others fail.
    deployment.says(
        lambda t: one_page(t.external_id, record("r9", "success" if t.external_id == "acme-a" else "failed"))
    )
    rule = {"rule_type": "on_failure", "channel": "inbox", "destination": "team", "client_id": "acme"}
    Warehouse(deployment.engine).rules.create(rule)
    assert health_is_blocked(deployment)
    assert rows(deployment.engine, "SELECT episodes FROM alert_rules") == [{"episodes": []}], (
        "that is left to the sensor"
    )


def test_a_lost_record_closes_the_gate(deployment: Deployment) -> None:
    deployment.sync()
    landing = deployment.zone.newest()
    assert landing is not None
    report = landing.report()
    assert report is not None
    report["pipelines"]["acme/a"]["counts"]["inserted"] = 0
    landing.save_report(report)
    check = run_checks(deployment)["every_record_accounted_for"]
    assert not check.passed
    assert list(check.metadata["pipelines"].value) == ["acme/a"]


def test_a_landed_record_that_was_never_mapped_closes_the_gate(deployment: Deployment) -> None:
    deployment.sync()
    landing = deployment.zone.newest()
    assert landing is not None
    report = orjson.loads(orjson.dumps(landing.report()))
    report["pipelines"]["acme/a"].update(fetched=0, counts={})
    landing.save_report(report)
    check = run_checks(deployment)["every_record_accounted_for"]
    assert (check.passed, check.metadata["landed"].value, check.metadata["accounted for"].value) == (False, 3, 2)


def test_a_ledger_with_a_missing_run_fails_the_replay(deployment: Deployment) -> None:
    deployment.sync()
    execute(deployment, "DELETE FROM runs WHERE pipeline_id = (SELECT id FROM pipelines WHERE slug = 'c')")
    check = run_checks(deployment)["replay_writes_nothing"]
    assert not check.passed
    assert check.metadata["written"].value == {"acme/c": 1}


def test_an_unknown_status_is_a_warning_that_names_the_word(deployment: Deployment) -> None:
    deployment.says(lambda t: one_page(t.external_id, record("r1", "levitating")))
    check = deployment.check(deployment.sync(), "no_unknown_statuses")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["words"].value == {"levitating": 3}


@pytest.mark.parametrize(("good", "severity"), [(30, dg.AssetCheckSeverity.WARN), (3, dg.AssetCheckSeverity.ERROR)])
def test_rejected_records_are_a_warning_and_many_an_error(
    deployment: Deployment, good: int, severity: dg.AssetCheckSeverity
) -> None:
    deployment.says(lambda t: one_page(t.external_id, *(record(f"r{n}") for n in range(good)), {"id": None}))
    check = deployment.check(deployment.sync(), "no_rejected_records")
    assert (check.passed, check.severity, check.metadata["rejected"].value) == (False, severity, 3)


def test_a_stale_watermark_is_noticed(deployment: Deployment) -> None:
    deployment.sync()
    execute(
        deployment,
        "UPDATE pipelines SET observed_through = now(), stale_at = NULL, synced_through = now() - interval '9 days'",
    )
    assert run_checks(deployment)["inventory_is_synced"].passed
    # By a schedule that runs once a day, a sync of yesterday counts.
    execute(
        deployment,
        "UPDATE pipelines SET observed_through = now() - interval '1 day', stale_at = now() + interval '1 hour'",
    )
    assert run_checks(deployment)["inventory_is_synced"].passed
    execute(deployment, "UPDATE pipelines SET stale_at = now() - interval '1 minute' WHERE slug = 'a'")
    check = run_checks(deployment)["inventory_is_synced"]
    assert not check.passed
    assert check.metadata["pipelines"].value == ["acme/a"]


def test_a_due_time_that_is_out_of_date_is_noticed(deployment: Deployment) -> None:
    deployment.sync()
    assert run_checks(deployment)["due_times_are_current"].passed
    execute(deployment, "UPDATE pipelines SET schedule_cron = '0 6 * * *', due_at = now() WHERE slug = 'a'")
    check = run_checks(deployment)["due_times_are_current"]
    assert (check.passed, check.metadata["pipelines"].value) == (False, ["acme/a"])


def test_a_watermark_in_the_future_is_noticed(deployment: Deployment) -> None:
    deployment.sync()
    execute(deployment, "UPDATE pipelines SET observed_through = now(), stale_at = NULL, synced_through = now()")
    execute(deployment, "UPDATE pipelines SET synced_through = now() + interval '1 hour' WHERE slug = 'a'")
    check = run_checks(deployment)["inventory_is_synced"]
    assert (check.passed, check.metadata["pipelines"].value) == (False, ["acme/a"])
