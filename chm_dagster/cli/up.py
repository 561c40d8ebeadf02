"""Installing and running: `chm init`, `chm up`, `chm dev`, `chm migrate` and `chm db`."""

import contextlib
import shutil
import subprocess
import sys
from typing import Any

import typer

from chm_dagster import settings as names
from chm_dagster.cli.ingest import run, show_report
from chm_dagster.cli.output import Format, console, errors
from chm_dagster.domain.fields import slugify
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.errors import ConfigError
from chm_dagster.installation import (
    DAGSTER_DATABASE,
    DATABASE,
    Installation,
    configuration,
    configured,
    embedded,
    folder,
    keep_marker,
    load_settings,
    running,
)
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.processes import STACK_ID
from chm_dagster.local.supervisor import Child, Supervisor
from chm_dagster.partners.sandbox import World
from chm_dagster.serving import answers_as, reached, require_free_ports
from chm_dagster.settings import Settings
from chm_dagster.shipped import shipped
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines, ingested_pipelines, is_empty
from chm_dagster.warehouse.ledger.due_times import refresh_all
from chm_dagster.warehouse.roles import APP, BI, apply_roles
from chm_dagster.warehouse.warehouse import Warehouse

SANDBOX_SEED, SANDBOX_PIPELINES = 7, 24


def up() -> None:
    """Start everything, ingest once, and serve until Ctrl-C."""
    settings = load_settings()
    with Supervisor(settings.home, say=_say) as supervisor:
        installation = _start_database(settings, supervisor)
        warehouse = installation.warehouse()
        _migrate(warehouse.engine, "embedded" if settings.database_url is None else "yours")
        if installation.sandbox:
            _start_sandbox(installation, warehouse.engine, supervisor)
        installation.prepare_dagster_home()
        _ingest_once(installation, warehouse.engine)
        warehouse.close()
        _start_api(installation, supervisor)
        _start_dagster(installation, supervisor)
        _welcome(installation)
        code = supervisor.wait()
        _say("stopping")
    raise typer.Exit(code)


def dev() -> None:
    """Start the database and the sandbox partner, and run `dagster dev` until Ctrl-C.

    `dagster dev` reloads code on request, and prints what it does. Unlike `chm up` it serves its UI without a guard.
    """
    settings = load_settings()
    with Supervisor(settings.home, say=_say) as supervisor:
        installation = _start_database(settings, supervisor)
        warehouse = installation.warehouse()
        _migrate(warehouse.engine, "embedded" if settings.database_url is None else "yours")
        if installation.sandbox:
            _start_sandbox(installation, warehouse.engine, supervisor)
        warehouse.close()
        installation.prepare_dagster_home()
        options = ("-w", str(configuration("workspace.yaml")), "-h", settings.ui_host, "-p", str(settings.ui_port))
        command = [sys.executable, "-m", "dagster", "dev", *options]
        # In a folder without an `.env`, which `dagster dev` would read.
        environment = {**installation.environment(), STACK_ID: supervisor.stack}
        process = subprocess.Popen(command, env=environment, cwd=installation.dagster_home)  # noqa: S603 - no shell
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
    raise typer.Exit(process.returncode or 0)


def _say(line: str) -> None:
    console.print(f"chm: {line}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _start_database(settings: Settings, supervisor: Supervisor) -> Installation:
    _require_ports(settings, configured(settings).sandbox)
    configuration("workspace.yaml")  # a mistake shows before anything starts
    if settings.database_url is not None:
        return configured(settings)
    postgres = EmbeddedPostgres(settings.home)
    supervisor.start_postgres(postgres)
    return embedded(settings, postgres)


def _require_ports(settings: Settings, sandbox: bool) -> None:
    ports = {
        names.UI_PORT: (settings.ui_host, settings.ui_port),
        names.API_PORT: (settings.api_host, settings.api_port),
    }
    if sandbox:
        ports[names.SANDBOX_PORT] = ("127.0.0.1", settings.sandbox_port)
    require_free_ports(ports)


def _migrate(engine: Engine, whose: str) -> None:
    before = schema.current(engine)
    schema.migrate(engine)
    after = schema.current(engine)
    if before is not None and before != after:
        _say(f"database migrated from revision {before} to {after}")
    _say(f"database ready ({whose})")


def _start_sandbox(installation: Installation, engine: Engine, supervisor: Supervisor) -> None:
    port = installation.settings.sandbox_port
    command = (sys.executable, "-m", "chm_dagster.partners.sandbox", "--token-env", names.PARTNER_API_TOKEN)
    options = ("--port", str(port), "--seed", str(SANDBOX_SEED), "--pipelines", str(SANDBOX_PIPELINES))
    ready = answers_as(supervisor.instance, port, "/")
    supervisor.start(Child("sandbox", (*command, *options), installation.environment(), ready=ready))
    _say(f"sandbox partner on http://127.0.0.1:{port}: no partner of your own is configured")
    if is_empty(engine):
        _say(f"inventory was empty: added {add_pipelines(engine, sandbox_pipelines())} pipelines of the sandbox")
        _say(f"and {add_sandbox_rules(Warehouse(engine))} alert rules that notify the inbox: chm alert inbox")


def sandbox_pipelines() -> list[NewPipeline]:
    """The pipelines that an empty inventory gets for the sandbox partner."""
    world = World(SANDBOX_SEED, SANDBOX_PIPELINES)
    return [
        NewPipeline(
            client_name=p.client_name,
            client_slug=slugify(p.client_name),
            name=p.name,
            slug=slugify(p.name),
            platform=p.platform,
            pipeline_type=p.pipeline_type,
            external_id=p.external_id,
        )
        for p in world.pipelines()
    ]


def add_sandbox_rules(warehouse: Warehouse) -> int:
    """Alert rules of all clients, which notify the local inbox; how many there are."""
    rules: tuple[dict[str, Any], ...] = (
        {"rule_type": RuleType.ON_FAILURE},
        {"rule_type": RuleType.RUNNING_TOO_LONG, "window_minutes": 60},
    )
    clients = warehouse.clients.list().items
    for client in clients:
        for rule in rules:
            receiver = {"channel": Channel.INBOX, "destination": "operator"}
            warehouse.rules.create({"client_id": client.id, **rule, **receiver})
    return len(rules) * len(clients)


def _ingest_once(installation: Installation, engine: Engine) -> None:
    keys = [pipeline.key for pipeline in ingested_pipelines(engine)]
    if not keys:
        _say("no active pipeline has an external id: nothing to ingest yet")
        return
    _say(f"ingesting {len(keys)} pipelines")
    # On a server of our own, the lock on the home says that nobody else runs here.
    alone = installation.settings.database_url is None
    report, _ = run(installation, keys, everything=True, since=None, alone=alone)
    show_report(report, Format.TABLE)


def _start_api(installation: Installation, supervisor: Supervisor) -> None:
    settings = installation.settings
    ready = answers_as(supervisor.instance, settings.api_port, "/healthz", reached(settings.api_host))
    command = (sys.executable, "-m", "chm_dagster.api")
    supervisor.start(Child("api", command, installation.environment(), ready=ready))


def _start_dagster(installation: Installation, supervisor: Supervisor) -> None:
    settings, workspace = installation.settings, ("-w", str(configuration("workspace.yaml")))
    # As `dagster dev` starts it. Its default log format is for terminals.
    daemon = (sys.executable, "-m", "dagster._daemon", "run", "--log-format", "json", *workspace)
    webserver = (sys.executable, "-m", "chm_dagster.ui", *workspace)
    # Dagster's programs read a file `.env` from where they run; there is none in this folder.
    home, environment = installation.dagster_home, installation.environment()
    supervisor.start(Child("daemon", daemon, environment, cwd=home))
    ready = answers_as(supervisor.instance, settings.ui_port, "/healthz", reached(settings.ui_host))
    supervisor.start(Child("webserver", webserver, environment, ready=ready, ready_seconds=120, cwd=home))


def _welcome(installation: Installation) -> None:
    settings = installation.settings
    token = f" (with the token in {names.API_TOKEN})" if settings.api_token else ""
    ui, api = _url(settings.ui_host, settings.ui_port), _url(settings.api_host, settings.api_port)
    console.print()
    console.print(f"  Dagster UI       {ui}{token}", style="bold green", highlight=False)
    console.print(f"  Board            {api}{token}", style="bold green", highlight=False)
    console.print(f"  API              {api}/docs{token}", highlight=False)
    if installation.sandbox:
        console.print(f"  Sandbox partner  {installation.partner_base_url}", highlight=False)
        console.print(f"  Alerts           {installation.inbox().page}", highlight=False, markup=False)
    console.print(f"  Sync             {settings.sync_cron} (UTC)", highlight=False, markup=False)
    console.print(f"  Logs             {installation.log_folder}", highlight=False, markup=False)
    console.print("  Ctrl-C stops all of it.\n")


def _url(host: str, port: int) -> str:
    host = reached(host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


FILES = {
    "dagster.yaml": "dagster.yaml",
    "workspace.yaml": "workspace.yaml",
    "partners.yaml": "contracts/partners.example.yaml",
    "partners.schema.json": "contracts/partners.schema.json",
    "docker-compose.yml": "docker-compose.yml",
    "requirements.lock": "requirements.lock",
    ".dockerignore": ".dockerignore",
    "deploy/Dockerfile": "deploy/Dockerfile",
    "deploy/compose.env.example": "deploy/compose.env.example",
    "deploy/entrypoint.sh": "deploy/entrypoint.sh",
    "deploy/postgres-init.sql": "deploy/postgres-init.sql",
    "deploy/postgres-superuser.sql": "deploy/postgres-superuser.sql",
    "deploy/roles.sql": "deploy/roles.sql",
    "deploy/workspace.compose.yaml": "deploy/workspace.compose.yaml",
    **{
        name: name
        for name in (
            "dashboards/grafana/dashboards/chm-client.json",
            "dashboards/grafana/dashboards/chm-operations.json",
            "dashboards/grafana/dashboards/chm-overview.json",
            "dashboards/grafana/dashboards/chm-pipeline.json",
            "dashboards/grafana/provisioning/alerting/chm.yaml",
            "dashboards/grafana/provisioning/dashboards/chm.yaml",
            "dashboards/grafana/provisioning/datasources/chm.yaml",
        )
    },
}
"""Each file that is written, and the shipped one that it begins as."""

_NEXT = """
Next:
  chm up                                    start with the sandbox partner
  export CHM_PARTNERS_FILE=partners.yaml    use partners of your own, after editing that file
  docker-compose.yml                        containers: put CHM's wheel into dist/, then follow the file's first lines
Edits to dagster.yaml and workspace.yaml take effect at the next start."""


def init() -> None:
    """Write dagster.yaml, workspace.yaml, partners.yaml and a compose file to start from. Existing files are kept."""
    top = folder()
    for name, source in FILES.items():
        target = top / name
        if target.exists() or target.is_symlink():
            _show_file(f"kept     {name}")
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as written, shipped(source).open("rb") as original:
                shutil.copyfileobj(original, written)
            shutil.copymode(shipped(source), target)
        except OSError as error:
            raise ConfigError(f"cannot write {target}: {error.strerror}") from None
        _show_file(f"written  {name}")
    _show_file(_NEXT)


def _show_file(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(help="The database that CHM uses.", no_args_is_help=True)


def migrate(
    roles: bool = typer.Option(
        False, "--roles", help="Create the roles chm_app and chm_bi as well, and grant what each may do."
    ),
) -> None:
    """Upgrade the database to this release."""
    with running() as installation:
        warehouse = installation.warehouse()
        before = schema.current(warehouse.engine)
        schema.migrate(warehouse.engine)
        refresh_all(warehouse.engine)
        after = schema.current(warehouse.engine)
        left_open = _set_roles(warehouse.engine, installation.settings) if roles else []
        warehouse.close()
    errors.print(f"already at revision {after}" if before == after else f"migrated from {before or 'empty'} to {after}")
    if roles:
        errors.print("the roles chm_app and chm_bi have their rights")
    if left_open:
        errors.print(
            f"chm_bi can still call {', '.join(left_open)}: run deploy/roles.sql once as a superuser", soft_wrap=True
        )
        raise typer.Exit(1)


def _set_roles(engine: Engine, settings: Settings) -> list[str]:
    given = {APP: settings.app_postgres_password, BI: settings.bi_postgres_password}
    return apply_roles(engine, {role: password for role, password in given.items() if password})


@app.command()
def url(
    dagster: bool = typer.Option(False, "--dagster", help="Dagster's own database instead of CHM's."),
) -> None:
    """Print the URL of the database in use, including its password, for psql and similar programs."""
    settings = load_settings()
    given = settings.dagster_database_url if dagster else settings.database_url
    if given is None:
        given = EmbeddedPostgres(settings.home).url(DAGSTER_DATABASE if dagster else DATABASE)
    sys.stdout.write(given + "\n")


@app.command()
def start() -> None:
    """Start the embedded Postgres and leave it running, for `dagster dev` or psql without `chm up`."""
    settings = load_settings()
    if settings.database_url is not None:
        raise ConfigError("CHM_DATABASE_URL is set: start that server yourself")
    EmbeddedPostgres(settings.home).start()
    keep_marker(settings).touch()
    errors.print("the embedded Postgres is running; stop it with `chm db stop`")


@app.command()
def stop() -> None:
    """Stop the embedded Postgres."""
    settings = load_settings()
    keep_marker(settings).unlink(missing_ok=True)
    EmbeddedPostgres(settings.home).stop()
    errors.print("the embedded Postgres has stopped")
