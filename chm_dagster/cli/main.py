"""The command `chm`.

Exit codes: 0 all is well; 1 it ran and found something that needs attention (a pipeline fails or could not be read, a
gate failed, a row was rejected, a dry run would change something); 2 it could not run (an argument or a setting is
invalid, something does not exist, the database is unreachable); 130 Ctrl-C.
"""

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import Abort, TyperException

from chm_dagster.cli.output import complain, console
from chm_dagster.errors import ChmError, InputError


@dataclasses.dataclass(frozen=True, slots=True)
class Deferred:
    """Where a command is (`module:name` of a function or a Typer app), and its text in the list of commands."""

    place: str
    help: str
    panel: str

    def load(self, name: str) -> Any:
        """The command itself."""
        module, _, attribute = self.place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        alone = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name, cls=Group)
            return _reflowed(typer.main.get_group(alone).commands[name])
        alone.command(name)(found)
        return _reflowed(typer.main.get_command(alone))


def _reflowed(command: Any) -> Any:
    """The command, with its help re-wrapped to the width of the terminal."""
    if command.help:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help)
    for inner in getattr(command, "commands", {}).values():
        _reflowed(inner)
    return command


class Group(TyperGroup):
    """A group that explains an unknown command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name. Raises InputError if there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            # Imported here because it loads Pydantic.
            from chm_dagster.domain.validation import did_you_mean, shown

            hint = did_you_mean(name, self.list_commands(ctx)) or f"see `{ctx.command_path} --help`"
            raise InputError(shown(name), f"no such command; {hint}")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group that knows the name and help of its commands, and imports a command when it is called."""

    deferred: ClassVar[Mapping[str, Deferred]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, command in self.deferred.items():
            self.add_command(TyperCommand(name, help=command.help, rich_help_panel=command.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.deferred:
            command = self.deferred[name].load(name)
        return name, command, rest


_HERE = "chm_dagster.cli"
COMMANDS = {
    "up": Deferred(f"{_HERE}.up:up", "Start everything, ingest once, and serve until Ctrl-C.", "Run"),
    "status": Deferred(f"{_HERE}.health:status", "All clients at a glance.", "Health"),
    "attention": Deferred(f"{_HERE}.health:attention", "What needs attention. Exit code 1 if anything does.", "Health"),
    "failing": Deferred(f"{_HERE}.health:failing", "What is failing now. Exit code 1 if anything is.", "Health"),
    "changed": Deferred(f"{_HERE}.health:changed", "What broke, was fixed or is new since a time.", "Health"),
    "errors": Deferred(f"{_HERE}.health:errors", "Which errors made runs fail, and at how many clients.", "Health"),
    "flaky": Deferred(f"{_HERE}.health:flaky", "Pipelines that flip between success and failure.", "Health"),
    "latest": Deferred(f"{_HERE}.health:latest", "The latest run of every pipeline.", "Health"),
    "alert": Deferred(f"{_HERE}.alert:app", "What alert rules have found. Exit code 1 if anything.", "Health"),
    "report": Deferred(f"{_HERE}.report:app", "What a client is owed each week or month.", "Health"),
    "client": Deferred(f"{_HERE}.client:app", "Customers whose pipelines are monitored.", "Inventory"),
    "pipeline": Deferred(f"{_HERE}.pipeline:app", "Clients' recurring jobs.", "Inventory"),
    "rule": Deferred(f"{_HERE}.rule:app", "Alert rules: who is notified about what.", "Inventory"),
    "maintenance": Deferred(
        f"{_HERE}.maintenance:app", "Maintenance windows: planned times in which nobody is notified.", "Inventory"
    ),
    "inventory": Deferred(
        f"{_HERE}.inventory:app", "The whole inventory as one YAML file: export, edit, apply.", "Inventory"
    ),
    "run": Deferred(f"{_HERE}.run:app", "Runs of pipelines: look up, record, import.", "Runs"),
    "ingest": Deferred(
        f"{_HERE}.ingest:ingest", "Sync now: read runs from the partners and update the ledger.", "Runs"
    ),
    "partner": Deferred(f"{_HERE}.partner:app", "Connections to partners.", "Runs"),
    "lineage": Deferred(f"{_HERE}.run:lineage_app", "OpenLineage events that match no pipeline yet.", "Runs"),
    "mcp": Deferred(f"{_HERE}.mcp:mcp", "Serve the Model Context Protocol to an assistant.", "Run"),
    "dashboards": Deferred(f"{_HERE}.dashboards:app", "CHM's dashboards in Metabase.", "Run"),
    "init": Deferred(f"{_HERE}.up:init", "Write starter configuration files.", "Run"),
    "dev": Deferred(f"{_HERE}.up:dev", "Run `dagster dev` on this installation's databases.", "Run"),
    "purge": Deferred(
        f"{_HERE}.inventory:purge_app", "Remove clients, pipelines or sandbox data for good.", "Inventory"
    ),
    "migrate": Deferred(f"{_HERE}.up:migrate", "Upgrade the database to this release.", "Run"),
    "doctor": Deferred(f"{_HERE}.health:doctor", "Check CHM itself. Exit code 1 if there is a problem.", "Run"),
    "db": Deferred(f"{_HERE}.up:app", "The database that CHM uses.", "Run"),
}
"""Every command, imported only when it is called: a quick command must not load what `chm up` needs."""


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
    "Exit codes: 0 all is well; 1 found something that needs attention, such as a failing pipeline; 2 could not run; "
    "130 Ctrl-C. Clients are named by slug or id, pipelines as client/pipeline or by id. "
    "The output is a table on a terminal and JSON in a pipe; --format overrides this."
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
    """Client Health Monitor: shows which clients' data pipelines are healthy."""


def main() -> None:
    """Run a command. Every error becomes one message without a traceback."""
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
        # Imported here because it loads Pydantic.
        from chm_dagster.cli.output import explain

        complain(explain(error))
        code = 2
    except (Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        # The reader of the pipe is gone. Python flushes stdout again at exit and would fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
