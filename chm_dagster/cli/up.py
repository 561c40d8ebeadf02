"""`chm up`: everything, from an empty folder to a served UI with ingested runs."""

import sys
from pathlib import Path

import typer

from chm_dagster import settings as names
from chm_dagster.cli.ingest import run, show_report
from chm_dagster.cli.output import Format, console
from chm_dagster.cli.stack import ROOT, Stack, embedded_stack, given_stack, load_settings, python
from chm_dagster.domain.inventory import slugify
from chm_dagster.local.ports import port_answers, require_free_ports
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.supervisor import Child, Supervisor
from chm_dagster.partners.sandbox import World
from chm_dagster.settings import Settings
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.inventory import NewPipeline, add_pipelines, ingested_pipelines, is_empty

SANDBOX_SEED, SANDBOX_PIPELINES = 7, 24


def up() -> None:
    """Start everything, ingest once, and serve until Ctrl-C."""
    settings = load_settings()
    with Supervisor(settings.home, say=_say) as supervisor:
        _require_ports(settings)
        stack = _start_database(settings, supervisor)
        engine = make_engine(stack.database_url)
        schema.migrate(engine)
        _say(f"database ready ({'embedded' if settings.database_url is None else 'yours'})")
        if stack.sandbox:
            _start_sandbox(stack, engine, supervisor)
        stack.prepare_dagster_home()
        _ingest_once(stack, engine)
        engine.dispose()
        _start_api(stack, supervisor)
        _start_dagster(stack, supervisor)
        _welcome(stack)
        code = supervisor.wait()
        _say("stopping")
    raise typer.Exit(code)


def _say(line: str) -> None:
    console.print(f"chm: {line}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _require_ports(settings: Settings) -> None:
    ports = {names.UI_PORT: settings.ui_port, names.API_PORT: settings.api_port}
    if settings.partner_api_base_url is None and settings.partners_file is None:
        ports[names.SANDBOX_PORT] = settings.sandbox_port
    require_free_ports(ports)


def _start_database(settings: Settings, supervisor: Supervisor) -> Stack:
    if settings.database_url is not None:
        return given_stack(settings)
    postgres = EmbeddedPostgres(settings.home)
    supervisor.start_postgres(postgres)
    return embedded_stack(settings, postgres)


def _start_sandbox(stack: Stack, engine: Engine, supervisor: Supervisor) -> None:
    port = stack.settings.sandbox_port
    arguments = ("--port", str(port), "--seed", str(SANDBOX_SEED), "--pipelines", str(SANDBOX_PIPELINES))
    command = python("-m", "chm_dagster.partners.sandbox", "--token-env", names.PARTNER_API_TOKEN, *arguments)
    supervisor.start(Child("sandbox", tuple(command), stack.environment(), ready=port_answers(port)))
    _say(f"sandbox partner on http://127.0.0.1:{port}: no partner of your own is configured")
    if is_empty(engine):
        _say(f"inventory was empty: added {_seed(engine)} pipelines of the sandbox")


def _seed(engine: Engine) -> int:
    world = World(SANDBOX_SEED, SANDBOX_PIPELINES)
    return add_pipelines(
        engine,
        [
            NewPipeline(
                p.client_name,
                slugify(p.client_name),
                p.name,
                slugify(p.name),
                p.platform,
                p.pipeline_type,
                p.external_id,
            )
            for p in world.pipelines()
        ],
    )


def _ingest_once(stack: Stack, engine: Engine) -> None:
    keys = [pipeline.key for pipeline in ingested_pipelines(engine)]
    if not keys:
        _say("no active pipeline has an external id: nothing to ingest yet")
        return
    _say(f"ingesting {len(keys)} pipelines")
    # On a server of our own, the lock on the home says that nobody else runs here.
    report, _ = run(stack, keys, everything=True, since=None, alone=stack.settings.database_url is None)
    show_report(report, Format.TABLE)


def _start_api(stack: Stack, supervisor: Supervisor) -> None:
    command = python("-m", "chm_dagster.api")
    ready = port_answers(stack.settings.api_port, _reached(stack.settings.api_host))
    supervisor.start(Child("api", tuple(command), stack.environment(), ready=ready))


def _reached(host: str) -> str:
    """Where on this machine a server is reached that listens on this address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read here, not listened on


def _start_dagster(stack: Stack, supervisor: Supervisor) -> None:
    workspace = ("-w", str(ROOT / "workspace.yaml"))
    port = stack.settings.ui_port
    programs = Path(sys.executable).parent
    webserver = [str(programs / "dagster-webserver"), "-h", "127.0.0.1", "-p", str(port), *workspace]
    daemon = [str(programs / "dagster-daemon"), "run", *workspace]
    # Not the repository: the `.env` there belongs to `dagster dev` and would win over this environment.
    home = stack.dagster_home
    supervisor.start(Child("daemon", tuple(daemon), stack.environment(), cwd=home))
    supervisor.start(
        Child("webserver", tuple(webserver), stack.environment(), ready=port_answers(port), ready_seconds=120, cwd=home)
    )


def _welcome(stack: Stack) -> None:
    console.print()
    console.print(f"  Dagster UI       http://127.0.0.1:{stack.settings.ui_port}", style="bold green", highlight=False)
    host, guarded = _reached(stack.settings.api_host), f" (with the token in {names.API_TOKEN})"
    address = f"http://{f'[{host}]' if ':' in host else host}:{stack.settings.api_port}/docs"
    console.print(f"  API              {address}{guarded if stack.settings.api_token else ''}", highlight=False)
    if stack.sandbox:
        console.print(f"  Sandbox partner  {stack.partner_base_url}", highlight=False)
    console.print(f"  Sweep            {stack.settings.sweep_cron} (UTC)", highlight=False, markup=False)
    console.print(f"  Logs             {stack.settings.home / 'logs'}", highlight=False, markup=False)
    console.print("  Ctrl-C stops all of it.\n")
