"""`chm status`: one look at everything."""

from datetime import UTC, datetime, timedelta

import typer

from chm_dagster.cli.output import Format, chosen, console, show
from chm_dagster.cli.stack import load_settings, running_stack
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.contract import ask
from chm_dagster.warehouse.engine import make_engine


def status(form: Format | None = typer.Option(None, "--format", help="table, json or yaml.")) -> None:
    """How each client stands, what is failing now, and what changed in the last 24 hours."""
    with running_stack(load_settings()) as stack:
        engine = make_engine(stack.database_url)
        schema.require_current(engine)
        clients = ask(engine, "latest_status_by_client")
        failing = ask(engine, "failing_now")
        changed = ask(engine, "changed_since", since=datetime.now(UTC) - timedelta(days=1))
        engine.dispose()
    if chosen(form) is not Format.TABLE:
        show({"clients": clients, "failing_now": failing, "changed_since_yesterday": changed}, form)
        return
    show([_without(row, "client_slug") for row in clients], Format.TABLE, "Clients: latest status of their pipelines")
    console.print()
    show([_brief(row, _FAILING) for row in failing], Format.TABLE, "Failing now")
    console.print()
    show([_brief(row, _CHANGED) for row in changed], Format.TABLE, "Changed in the last 24 hours")


_FAILING = ("client_name", "pipeline_name", "platform", "failing_since", "failures", "last_success_at")
_CHANGED = ("change", "client_name", "pipeline_name", "status_then", "status_now", "started_at")


def _brief(row: dict[str, object], columns: tuple[str, ...]) -> dict[str, object]:
    return {name: row[name] for name in columns}


def _without(row: dict[str, object], column: str) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != column}
