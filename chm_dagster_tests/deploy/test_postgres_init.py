"""deploy/postgres-init.sql, run by psql on a server of its own, as the Postgres image runs it on first start."""

import os
import subprocess
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from chm_dagster.local.postgres import EmbeddedPostgres, _programs
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster_tests.deploy.compose import ROOT

PASSWORD = 'it\'s a $ecret: with \\ and "quotes" / @'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that the script has set up."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("compose"))
    with server.running():
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            # The image gives the superuser the very password that the script then hands to the role.
            connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(PASSWORD))
        script = ROOT / "deploy" / "postgres-init.sql"
        psql = [str(_programs(18) / "psql"), "-v", "ON_ERROR_STOP=1", "-X", "-f", str(script)]
        environment = {"PATH": os.defpath, "POSTGRES_PASSWORD": PASSWORD}
        address = url(server, "postgres", "postgres")
        done = subprocess.run([*psql, address], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        yield server


def url(server: EmbeddedPostgres, database: str, user: str = "chm", password: str = PASSWORD) -> str:
    _, rest = server.url(database).split("@", 1)
    return f"postgresql://{user}:{quote(password, safe='')}@{rest}"


def test_the_role_can_migrate_and_downgrade_its_own_database(server: EmbeddedPostgres) -> None:
    engine = make_engine(url(server, "chm"))
    schema.migrate(engine)
    assert schema.current(engine) == schema.head()
    schema.downgrade(engine, "base")
    schema.migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM runs")) == 0
    engine.dispose()


def test_the_role_has_dagsters_database_too_and_no_right_beyond_the_two(server: EmbeddedPostgres) -> None:
    with psycopg.connect(url(server, "chm_dagster"), autocommit=True) as connection:
        connection.execute("CREATE TABLE t ()")
        rights = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = 'chm'"
        assert connection.execute(rights).fetchone() == (False,) * 5
        for statement in ("CREATE ROLE other", "CREATE DATABASE other", "COPY t FROM PROGRAM 'true'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_a_wrong_password_and_the_superuser_without_one_are_turned_away(server: EmbeddedPostgres) -> None:
    for user, password in (("chm", "wrong"), ("postgres", PASSWORD)):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url(server, "chm", user, password))


def test_others_may_not_even_connect(server: EmbeddedPostgres) -> None:
    with psycopg.connect(url(server, "chm"), autocommit=True) as connection:
        query = "SELECT datname FROM pg_database WHERE has_database_privilege('pg_monitor', datname, 'CONNECT') AND datname LIKE 'chm%'"
        assert connection.execute(query).fetchall() == []
