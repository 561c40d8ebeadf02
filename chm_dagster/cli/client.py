"""`chm client`: the customers whose pipelines are watched."""

from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import AllOption, ClientArgument, LimitOption, given, with_cleared
from chm_dagster.cli.names import find_client, first
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import Column

app = typer.Typer(help="Customers whose pipelines are watched.", no_args_is_help=True)

_COLUMNS = (
    Column("slug"),
    Column("name", elastic=True),
    Column("is_active", "active", rank=1),
    Column("created_at", "created", rank=2),
)


@app.command("list")
def list_(everything: AllOption = False, limit: LimitOption = None, form: FormatOption = None) -> None:
    """List clients by slug, the active ones unless told otherwise."""
    with open_warehouse() as warehouse:
        active = None if everything else True
        rows = [as_row(client) for client in first(limit, warehouse.clients.list, active=active)]
    show(rows, form, columns=_COLUMNS)


@app.command()
def get(client: ClientArgument, form: FormatOption = None) -> None:
    """Show one client."""
    with open_warehouse() as warehouse:
        show(as_row(find_client(warehouse, client)), form)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The customer's name, such as 'Acme GmbH'.")],
    slug: Annotated[
        str | None, typer.Option("--slug", help="The readable key that stays; made from the name if left out.")
    ] = None,
    form: FormatOption = None,
) -> None:
    """Add a client."""
    with open_warehouse() as warehouse:
        new = warehouse.clients.create(name, slug)
    answer(f"created client {new.slug}", as_row(new), form)


@app.command()
def update(
    client: ClientArgument,
    name: Annotated[str | None, typer.Option("--name", help="The new name; the slug stays.")] = None,
    form: FormatOption = None,
) -> None:
    """Rename a client."""
    _change(client, with_cleared(given(name=name), ()), form)


@app.command()
def disable(client: ClientArgument, form: FormatOption = None) -> None:
    """Leave a client and its pipelines out of ingestion and of all that is true now; their history stays."""
    _change(client, {"is_active": False}, form, "disabled")


@app.command()
def enable(client: ClientArgument, form: FormatOption = None) -> None:
    """Bring a disabled client back."""
    _change(client, {"is_active": True}, form, "enabled")


def _change(ref: str, changes: dict[str, Any], form: Format | None, done: str = "updated") -> None:
    with open_warehouse() as warehouse:
        before = find_client(warehouse, ref)
        after = warehouse.clients.update(before.id, changes)
    answer(f"{'unchanged:' if after == before else done} client {after.slug}", as_row(after), form)
