"""The migrations enforce every invariant, work in both directions on filled tables, and agree with the models."""

import subprocess
import sys

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from chm_dagster.errors import DatabaseUnavailable
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.tables import metadata
from chm_dagster_tests.factories import add_pipeline, rows

pytestmark = pytest.mark.alone


def test_models_and_migrations_agree(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_check_constraints_of_models_and_migrations_agree(engine: sa.Engine, empty_database_url: str) -> None:
    # Alembic's comparison leaves out CHECK constraints, so they are compared here.
    made = make_engine(empty_database_url)
    with made.begin() as connection:
        connection.execute(
            sa.text("CREATE FUNCTION chm_uuid7() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()'")
        )
        metadata.create_all(connection)
    query = "SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace ORDER BY 1"
    assert rows(made, query) == rows(engine, query)
    made.dispose()


def test_there_are_exactly_four_tables(engine: sa.Engine) -> None:
    tables = set(sa.inspect(engine).get_table_names())
    assert tables == {"clients", "pipelines", "runs", "alert_rules", "alembic_version"}


def test_every_table_and_column_has_a_comment(engine: sa.Engine) -> None:
    inspector = sa.inspect(engine)
    for table in ("clients", "pipelines", "runs", "alert_rules"):
        assert inspector.get_table_comment(table)["text"]
        assert all(column["comment"] for column in inspector.get_columns(table)), table


def test_every_constraint_is_named_by_the_convention(engine: sa.Engine) -> None:
    names = rows(
        engine,
        "SELECT conname FROM pg_constraint WHERE contype IN ('c', 'p', 'u', 'f') AND connamespace = 'public'::regnamespace AND conrelid <> 'alembic_version'::regclass",
    )
    assert all(row["conname"].startswith(("ck_", "pk_", "uq_", "fk_")) for row in names)


def test_downgrade_and_upgrade_work_on_filled_tables(engine: sa.Engine) -> None:
    add_pipeline(engine)
    schema.downgrade(engine, "base")
    assert schema.current(engine) is None
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"}
    schema.migrate(engine)
    assert schema.current(engine) == schema.head()


def test_a_migration_gives_up_soon_when_a_table_is_locked(engine: sa.Engine, database_url: str) -> None:
    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql")) as other:
        other.execute("LOCK TABLE runs IN ACCESS SHARE MODE")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            schema.downgrade(engine, "base")
    assert schema.current(engine) == schema.head()


def test_two_migrations_at_once_wait_for_each_other(empty_database_url: str) -> None:
    # In separate processes, like deployments: Alembic's context is global to a process.
    code = (
        "import sys; from chm_dagster.warehouse import engine, schema; schema.migrate(engine.make_engine(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, empty_database_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, cwd=schema.MIGRATIONS.parent) for _ in range(3)]
    for process in processes:
        _, problems = process.communicate(timeout=60)
        assert process.returncode == 0, problems.decode()
    engine = make_engine(empty_database_url)
    assert schema.current(engine) == schema.head()
    engine.dispose()


def test_an_outdated_database_is_reported_with_the_fix(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    with pytest.raises(DatabaseUnavailable, match="chm migrate"):
        schema.require_current(engine)
    engine.dispose()


def test_a_database_newer_than_this_release_asks_for_a_newer_release(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match=r"9999, which this release .* Upgrade CHM"):
        schema.require_current(engine)
    with pytest.raises(DatabaseUnavailable, match=r"9999, which this release .* Upgrade CHM"):
        schema.migrate(engine)


def test_revisions_read_without_alembic_are_those_of_alembic(engine: sa.Engine) -> None:
    assert schema.head() == ScriptDirectory(str(schema.MIGRATIONS)).get_current_head()
    with engine.connect() as connection:
        assert schema.current(engine) == MigrationContext.configure(connection).get_current_revision()
    schema.require_current(engine)


RUN = "INSERT INTO runs (pipeline_id, external_run_id, status, {columns}) VALUES (:p, 'r1', {values})"


@pytest.mark.parametrize(
    ("assignments", "constraint"),
    [
        ({"status": "'paused'"}, "ck_runs_status_known"),
        ({"external_run_id": "''"}, "ck_runs_external_run_id_length"),
        ({"external_run_id": "repeat('x', 513)"}, "ck_runs_external_run_id_length"),
        ({"duration_seconds": "-1"}, "ck_runs_duration_seconds_not_negative"),
        ({"duration_seconds": "'NaN'"}, "ck_runs_duration_seconds_not_negative"),
        ({"rows_processed": "-1"}, "ck_runs_rows_processed_not_negative"),
        ({"status": "'failed'", "error_message": "repeat('x', 8001)"}, "ck_runs_error_message_length"),
        ({"error_message": "'no disk'"}, "ck_runs_error_message_fits_status"),
        ({"status": "'running'", "error_message": "'no disk'"}, "ck_runs_error_message_fits_status"),
        ({"status": "'skipped'", "error_message": "'no disk'"}, "ck_runs_error_message_fits_status"),
        ({"queued_at": "'infinity'"}, "ck_runs_queued_at_readable"),
        ({"kind": "'automatic'"}, "ck_runs_kind_known"),
        ({"will_retry": "true"}, "ck_runs_will_retry_is_failed"),
        ({"status": "'running'", "progress": "1"}, "ck_runs_running_is_not_finished"),
        ({"started_at": "'infinity'"}, "ck_runs_started_at_readable"),
        ({"finished_at": "'20000-01-01'"}, "ck_runs_finished_at_readable"),
        ({"source_version": "'-infinity'"}, "ck_runs_source_version_readable"),
        ({"observed_at": "'0044-03-15 BC'"}, "ck_runs_observed_at_readable"),
        ({"status": "'running'", "finished_at": "now()"}, "ck_runs_running_is_not_finished"),
        ({"attempt": "-1"}, "ck_runs_attempt_not_negative"),
        ({"progress": "2"}, "ck_runs_progress_known"),
    ],
)
def test_the_database_rejects_an_impossible_run(
    engine: sa.Engine, assignments: dict[str, str], constraint: str
) -> None:
    pipeline = add_pipeline(engine)
    values = {"pipeline_id": f"'{pipeline.id}'", "external_run_id": "'r1'", "status": "'success'", **assignments}
    with pytest.raises(sa.exc.IntegrityError, match=constraint), engine.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO runs ({', '.join(values)}) VALUES ({', '.join(values.values())})"))


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("name", "' padded '", "ck_pipelines_name_trimmed"),
        ("name", "''", "ck_pipelines_name_trimmed"),
        ("slug", "'Not A Slug'", "ck_pipelines_slug_form"),
        ("platform", "'abacus'", "ck_pipelines_platform_known"),
        ("pipeline_type", "'magic'", "ck_pipelines_pipeline_type_known"),
        ("environment", "'moon'", "ck_pipelines_environment_known"),
        ("external_id", "''", "ck_pipelines_external_id_length"),
        ("schedule_cron", "'* * *'", "ck_pipelines_schedule_cron_fields"),
        ("schedule_timezone", "'UTC'", "ck_pipelines_schedule_timezone_needs_cron"),
        ("grace_minutes", "-1", "ck_pipelines_grace_minutes_not_negative"),
        ("max_runtime_minutes", "0", "ck_pipelines_max_runtime_minutes_positive"),
        ("synced_through", "'infinity'", "ck_pipelines_synced_through_readable"),
    ],
)
def test_the_database_rejects_an_invalid_pipeline(engine: sa.Engine, column: str, value: str, constraint: str) -> None:
    add_pipeline(engine)
    with pytest.raises(sa.exc.IntegrityError, match=constraint), engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE pipelines SET {column} = {value}"))


RULE = "INSERT INTO alert_rules (pipeline_id, rule_type, threshold, window_minutes, channel, destination) VALUES ('{id}', {rest})"


@pytest.mark.parametrize(
    ("rest", "constraint"),
    [
        ("'on_failure', 1, NULL, 'slack', '#ops'", "ck_alert_rules_parameters_fit_type"),
        ("'failures_in_window', 3, NULL, 'slack', '#ops'", "ck_alert_rules_parameters_fit_type"),
        ("'failures_in_window', 0, 60, 'slack', '#ops'", "ck_alert_rules_threshold_positive"),
        ("'consecutive_failures', NULL, NULL, 'slack', '#ops'", "ck_alert_rules_parameters_fit_type"),
        ("'no_success_in_window', NULL, NULL, 'slack', '#ops'", "ck_alert_rules_parameters_fit_type"),
        ("'no_success_in_window', NULL, 0, 'slack', '#ops'", "ck_alert_rules_window_minutes_positive"),
        ("'full_moon', NULL, NULL, 'slack', '#ops'", "ck_alert_rules_rule_type_known"),
        ("'on_failure', NULL, NULL, 'pigeon', 'coop'", "ck_alert_rules_channel_known"),
        ("'on_failure', NULL, NULL, 'slack', ' '", "ck_alert_rules_destination_trimmed"),
    ],
)
def test_the_database_rejects_an_invalid_rule(engine: sa.Engine, rest: str, constraint: str) -> None:
    pipeline = add_pipeline(engine)
    with pytest.raises(sa.exc.IntegrityError, match=constraint), engine.begin() as connection:
        connection.execute(sa.text(RULE.format(id=pipeline.id, rest=rest)))


def test_a_rule_needs_a_scope_and_enabled_rules_are_unique(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine)
    rule = sa.text(RULE.format(id=pipeline.id, rest="'on_failure', NULL, NULL, 'slack', '#ops'"))
    with engine.begin() as connection:
        connection.execute(rule)
        connection.execute(sa.text("UPDATE alert_rules SET is_enabled = false"))
        connection.execute(rule)
    with pytest.raises(sa.exc.IntegrityError, match="uq_alert_rules_scope"), engine.begin() as connection:
        connection.execute(rule)
    with pytest.raises(sa.exc.IntegrityError, match="ck_alert_rules_has_scope"), engine.begin() as connection:
        connection.execute(sa.text("UPDATE alert_rules SET pipeline_id = NULL"))


def test_history_cannot_be_deleted_with_its_client(engine: sa.Engine) -> None:
    add_pipeline(engine)
    with pytest.raises(sa.exc.IntegrityError, match="fk_pipelines_client_id"), engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM clients"))


def test_ids_are_uuid_v7_and_grow(engine: sa.Engine) -> None:
    ids = [row["id"] for row in rows(engine, "SELECT chm_uuid7() AS id, pg_sleep(0.002) FROM generate_series(1, 5)")]
    assert all(i.version == 7 for i in ids)
    assert ids == sorted(ids)


def test_an_edit_moves_updated_at_and_a_watermark_does_not(engine: sa.Engine) -> None:
    add_pipeline(engine)
    query = "SELECT updated_at FROM pipelines"
    before = rows(engine, query)[0]["updated_at"]
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET synced_through = now(), observed_through = now()"))
    assert rows(engine, query)[0]["updated_at"] == before
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET description = 'the nightly one'"))
    assert rows(engine, query)[0]["updated_at"] > before


def test_an_upgrade_fills_the_fingerprints_of_failures_that_are_there(engine: sa.Engine) -> None:
    schema.downgrade(engine, "0019")
    pipeline = add_pipeline(engine).id
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO runs (pipeline_id, external_run_id, status, error_message, status_reason) VALUES"
                " (:p, 'a', 'failed', 'no disk 7', 'bad'), (:p, 'b', 'failed', NULL, 'timed out after 9 s'),"
                " (:p, 'c', 'failed', NULL, NULL), (:p, 'd', 'success', NULL, NULL)"
            ),
            {"p": pipeline},
        )
    schema.migrate(engine)
    stored = {r["external_run_id"]: r["error_fingerprint"] for r in rows(engine, "SELECT * FROM run_details")}
    assert stored == {"a": "no disk <n>", "b": "timed out after <n> s", "c": "", "d": None}
