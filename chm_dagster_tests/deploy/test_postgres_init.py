"""deploy/postgres-init.sql, run by psql on a separate server, as the Postgres image runs it on first start."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.roles import BI, apply_roles
from chm_dagster_tests.deploy.compose import ROLE_PASSWORDS, ROOT
from chm_dagster_tests.deploy.conftest import PASSWORDS, scripts, url, without_password


def test_the_superuser_loses_its_password_last() -> None:
    assert scripts() == ["postgres-init.sql", "roles.sql", "postgres-superuser.sql"]


def test_metabase_has_a_database_of_its_own_and_no_other(server: EmbeddedPostgres) -> None:
    role = "chm_metabase"
    with psycopg.connect(url(server, role, role)) as connection:
        connection.execute("CREATE TABLE setting (key text); INSERT INTO setting VALUES ('a')")
        (rights,) = connection.execute("SELECT ARRAY[rolsuper, rolcreatedb, rolcreaterole] FROM pg_roles"
                                       " WHERE rolname = current_user").fetchall()  # fmt: skip
    assert rights == ([False, False, False],)
    for database in ("chm", "chm_dagster"):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(url(server, database, role))
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(url(server, role))


def test_the_role_can_migrate_and_downgrade_its_own_database(server: EmbeddedPostgres) -> None:
    engine = make_engine(url(server, "chm"))
    schema.migrate(engine)
    assert schema.current(engine) == schema.head()
    schema.downgrade(engine, "base")
    schema.migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM runs")) == 0
    engine.dispose()


def test_the_owner_grants_the_dashboards_role_what_it_may_read(server: EmbeddedPostgres) -> None:
    engine = make_engine(url(server, "chm"))
    schema.migrate(engine)
    assert apply_roles(engine, {}) == [], "the script has taken away what only a superuser can"
    engine.dispose()
    with psycopg.connect(url(server, "chm", BI), autocommit=True) as connection:
        assert connection.execute("SELECT count(status) FROM run_details").fetchone() == (0,)
        connection.execute("SET default_transaction_read_only = off")
        for statement in ("SELECT payload FROM runs", "SELECT pg_advisory_lock(1)", "CREATE TEMP TABLE t ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url(server, "chm_dagster", BI))


@pytest.mark.parametrize("role", ["chm", "chm_dagster"])
def test_each_role_owns_its_database_alone_and_has_no_other_rights(server: EmbeddedPostgres, role: str) -> None:
    with psycopg.connect(url(server, role, role), autocommit=True) as connection:
        connection.execute("CREATE TABLE t ()")
        rights = (
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = %s"
        )
        assert connection.execute(rights, [role]).fetchone() == (False,) * 5
        for statement in ("CREATE ROLE other", "CREATE DATABASE other", "COPY t FROM PROGRAM 'true'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        connection.execute("DROP TABLE t")
    (other,) = {"chm", "chm_dagster"} - {role}
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url(server, other, role))


def test_the_entrypoint_hands_each_password_to_libpq_and_not_to_the_program(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    file = tmp_path / "pgpass"
    script = """
        import os, sys, psycopg
        assert not [name for name in os.environ if "PASSWORD" in name], "still in the environment"
        for url in sys.argv[1:]:
            psycopg.connect(url).close()
    """
    addresses = [without_password(server, role) for role in ROLE_PASSWORDS]
    command = [str(ROOT / "deploy/entrypoint.sh"), sys.executable, "-c", textwrap.dedent(script)]
    environment = {"PATH": os.defpath, "PGPASSFILE": str(file)}
    passwords = {word: PASSWORDS[role] for role, word in ROLE_PASSWORDS.items()}

    def start(own: dict[str, str], *urls: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *urls], capture_output=True, text=True, env={**environment, **own})

    done = start(passwords, *addresses)
    assert (done.returncode, done.stderr) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for (role, word), address in zip(ROLE_PASSWORDS.items(), addresses, strict=True):
        one = {word: PASSWORDS[role]}
        assert start(one, address).returncode == 0
        for other in set(addresses) - {address}:
            assert start(one, other).returncode != 0, "a service has only the passwords that it was given"


def test_a_wrong_password_and_a_superuser_without_one_are_rejected(server: EmbeddedPostgres) -> None:
    for user, password in (("chm", "wrong"), ("postgres", PASSWORDS["chm"])):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url(server, "chm", user, password))


def test_other_roles_cannot_connect(server: EmbeddedPostgres) -> None:
    with psycopg.connect(url(server, "chm"), autocommit=True) as connection:
        query = "SELECT datname FROM pg_database WHERE has_database_privilege('pg_monitor', datname, 'CONNECT') AND datname LIKE 'chm%'"
        assert connection.execute(query).fetchall() == []
