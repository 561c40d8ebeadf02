"""What the services of compose do, as the roles that compose gives them, on a server that its scripts have set up."""

import socket
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.cli.up import add_sandbox_rules, sandbox_pipelines
from chm_dagster.errors import Busy
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.partners.sandbox.server import create_app
from chm_dagster.partners.sandbox.world import World
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.inventory.pipelines import add_pipelines
from chm_dagster.warehouse.ledger.syncs import ledger_writer
from chm_dagster.warehouse.roles import APP
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.conftest import PLAIN_HTTP
from chm_dagster_tests.deploy.compose import ROOT, load, services
from chm_dagster_tests.deploy.conftest import url
from chm_dagster_tests.deploy.services import TOKEN, Services, is_ready, wait_for


@pytest.fixture(scope="module")
def compose(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The services after `migrate` has ended, with the sandbox as the partner."""
    compose = Services(server, tmp_path_factory.mktemp("services"))
    done = compose.run("migrate", *services(load())["migrate"]["command"])
    assert done.returncode == 0, done.stderr
    with serve_in_thread(create_app(World(7, 24), TOKEN)) as partner:
        compose.more = {"CHM_PARTNER_API_BASE_URL": partner, "CHM_PARTNER_API_TOKEN": TOKEN}
        yield compose


@pytest.fixture(scope="module")
def app(server: EmbeddedPostgres, compose: Services) -> Iterator[sa.Engine]:
    engine = make_engine(url(server, "chm", APP))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def ingested(compose: Services, app: sa.Engine) -> Services:
    """After an ingestion of the sandbox partner."""
    add_pipelines(app, sandbox_pipelines())
    add_sandbox_rules(Warehouse(app))
    report = compose.chm("ingest")
    assert report["totals"]["inserted"] > 1000 and report["totals"]["failed_pipelines"] == 0
    return compose


def test_services_are_chm_app_and_only_migrate_is_the_owner(compose: Services) -> None:
    ask = "import os, psycopg; print(psycopg.connect(os.environ['CHM_DATABASE_URL']).info.user)"
    for service in ("api", "code"):
        assert compose.run(service, "python", "-c", ask).stdout == "chm_app\n"
    assert compose.run("migrate", "python", "-c", ask).stdout == "chm\n"
    for service in ("webserver", "daemon"):
        assert "CHM_DATABASE_URL" not in compose.environment(service)
        assert "CHM_APP_POSTGRES_PASSWORD" not in compose.environment(service)


@pytest.mark.slow
def test_it_ingests_evaluates_delivers_and_reports(ingested: Services) -> None:
    assert ingested.chm("ingest")["totals"]["failed_pipelines"] == 0, "a second time, on runs that are there"
    evaluated = ingested.run("code", "chm", "alert", "run", "--format", "json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert ingested.chm("alert", "inbox"), "messages have arrived"
    client = ingested.chm("client", "list")[0]["slug"]
    built = ingested.run("code", "chm", "report", "build", client, "--output", "report.pdf")
    assert built.returncode == 0, built.stderr
    for command in (["status"], ["doctor"], ["failing"]):
        done = ingested.run("code", "chm", *command)
        assert done.returncode in (0, 1) and "permission denied" not in done.stdout + done.stderr, done.stderr
        assert "Traceback" not in done.stderr and done.stdout


@pytest.mark.slow
def test_dagster_evaluates_and_delivers_in_the_code_location(ingested: Services) -> None:
    chosen = ["--select", "alert_episodes*", "--module-name", "chm_dagster.definitions"]
    done = ingested.run("code", "dagster", "asset", "materialize", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RUN_SUCCESS" in done.stdout + done.stderr


def test_the_inventory_is_edited_and_purged(ingested: Services, tmp_path: Path) -> None:
    ingested.chm("client", "create", "Bolt")
    ingested.chm("pipeline", "create", "bolt", "Orders", "--platform", "custom", "--type", "ingestion")
    ingested.chm("run", "record", "bolt/orders", "--status", "success", "--run", "r1")
    exported = ingested.run("code", "chm", "inventory", "export")
    assert exported.returncode == 0 and "bolt" in exported.stdout
    removed = ingested.chm("purge", "client", "bolt", "--yes")
    assert (removed["clients"], removed["pipelines"], removed["runs"]) == (1, 1, 1)


@pytest.fixture
def api(ingested: Services) -> Iterator[httpx.Client]:
    """The service `api`, as its container starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ingested.start("api", *services(load())["api"]["command"], CHM_API_PORT=str(port)) as process:
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False,
                                  verify=PLAIN_HTTP, timeout=60)  # fmt: skip
            wait_for(lambda: process.poll() is None and is_ready(client))
            yield client
        finally:
            process.terminate()
            process.communicate(timeout=60)


def test_the_api_reads_and_edits(api: httpx.Client) -> None:
    made = api.post("/api/v1/clients", json={"name": "Café Nord"})
    assert made.status_code == 201, made.text
    slug = made.json()["slug"]
    assert api.patch(f"/api/v1/clients/{slug}", json={"name": "Nord"}).status_code == 200
    pipeline = {"client_id": slug, "name": "Feed", "platform": "custom", "pipeline_type": "ingestion"}
    added = api.post("/api/v1/pipelines", json=pipeline)
    assert added.status_code == 201, added.text
    rule = {"client_id": slug, "rule_type": "on_failure", "channel": "inbox", "destination": "operator"}
    kept = api.post("/api/v1/alert_rules", json=rule)
    assert kept.status_code == 201, kept.text
    assert api.delete(f"/api/v1/alert_rules/{kept.json()['id']}").status_code == 204
    pages = ("/", "/flaky", "/reports", "/errors", "/metrics", "/api/v1/health/latest", "/api/v1/clients")
    assert {page: api.get(page).status_code for page in pages} == dict.fromkeys(pages, 200)


DENIED = (
    "CREATE TABLE t (a int)",
    "ALTER TABLE runs ADD COLUMN a int",
    "DROP TABLE alert_rules",
    "CREATE INDEX ON runs (status)",
    "TRUNCATE runs CASCADE",
    "UPDATE alembic_version SET version_num = '0001'",
    "CREATE SCHEMA s",
    "CREATE ROLE other",
    "ALTER ROLE chm_bi PASSWORD 'x'",
    "GRANT chm TO chm_app",
    "SET ROLE chm",
    "CREATE DATABASE other",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY clients TO PROGRAM 'true'",
)


@pytest.mark.parametrize("statement", DENIED)
def test_chm_app_cannot(app: sa.Engine, statement: str) -> None:
    # CREATE DATABASE is no statement of a transaction.
    with app.connect() as opened, pytest.raises(sa.exc.DBAPIError) as refused:
        opened.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text(statement))
    assert isinstance(refused.value.orig, psycopg.errors.InsufficientPrivilege)


@pytest.mark.parametrize("database", ["chm_dagster", "chm_metabase"])
def test_chm_app_reaches_no_other_database(server: EmbeddedPostgres, compose: Services, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url(server, database, APP))


def test_a_claim_that_is_taken_is_busy_and_not_forbidden(app: sa.Engine) -> None:
    with ledger_writer(app, "default"), pytest.raises(Busy), ledger_writer(app, "default", stopped_after=timedelta(0)):
        pass


def test_a_service_that_would_have_to_migrate_says_who_can(server: EmbeddedPostgres, compose: Services) -> None:
    owner = make_engine(url(server, "chm"))
    schema.downgrade(owner, "-1")
    try:
        refused = compose.run("code", "chm", "migrate")
        assert refused.returncode == 2, refused.stderr
        (line,) = refused.stderr.splitlines()
        assert line == "chm: chm_app may not change the schema: migrate as the owner of the database"
    finally:
        schema.migrate(owner)
        owner.dispose()


def test_a_service_without_its_password_says_so(compose: Services) -> None:
    words = (str(ROOT / "deploy/entrypoint.sh"), "chm", "client", "list")
    own = compose.environment("code")
    del own["CHM_APP_POSTGRES_PASSWORD"]
    done = subprocess.run(words, env=own, capture_output=True, text=True)
    assert done.returncode == 2 and "no password supplied" in done.stderr and "Traceback" not in done.stderr
