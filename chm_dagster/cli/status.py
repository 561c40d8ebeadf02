"""`chm status`: one look at everything."""

from datetime import UTC, datetime, timedelta

from chm_dagster.cli.health import CHANGED, FAILING, show_health
from chm_dagster.cli.output import Format, FormatOption, chosen, console, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import Column

_CLIENTS = (
    Column("client_name", "client", elastic=True),
    Column("health"),
    Column("pipelines"),
    Column("failing"),
    Column("running", rank=1),
    Column("success", rank=2),
    Column("failed", rank=2),
    Column("canceled", rank=4),
    Column("skipped", rank=4),
    Column("never_ran", rank=4),
    Column("latest_run_at", "latest run", rank=3),
)


def status(form: FormatOption = None) -> None:
    """How each client stands, what is failing now, and what changed in the last 24 hours."""
    everywhere = {"client_slug": None, "environment": None}
    with open_warehouse() as warehouse:
        clients = warehouse.ask("latest_status_by_client", **everywhere)
        failing = warehouse.ask("failing_now", **everywhere)
        changed = warehouse.ask("changed_since", since=datetime.now(UTC) - timedelta(days=1), **everywhere)
    if chosen(form) is not Format.TABLE:
        show({"clients": clients, "failing_now": failing, "changed_since_yesterday": changed}, form)
        return
    show(clients, Format.TABLE, "Clients", _CLIENTS)
    console.print()
    show_health(failing, Format.TABLE, FAILING, "Failing now")
    console.print()
    show_health(changed, Format.TABLE, CHANGED, "Changed in the last 24 hours")
