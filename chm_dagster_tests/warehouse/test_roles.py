"""What each role may do, tried statement by statement on a real server. deploy/roles.sql says what and why."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.errors import ConfigError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.named_queries import ask, queries
from chm_dagster.warehouse.roles import APP, BI, apply_roles
from chm_dagster_tests.contracts.histories import watch

pytestmark = pytest.mark.alone

OWNER = "chm_owner"
PASSWORDS = {OWNER: "owner' pw", APP: "app\\ pw", BI: "bi: pw"}
ALL, WRITERS, OWNERS, NOBODY = {OWNER, APP, BI}, {OWNER, APP}, {OWNER}, set[str]()

STATEMENTS: dict[str, set[str]] = {
    # Reading
    "SELECT * FROM clients": ALL,
    "SELECT * FROM pipelines": ALL,
    "SELECT * FROM alert_rules": ALL,
    "SELECT count(*) FROM runs": ALL,
    "SELECT id, status, error_message, source_url FROM runs": ALL,
    "SELECT version_num FROM alembic_version": ALL,
    "SELECT * FROM pipeline_details": ALL,
    "SELECT * FROM ledger_runs": ALL,
    "SELECT * FROM settled_runs": ALL,
    "SELECT * FROM health_runs": ALL,
    "SELECT * FROM run_details": ALL,
    "SELECT * FROM pipeline_health": ALL,
    "SELECT * FROM daily_rollup": ALL,
    "SELECT * FROM open_alert_episodes": ALL,
    "SELECT * FROM active_pipelines(null, null) AS p, latest_runs(p.pipeline_id, 3)": ALL,
    "SELECT * FROM active_pipelines(null, null) AS p, health_of(p.pipeline_id, 'failed', now())": ALL,
    "SELECT relname FROM pg_class": ALL,
    "EXPLAIN SELECT * FROM run_details": ALL,
    "SHOW server_version": ALL,
    # What partners sent
    "SELECT * FROM runs": WRITERS,
    "SELECT payload FROM runs": WRITERS,
    "SELECT lineage FROM runs": WRITERS,
    "SELECT status FROM runs WHERE payload ? 'id'": WRITERS,
    "SELECT r FROM runs AS r": WRITERS,
    "SELECT to_jsonb(r) FROM runs AS r": WRITERS,
    "SELECT count(payload) FROM runs": WRITERS,
    "COPY runs TO STDOUT": WRITERS,
    "SELECT status FROM runs ORDER BY lineage": WRITERS,
    # Writing rows
    "INSERT INTO clients (name, slug) VALUES ('Bolt', 'bolt')": WRITERS,
    "UPDATE clients SET is_active = is_active": WRITERS,
    "UPDATE runs SET status_reason = 'x'": WRITERS,
    "UPDATE pipelines SET description = 'x'": WRITERS,
    "UPDATE alert_rules SET is_enabled = false": WRITERS,
    "DELETE FROM runs": WRITERS,
    "DELETE FROM alert_rules": WRITERS,
    "SELECT id FROM runs FOR UPDATE": WRITERS,
    "SELECT id FROM clients FOR SHARE": WRITERS,
    "LOCK TABLE runs IN ROW EXCLUSIVE MODE": WRITERS,
    "COPY clients (name, slug) FROM STDIN": WRITERS,
    "WITH gone AS (DELETE FROM runs RETURNING id) SELECT * FROM gone": WRITERS,
    "UPDATE alembic_version SET version_num = '0001'": OWNERS,
    "TRUNCATE runs CASCADE": OWNERS,
    # The schema
    "CREATE TABLE t (a int)": OWNERS,
    "CREATE VIEW v AS SELECT 1 AS one": OWNERS,
    "CREATE MATERIALIZED VIEW v AS SELECT 1 AS one": OWNERS,
    "CREATE SEQUENCE s": OWNERS,
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'": OWNERS,
    "CREATE TYPE t AS (a int)": OWNERS,
    "CREATE SCHEMA s": OWNERS,
    "ALTER TABLE runs ADD COLUMN a int": OWNERS,
    "DROP TABLE alert_rules CASCADE": OWNERS,
    "DROP VIEW run_details": OWNERS,
    "CREATE INDEX ON runs (status)": OWNERS,
    "COMMENT ON TABLE runs IS 'x'": OWNERS,
    "ALTER TABLE runs OWNER TO CURRENT_USER": OWNERS,
    # Temporary tables, large objects, locks, messages
    "CREATE TEMPORARY TABLE t (a int)": WRITERS,
    "CREATE TEMPORARY VIEW v AS SELECT 1 AS one": WRITERS,
    "SELECT id INTO TEMPORARY t FROM clients": WRITERS,
    "SELECT pg_advisory_lock(1)": WRITERS,
    "SELECT pg_advisory_lock(1, 2)": WRITERS,
    "SELECT pg_advisory_lock_shared(1)": WRITERS,
    "SELECT pg_advisory_xact_lock(1)": WRITERS,
    "SELECT pg_advisory_xact_lock(1, 2)": WRITERS,
    "SELECT pg_advisory_xact_lock_shared(1)": WRITERS,
    "SELECT pg_try_advisory_lock(1)": WRITERS,
    "SELECT pg_try_advisory_lock(1, 2)": WRITERS,
    "SELECT pg_try_advisory_xact_lock(1)": WRITERS,
    "SELECT pg_try_advisory_lock_shared(1, 2)": WRITERS,
    "SELECT pg_advisory_unlock_all()": WRITERS,
    "SELECT pg_notify('chm', 'x')": WRITERS,
    "SELECT pg_sleep(0)": WRITERS,
    "SELECT lo_creat(-1)": NOBODY,
    "SELECT lo_create(0)": NOBODY,
    "SELECT lo_from_bytea(0, 'x')": NOBODY,
    "SELECT lo_open(1, 393216)": NOBODY,
    "SELECT lo_unlink(1)": NOBODY,
    "SELECT lo_put(1, 0, 'x')": NOBODY,
    "SELECT lo_import('/etc/passwd')": NOBODY,
    "SELECT lo_export(1, '/tmp/chm-stolen')": NOBODY,
    # The server
    "SELECT pg_read_file('/etc/passwd')": NOBODY,
    "SELECT pg_ls_dir('.')": NOBODY,
    "SELECT * FROM pg_shadow": NOBODY,
    "SELECT rolpassword FROM pg_authid": NOBODY,
    "COPY clients TO PROGRAM 'true'": NOBODY,
    "COPY clients TO '/tmp/chm-stolen'": NOBODY,
    "CREATE ROLE other": NOBODY,
    "ALTER ROLE chm_bi SUPERUSER": NOBODY,
    "ALTER ROLE chm_bi CONNECTION LIMIT 100": NOBODY,
    "SET ROLE postgres": NOBODY,
    "SET SESSION AUTHORIZATION postgres": NOBODY,
    "SET temp_file_limit = -1": NOBODY,
    "SET session_replication_role = replica": NOBODY,
    "SELECT pg_rotate_logfile()": NOBODY,
    "SELECT pg_terminate_backend(1)": WRITERS,
    "SELECT pg_reload_conf()": NOBODY,
    "CREATE PUBLICATION p FOR ALL TABLES": NOBODY,
    # Postgres has no privilege for these; deploy/roles.sql says so.
    "NOTIFY chm": ALL,
    "SET statement_timeout = 0": ALL,
}


@pytest.fixture(scope="module")
def connect(postgres: EmbeddedPostgres) -> Iterator[Callable[..., "psycopg.Connection[tuple[object, ...]]"]]:
    """Opens a session as one of the roles in a database that its owner migrated, with one client and its runs."""
    admin = psycopg.connect(postgres.url("postgres"), autocommit=True)
    admin.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD 'owner'' pw'")
    admin.execute(f"CREATE DATABASE roles OWNER {OWNER}")

    def url(role: str) -> str:
        address = postgres.url("roles").split("@", 1)[1]
        return f"postgresql://{role}:{quote(PASSWORDS[role], safe='')}@{address}"

    owner = make_engine(url(OWNER))
    schema.migrate(owner)
    watch(owner, "SSF")
    superuser = make_engine(postgres.url("roles"))
    assert apply_roles(superuser, {role: PASSWORDS[role] for role in (APP, BI)}) == []
    assert apply_roles(owner, {}) == [], "the owner repeats it after each migration"

    def connect(role: str, **settings: str) -> "psycopg.Connection[tuple[object, ...]]":
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        return psycopg.connect(url(role), options=options)

    yield connect
    owner.dispose()
    superuser.dispose()
    admin.execute("DROP DATABASE roles WITH (FORCE)")
    admin.execute(f"DROP ROLE {OWNER}")
    admin.close()


def outcome(connection: "psycopg.Connection[tuple[object, ...]]", statement: str) -> str:
    """Whether a statement is allowed or denied; another error is a mistake in the statement. It is undone."""
    try:
        if statement.endswith(("STDOUT", "STDIN")):
            with connection.cursor().copy(statement) as copied:
                list(copied if statement.endswith("STDOUT") else ())
        else:
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return "denied"
    except psycopg.Error as error:
        return str(error)
    finally:
        connection.rollback()
    return "allowed"


@pytest.mark.parametrize("role", sorted(ALL))
def test_a_role_may_do_exactly_what_it_should(role: str, connect: Callable[..., psycopg.Connection]) -> None:
    assert len(STATEMENTS) >= 60
    # A session can switch read-only off, so it is off here: privileges alone must hold.
    with connect(role, default_transaction_read_only="off") as connection:
        found = {statement: outcome(connection, statement) for statement in STATEMENTS}
    wanted = {statement: "allowed" if role in who else "denied" for statement, who in STATEMENTS.items()}
    assert {s: text for s, text in found.items() if text != wanted[s]} == {}


def test_a_writer_can_end_its_own_sessions_only(connect: Callable[..., psycopg.Connection]) -> None:
    end = "SELECT pg_terminate_backend(%s, 10000)"
    with connect(APP) as one, connect(APP) as other, connect(OWNER) as owner:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied to terminate process"):
            one.execute(end, [owner.info.backend_pid])
        one.rollback()
        assert one.execute(end, [other.info.backend_pid]).fetchone() == (True,)
        assert owner.execute("SELECT 1").fetchone() == (1,)


def test_the_reader_gets_limits_by_default(connect: Callable[..., psycopg.Connection]) -> None:
    with connect(BI) as connection:
        found = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in ("default_transaction_read_only", "statement_timeout", "lock_timeout", "temp_file_limit")
        }
    assert found == {
        "default_transaction_read_only": "on",
        "statement_timeout": "30s",
        "lock_timeout": "5s",
        "temp_file_limit": "1GB",
    }


def test_the_reader_cannot_take_all_connections(connect: Callable[..., psycopg.Connection]) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(10):
            held.enter_context(connect(BI))
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            connect(BI)


@pytest.mark.parametrize("name", queries())
def test_the_reader_can_ask_every_question_of_the_contract(
    name: str, connect: Callable[..., psycopg.Connection]
) -> None:
    with connect(BI) as connection:
        place = {"host": connection.info.host, "port": str(connection.info.port)}
    url = sa.URL.create("postgresql+psycopg", BI, PASSWORDS[BI], None, None, "roles", place)
    engine = make_engine(url.render_as_string(hide_password=False))
    try:
        ask(engine, name)
    finally:
        engine.dispose()


def test_a_password_reaches_the_server_as_a_hash_and_no_log_at_all(
    engine: sa.Engine, all_logs: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    # Whatever libpq sends and receives: the server would turn a password in the clear into a hash as well.
    with (tmp_path / "wire").open("w") as wire:

        def trace(connection: psycopg.Connection[object], *_: object) -> None:
            connection.pgconn.trace(wire.fileno())

        sa.event.listen(engine, "checkout", trace)
        try:
            apply_roles(engine, {BI: "sentinel-4711"})
        finally:
            sa.event.remove(engine, "checkout", trace)
            engine.dispose()
    said = (tmp_path / "wire").read_text(errors="replace")
    apply_roles(engine, {BI: PASSWORDS[BI]})
    assert 'ALTER ROLE "chm_bi" PASSWORD' in said
    assert "SCRAM-SHA-256$" in said
    assert "sentinel-4711" not in said
    assert "sentinel-4711" not in all_logs.text


def test_somebody_who_may_not_create_roles_gets_the_fix(postgres: EmbeddedPostgres, engine: sa.Engine) -> None:
    """On a server of one's own, the owner of the database is often no superuser."""
    database = engine.url.database
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE chm_plain LOGIN PASSWORD 'plain'")
        admin.execute(f"GRANT CONNECT ON DATABASE {database} TO chm_plain")
    plain = make_engine(f"postgresql://chm_plain:plain@{postgres.url(str(database)).split('@', 1)[1]}")
    try:
        with pytest.raises(ConfigError, match=r"(?i)permission denied|superuser"):
            apply_roles(plain, {BI: "x"})
    finally:
        plain.dispose()
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
            admin.execute(f"REVOKE ALL ON DATABASE {database} FROM chm_plain")
            admin.execute("DROP ROLE chm_plain")


def test_migrate_sets_the_roles_and_takes_passwords_from_the_environment_only(
    database_url: str, tmp_path: object
) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "CHM_HOME": str(tmp_path),
        "CHM_DATABASE_URL": database_url,
        "CHM_DAGSTER_DATABASE_URL": database_url,
        "CHM_BI_POSTGRES_PASSWORD": PASSWORDS[BI],
    }
    command = [sys.executable, "-m", "chm_dagster.cli.main", "migrate", "--roles"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=str(tmp_path))
    assert (done.returncode, "chm_bi have their rights" in done.stderr) == (0, True), done.stderr
    assert PASSWORDS[BI] not in done.stdout + done.stderr
    address = database_url.split("@", 1)[1]
    with psycopg.connect(f"postgresql://chm_bi:{quote(PASSWORDS[BI], safe='')}@{address}") as connection:
        assert connection.execute("SELECT count(*) FROM pipeline_health").fetchone() == (0,)


# --- views -----------------------------------------------------------------------------------------------------------------


def test_every_column_of_every_view_has_a_comment(engine: sa.Engine) -> None:
    query = """
    SELECT c.relname || '.' || a.attname FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relkind = 'v' AND c.relnamespace = 'public'::regnamespace
      AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid, 'pg_class') IS NULL)
    """
    with engine.connect() as connection:
        assert connection.scalars(sa.text(query)).all() == []


def test_the_views_agree_with_the_contract(engine: sa.Engine) -> None:
    watch(engine, "SSSFF", "orders")
    watch(engine, "SFS", "stock", "Bolt")
    watch(engine, [], "idle")
    with engine.connect() as connection:
        health = connection.execute(sa.text("SELECT * FROM pipeline_health")).mappings().all()
        days = connection.execute(sa.text("SELECT * FROM daily_rollup")).mappings().all()
        named = connection.execute(sa.text("SELECT * FROM run_details")).mappings().all()
    wanted = ask(engine, "latest_status_by_pipeline")
    fields = ("pipeline_id", "health", "health_since", "health_reason", "settled_status", "due_at")
    assert sorted(str([row[f] for f in fields]) for row in health) == sorted(
        str([row[f] for f in fields]) for row in wanted
    )
    summary = ask(engine, "client_summary")
    for status in ("success", "failed"):
        assert sum(day[status] for day in days) == sum(row[status] for row in summary) > 0
    assert {(r["client_slug"], r["pipeline_slug"]) for r in named} == {("acme", "orders"), ("bolt", "stock")}
    assert len(named) == 8 and all(day["runs"] == day["success"] + day["failed"] for day in days)
