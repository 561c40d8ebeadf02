"""`chm client`: the customers whose pipelines are monitored."""

from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import (
    AllOption,
    ClearOption,
    ClientArgument,
    Fields,
    LimitOption,
    field_options,
    find_client,
    first,
    read,
    with_cleared,
)
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, show, warn
from chm_dagster.domain.clients import Client, ClientChanges, NewClient
from chm_dagster.installation import open_warehouse
from chm_dagster.presentation.columns import Column
from chm_dagster.warehouse.warehouse import Warehouse

app = typer.Typer(help="Customers whose pipelines are monitored.", no_args_is_help=True)

_COLUMNS = (
    Column("slug"),
    Column("name", elastic=True),
    Column("is_active", "active", rank=1),
    Column("created_at", "created", rank=2),
)


@app.command("list")
def list_(everything: AllOption = False, limit: LimitOption = None, form: FormatOption = None) -> None:
    """List clients by slug, the active ones by default."""
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
@field_options(NewClient, leave_out=("name",))
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The customer's name, such as 'Acme GmbH'.")],
    fields: Fields,
    form: FormatOption = None,
) -> None:
    """Add a client."""
    with open_warehouse() as warehouse:
        new = warehouse.clients.create(read(NewClient, {"name": name, **fields}))
        _warn_of_lookalikes(warehouse, new)
    answer(f"created client {new.slug}", as_row(new), form)


@app.command()
@field_options(ClientChanges)
def update(client: ClientArgument, fields: Fields, clear: ClearOption = None, form: FormatOption = None) -> None:
    """Change the fields that are given. The slug of a renamed client stays."""
    _change(client, with_cleared(fields, clear or ()), form)


@app.command()
def disable(client: ClientArgument, form: FormatOption = None) -> None:
    """Stop ingesting a client's pipelines and hide them; their history stays."""
    _change(client, {"is_active": False}, form, "disabled")


@app.command()
def enable(client: ClientArgument, form: FormatOption = None) -> None:
    """Enable a disabled client again."""
    _change(client, {"is_active": True}, form, "enabled")


def _change(ref: str, changes: dict[str, Any], form: Format | None, done: str = "updated") -> None:
    with open_warehouse() as warehouse:
        before = find_client(warehouse, ref)
        after = warehouse.clients.update(before.id, read(ClientChanges, changes))
        if after.name != before.name:
            _warn_of_lookalikes(warehouse, after)
    answer(f"{'unchanged:' if after == before else done} client {after.slug}", as_row(after), form)


def _warn_of_lookalikes(warehouse: Warehouse, client: Client) -> None:
    for other in warehouse.clients.lookalikes(client):
        warn(other.lookalike_warning)
