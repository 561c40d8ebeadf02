"""Real parts for every test: one Postgres server per session, one migrated database per test."""

import logging
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine

# The same examples in every run: a change is not refused for a failure that it did not cause. To look for new ones:
# pytest --hypothesis-profile=explore. A failure prints what repeats it.
settings.register_profile(
    "chm",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile("explore", settings.get_profile("chm"), derandomize=False)
settings.load_profile("chm")

PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of servers on this machine: without it, each httpx client loads all certificates."""
_numbers = count(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A background job of a shell ignores Ctrl-C, and so would every process that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables of the developer's shell must not affect the tests."""
    for name in list(os.environ):
        if name.startswith(("CHM_", "DAGSTER_", "PG")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def all_logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every log record, including those of the HTTP libraries."""
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "hpack"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A running server."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("chm"))
    server.start()
    _hurry(server)
    server.ensure_database("template_chm")
    engine = make_engine(server.url("template_chm"))
    schema.migrate(engine)
    engine.dispose()
    yield server
    server.stop()


def _hurry(server: EmbeddedPostgres) -> None:
    """Test data need not survive a crash, and creating a database per test mostly waits for the disk.

    Tests about crashes start their own servers (chm_dagster_tests/local).
    """
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database without any table."""
    yield from _database(postgres, "template0")


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> bool:
    """True if the test is marked to have a database of its own; the others share one, which is faster."""
    return request.node.get_closest_marker("alone") is not None


@pytest.fixture
def database_url(request: pytest.FixtureRequest, postgres: EmbeddedPostgres, alone: bool) -> Iterator[str]:
    """A migrated, empty database."""
    if alone:
        yield from _database(postgres, "template_chm")
        return
    shared: sa.Engine = request.getfixturevalue("shared_engine")
    before = _schema(emptied(shared))
    yield request.getfixturevalue("shared_database_url")
    if _schema(shared) != before:
        shared.dispose()
        _create_shared(postgres)
        pytest.fail("it changed the schema of the database that tests share; mark it with `alone`")


@pytest.fixture
def engine(request: pytest.FixtureRequest, database_url: str, alone: bool) -> Iterator[sa.Engine]:
    """An engine on a migrated, empty database."""
    if not alone:
        yield request.getfixturevalue("shared_engine")
        return
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def shared_database_url(postgres: EmbeddedPostgres) -> str:
    """A migrated database for tests that leave its schema as it is. It is emptied before each."""
    _create_shared(postgres)
    return postgres.url("test_shared")


@pytest.fixture(scope="session")
def shared_engine(shared_database_url: str) -> Iterator[sa.Engine]:
    engine = make_engine(shared_database_url)
    yield engine
    engine.dispose()


def _create_shared(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS test_shared WITH (FORCE)")
        connection.execute("CREATE DATABASE test_shared TEMPLATE template_chm")


def emptied(engine: sa.Engine) -> sa.Engine:
    """The engine, on a database that has nothing in it any more."""
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '20s'"))
        for table in ("alert_rules", "runs", "pipelines", "clients"):
            connection.execute(sa.text(f"DELETE FROM {table}"))
    return engine


def _schema(engine: sa.Engine) -> tuple[object, ...]:
    """What changes with the schema or the rights of a database."""
    with engine.connect() as connection:
        return tuple(
            connection.execute(
                sa.text(
                    "SELECT (SELECT sum(hashtext(c::text)) FROM pg_constraint AS c WHERE connamespace = n.oid),"
                    " (SELECT sum(hashtext(concat(relname, relkind, relacl))) FROM pg_class WHERE relnamespace = n.oid),"
                    " (SELECT sum(hashtext(concat(proname, prosrc, proacl))) FROM pg_proc WHERE pronamespace = n.oid),"
                    " (SELECT count(*) FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid"
                    " WHERE relnamespace = n.oid), (SELECT count(*) FROM pg_trigger),"
                    " (SELECT count(*) FROM pg_db_role_setting)"
                    " FROM pg_namespace AS n WHERE nspname = 'public'"
                )
            ).one()
        )


@pytest.fixture
def landing_root(tmp_path: Path) -> Path:
    return tmp_path / "landing"


def _database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("making a certificate needs openssl")
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", pem, "-out", f"{pem}.crt"], check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + Path(f"{pem}.crt").read_bytes())
    return pem


@pytest.fixture
def server_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS whose certificate this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
