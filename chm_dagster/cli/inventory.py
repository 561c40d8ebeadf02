"""`chm inventory`: all of it as one YAML file."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from chm_dagster.cli.arguments import ExitZeroOption
from chm_dagster.cli.output import Format, FormatOption, chosen, console, errors, say, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import harmless
from chm_dagster.errors import InputError
from chm_dagster.ingestion import inventory_apply, inventory_file
from chm_dagster.ingestion.inventory_apply import ApplyReport, Change

app = typer.Typer(help="All of the inventory as one YAML file: export, edit, apply.", no_args_is_help=True)


@app.command()
def export(
    file: Annotated[Path, typer.Option("--file", "-f", help="Where to write it; - is standard output.")] = Path("-"),
    full: Annotated[bool, typer.Option("--full", help="Also fields that are empty or as they begin.")] = False,
    form: Annotated[Format | None, typer.Option("--format", help="yaml, or json, which `apply` reads as well.")] = None,
) -> None:
    """Write all clients, pipelines and rules as YAML, the disabled ones included: `apply` finds nothing to do for it.

    Fields that are empty or as they begin are left out; --full writes them, too, so that applying the file later
    brings back every field of what is in it.
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
    """Create what is new in the file and change what is different, in one transaction: all of it or nothing.

    Clients and pipelines go by their slugs, rules by type, channel and destination. A field that is left out stays as
    it is, null empties it, `is_active: false` disables. Nothing is ever deleted: what is not in the file stays.
    --dry-run exits with 1 if the file and the inventory differ, unless --exit-zero. Begin with `chm inventory export`.
    """
    wanted = inventory_file.parse(_text(file))
    with open_warehouse() as warehouse:
        report = inventory_apply.apply(warehouse, wanted, rehearsal=dry_run)
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
