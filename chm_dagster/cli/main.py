"""The command `chm`.

Exit codes: 0 all is well; 1 it ran, and found what somebody should look at (a pipeline fails or could not be read, a
gate is closed, a row was rejected, a dry run would change something); 2 it could not run (an argument or a setting is
wrong, the thing does not exist, the database does not answer); 130 Ctrl-C.
"""

import os
import sys
from importlib.metadata import version

import typer
from typer.exceptions import Abort, TyperException

from chm_dagster.cli.lazy import Deferred, LazyGroup
from chm_dagster.cli.output import complain, console
from chm_dagster.cli.usage import explain
from chm_dagster.errors import ChmError, InputError

_HERE = "chm_dagster.cli"
COMMANDS = {
    "up": Deferred(f"{_HERE}.up:up", "Start everything, ingest once, and serve until Ctrl-C.", "Run"),
    "status": Deferred(f"{_HERE}.status:status", "How all clients stand, in one look.", "Health"),
    "failing": Deferred(f"{_HERE}.health:failing", "What is failing now. Exit code 1 if anything is.", "Health"),
    "changed": Deferred(f"{_HERE}.health:changed", "What broke, was fixed or is new since a time.", "Health"),
    "flaky": Deferred(f"{_HERE}.health:flaky", "Pipelines that keep changing between success and failure.", "Health"),
    "latest": Deferred(f"{_HERE}.health:latest", "The latest run of every pipeline.", "Health"),
    "client": Deferred(f"{_HERE}.client:app", "Customers whose pipelines are watched.", "Inventory"),
    "pipeline": Deferred(f"{_HERE}.pipeline:app", "Clients' recurring jobs.", "Inventory"),
    "rule": Deferred(f"{_HERE}.rule:app", "Alert rules: when to tell whom.", "Inventory"),
    "inventory": Deferred(f"{_HERE}.inventory:app", "All of it as one YAML file: export, edit, apply.", "Inventory"),
    "run": Deferred(f"{_HERE}.run:app", "Runs of pipelines: look them up, record them, import them.", "Runs"),
    "ingest": Deferred(f"{_HERE}.ingest:ingest", "Ask the partners for news now.", "Runs"),
    "partner": Deferred(f"{_HERE}.partner:app", "Connections to partners.", "Runs"),
    "lineage": Deferred(f"{_HERE}.lineage:app", "OpenLineage events that wait for their pipeline.", "Runs"),
    "migrate": Deferred(f"{_HERE}.db:migrate", "Bring the database to this release's newest migration.", "Run"),
    "db": Deferred(f"{_HERE}.db:app", "The database that CHM uses.", "Run"),
}
"""Each command, loaded only when it is called: a quick question must not wait for what `chm up` needs."""


class Root(LazyGroup):
    """All commands of `chm`."""

    deferred = COMMANDS


app = typer.Typer(
    name="chm",
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EPILOG = (
    "Exit codes: 0 all is well; 1 found what somebody should look at; 2 could not run; 130 Ctrl-C. "
    "Clients are named by slug, pipelines as client/pipeline, both also by id. "
    "Answers are tables on a terminal and JSON in a pipe; --format says otherwise."
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        console.print(f"chm {version('chm-dagster')}", highlight=False)
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def _root(
    _version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_tell_version, is_eager=True
    ),
) -> None:
    """Client Health Monitor: whose data pipelines are healthy."""


def main() -> None:
    """Run a command. Whatever is wrong with it becomes one message without a traceback."""
    try:
        code = app(standalone_mode=False, prog_name="chm")
        sys.stdout.flush()
    except InputError as error:
        for field, issue in error.details:
            complain(f"{field}: {issue}")
        code = 2
    except ChmError as error:
        complain(str(error))
        code = 2
    except TyperException as error:
        complain(explain(error))
        code = 2
    except (Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        # Whoever read the answer has gone. Python flushes once more at the end, and must not stumble over it there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
