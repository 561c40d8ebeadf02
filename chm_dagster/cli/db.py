"""`chm migrate` and `chm db`: the database itself."""

import sys

import typer

from chm_dagster.cli.output import errors
from chm_dagster.cli.stack import DAGSTER_DATABASE, DATABASE, keep_marker, load_settings, running_stack
from chm_dagster.errors import ConfigError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine

app = typer.Typer(help="The database that CHM uses.", no_args_is_help=True)


def migrate() -> None:
    """Bring the database to this release's newest migration."""
    with running_stack(load_settings()) as stack:
        engine = make_engine(stack.database_url)
        before = schema.current(engine)
        schema.migrate(engine)
        after = schema.current(engine)
        engine.dispose()
    errors.print(f"already at revision {after}" if before == after else f"migrated from {before or 'empty'} to {after}")


@app.command()
def url(
    dagster: bool = typer.Option(False, "--dagster", help="Dagster's own database instead of CHM's."),
) -> None:
    """Print the address of the database in use, with its password: for psql and the like, not for a chat."""
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
        raise ConfigError("CHM_DATABASE_URL is set: that server is yours to start")
    EmbeddedPostgres(settings.home).start()
    keep_marker(settings).touch()
    errors.print("the embedded Postgres runs; `chm db stop` ends it")


@app.command()
def stop() -> None:
    """Stop the embedded Postgres."""
    settings = load_settings()
    keep_marker(settings).unlink(missing_ok=True)
    EmbeddedPostgres(settings.home).stop()
    errors.print("the embedded Postgres is stopped")
