"""`chm inventory`: the whole inventory as one file. `chm purge`: remove clients, pipelines or sandbox data for good."""

import getpass
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import orjson
import typer
from rich.text import Text

from chm_dagster.cli.arguments import ClientArgument, ExitZeroOption, PipelineArgument, find_client, find_pipeline
from chm_dagster.cli.output import Format, FormatOption, answer, chosen, console, errors, say, show, warn
from chm_dagster.errors import ConfigError, InputError, NotFound
from chm_dagster.ingestion import inventory_apply, inventory_file
from chm_dagster.ingestion.inventory_apply import ApplyReport, Change
from chm_dagster.installation import load_settings, open_warehouse
from chm_dagster.local.postgres_setup import open_log
from chm_dagster.presentation.rendering import harmless
from chm_dagster.warehouse.inventory.pipelines import plan, purge
from chm_dagster.warehouse.paging import every
from chm_dagster.warehouse.warehouse import Warehouse

app = typer.Typer(help="The whole inventory as one YAML file: export, edit, apply.", no_args_is_help=True)


@app.command()
def export(
    file: Annotated[Path, typer.Option("--file", "-f", help="Where to write it; - is standard output.")] = Path("-"),
    full: Annotated[bool, typer.Option("--full", help="Include empty fields and defaults.")] = False,
    form: Annotated[Format | None, typer.Option("--format", help="yaml, or json, which `apply` reads as well.")] = None,
) -> None:
    """Write all clients, pipelines and rules as YAML, including disabled ones. Applying the file changes nothing.

    Empty fields and defaults are left out; --full writes them as well, so that applying the file later
    restores every field of everything in it.
    """
    with open_warehouse() as warehouse:
        content = inventory_apply.export(warehouse, full=full)
    if form is Format.JSON and str(file) == "-":
        show(content, form)
        return
    text = inventory_file.dump(content)
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError("--file", f"cannot write {file} ({error.strerror})") from None
    errors.print(f"wrote {len(content['clients'])} clients to {file}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="The YAML file; - is standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    exit_zero: ExitZeroOption = False,
    form: FormatOption = None,
) -> None:
    """Create what is new in the file and update what differs, in one transaction: all of it or nothing.

    Clients and pipelines are matched by slug, rules by type, channel and destination. A field that is left out stays as
    it is, null clears it, `is_active: false` disables. Nothing is ever deleted: what is not in the file stays.
    --dry-run exits with 1 if the file and the inventory differ, unless --exit-zero. Start with `chm inventory export`.
    """
    wanted = inventory_file.parse(_text(file))
    with open_warehouse() as warehouse:
        report = inventory_apply.apply(warehouse, wanted, dry_run=dry_run)
    for warning in report.warnings:
        warn(warning)
    _show(report, dry_run, form)
    raise typer.Exit(1 if dry_run and report.changes and not exit_zero else 0)


def _text(file: Path) -> str:
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError("--file", f"cannot read {file} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError("--file", f"{file} is not UTF-8; save it as UTF-8") from None


def _show(report: ApplyReport, dry_run: bool, form: Format | None) -> None:
    counts = {"created": report.count("create"), "updated": report.count("update"), "unchanged": report.unchanged}
    if chosen(form) is not Format.TABLE:
        show({"dry_run": dry_run, **counts, "changes": [_plain(change) for change in report.changes]}, form)
        return
    for change in report.changes:
        console.print(_heading(change), soft_wrap=True)
        for name, (old, new) in change.fields.items():
            console.print(_field(name, old, new, change.action), soft_wrap=True)
    what = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"{'dry run, nothing was written: ' if dry_run else ''}{what}", "dim" if dry_run else "green")


def _plain(change: Change) -> dict[str, Any]:
    return {
        "action": change.action,
        "kind": change.kind,
        "key": change.key,
        "line": change.line,
        "fields": {name: {"old": old, "new": new} for name, (old, new) in change.fields.items()},
    }


def _heading(change: Change) -> Text:
    sign, style = ("+", "bold green") if change.action == "create" else ("~", "bold yellow")
    return Text(f"{sign} {change.kind} {change.key}", style=style)


def _field(name: str, old: Any, new: Any, action: str) -> Text:
    value = f"{_spelled(old)} -> {_spelled(new)}" if action == "update" else _spelled(new)
    return Text(f"    {name}: {value}")


def _spelled(value: Any) -> str:
    if value is None:
        return "(empty)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = harmless(" ".join(str(value).split()))
    return text if len(text) <= 100 else text[:99] + "…"


purge_app = typer.Typer(
    help="Permanently remove clients, pipelines or the sandbox's data, with their runs and rules.", no_args_is_help=True
)
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
LOG = "purge.log"


@purge_app.command()
def client(client: ClientArgument, yes: YesOption = False, form: FormatOption = None) -> None:
    """Remove a client, its pipelines, all their runs, and all their rules. `chm client disable` keeps the history."""
    with open_warehouse() as warehouse:
        found = find_client(warehouse, client)
        _purge(warehouse, f"client {found.slug}", [found.id], [], yes, form)


@purge_app.command()
def pipeline(pipeline: PipelineArgument, yes: YesOption = False, form: FormatOption = None) -> None:
    """Remove a pipeline, all its runs, and its rules. `chm pipeline disable` keeps the history."""
    with open_warehouse() as warehouse:
        found = find_pipeline(warehouse, pipeline)
        _purge(warehouse, f"pipeline {found.key}", [], [found.id], yes, form)


@purge_app.command()
def sandbox(yes: YesOption = False, form: FormatOption = None) -> None:
    """Remove everything that `chm up` added for the sandbox partner. Clients with pipelines of your own are kept."""
    with open_warehouse() as warehouse:
        clients, pipelines = _of_sandbox(warehouse)
        if not pipelines:
            raise NotFound("there are no pipelines of the sandbox")
        _purge(warehouse, "the sandbox's data", clients, pipelines, yes, form)


def _of_sandbox(warehouse: Warehouse) -> tuple[list[UUID], list[UUID]]:
    from chm_dagster.cli.up import sandbox_pipelines

    seeded = {(new.client_slug, new.slug, new.external_id) for new in sandbox_pipelines()}
    ours: dict[UUID, UUID] = {}
    others: set[UUID] = set()
    for one in every(warehouse.pipelines.list, active=None):
        if (one.client_slug, one.slug, one.external_id) in seeded and one.connection is None:
            ours[one.id] = one.client_id
        else:
            others.add(one.client_id)
    return sorted(set(ours.values()) - others), list(ours)


def _purge(
    warehouse: Warehouse,
    what: str,
    clients: Collection[UUID],
    pipelines: Collection[UUID],
    yes: bool,
    form: Format | None,
) -> None:
    planned = plan(warehouse.engine, clients, pipelines).counts()
    sentence = ", ".join(f"{count} {noun}" for noun, count in planned.items())
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("--yes", f"required, because nobody can be asked here; this would remove {sentence}")
        errors.print(f"This removes {what} for good: {sentence}.", markup=False, highlight=False)
        typer.confirm("Continue?", abort=True, err=True)
    path = load_settings().home / "logs" / LOG
    try:
        log = open_log(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; nothing was removed") from None
    with log:
        removed = purge(warehouse.engine, clients, pipelines).counts()
        line = {"time": datetime.now(UTC), "user": getpass.getuser(), "removed": what, **removed}
        log.write(orjson.dumps(line) + b"\n")
    done = ", ".join(f"{count} {noun}" for noun, count in removed.items())
    answer(f"removed {what}: {done} (logged in {path})", line, form)
