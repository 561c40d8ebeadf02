"""`chm maintenance`: planned times in which nobody is notified."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import (
    complete_client,
    complete_pipeline,
    find_client,
    find_pipeline,
    given,
    parse_time,
)
from chm_dagster.cli.output import FormatOption, answer, show
from chm_dagster.domain.clients import Client
from chm_dagster.domain.maintenance import state_of, timing
from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.errors import InputError, NotFound
from chm_dagster.installation import open_warehouse
from chm_dagster.presentation.columns import Column
from chm_dagster.warehouse.inventory.maintenance import add_window, remove_window
from chm_dagster.warehouse.paging import every
from chm_dagster.warehouse.warehouse import Warehouse

app = typer.Typer(help="Maintenance windows: planned times in which nobody is notified.", no_args_is_help=True)

_COLUMNS = (
    Column("about"),
    Column("number"),
    Column("state"),
    Column("when", elastic=True),
    Column("reason", elastic=True, rank=1),
)


def _complete(incomplete: str) -> list[str]:
    return [*complete_client(incomplete), *complete_pipeline(incomplete)]


OwnerArgument = Annotated[
    str,
    typer.Argument(metavar="CLIENT[/PIPELINE]", help="All of a client's pipelines, or one.", autocompletion=_complete),
]


@app.command()
def add(
    owner: OwnerArgument,
    start: Annotated[str | None, typer.Option("--start", metavar="TIME", help="One-off: begins; default: now.")] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="TIME", help="One-off: ends: a time, or 4h.")] = None,
    cron: Annotated[str | None, typer.Option("--cron", metavar="CRON", help="Recurring: opens then.")] = None,
    minutes: Annotated[int | None, typer.Option("--minutes", metavar="N", help="Recurring: lasts this long.")] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="ZONE", help="The zone of the other options; default: UTC.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for people.")] = None,
    form: FormatOption = None,
) -> None:
    """Add a window: --end, or --cron and --minutes. What is still open when it ends is announced then."""
    now = datetime.now(UTC)
    window: Any = given(cron=cron, minutes=minutes, reason=reason)
    if cron is not None or minutes is not None:
        window |= given(timezone=timezone, start=start, end=end)
    elif end is None:
        raise InputError("--end", "is required; or --cron and --minutes, for a window that recurs")
    else:
        window["start"] = parse_time(start or "now", "--start", now, ahead=True, zone=timezone or "UTC")
        window["end"] = parse_time(end, "--end", now, ahead=True, zone=timezone or "UTC")
    with open_warehouse() as warehouse:
        changed = add_window(warehouse.engine, _find(warehouse, owner), window)
    *_, row = _rows(changed, now)
    answer(f"added maintenance window {row['number']} of {row['about']}: {row['when']}", row, form)


@app.command("list")
def list_(
    owner: Annotated[
        str | None, typer.Argument(metavar="[CLIENT[/PIPELINE]]", help="Only its windows.", autocompletion=_complete)
    ] = None,
    form: FormatOption = None,
) -> None:
    """List the windows of all clients and pipelines, or of one."""
    now = datetime.now(UTC)
    with open_warehouse() as warehouse:
        if owner is not None:
            owners: list[Client | Pipeline] = [_find(warehouse, owner)]
        else:
            owners = [*every(warehouse.clients.list, active=None), *every(warehouse.pipelines.list, active=None)]
    show([row for one in owners for row in _rows(one, now)], form, columns=_COLUMNS)


@app.command()
def remove(
    owner: OwnerArgument,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Its number in the list.")],
    form: FormatOption = None,
) -> None:
    """Remove a window. If it is open, it ends now."""
    with open_warehouse() as warehouse:
        found = _find(warehouse, owner)
        rows = [row for row in _rows(found, datetime.now(UTC)) if row["number"] == number]
        if not rows:
            raise NotFound(f"no maintenance window {number} of {owner}; see `chm maintenance list {owner}`")
        remove_window(warehouse.engine, found, found.maintenance[number - 1])
    answer(f"removed maintenance window {number} of {rows[0]['about']}: {rows[0]['when']}", rows[0], form)


def _find(warehouse: Warehouse, ref: str) -> Client | Pipeline:
    return find_pipeline(warehouse, ref) if "/" in ref else find_client(warehouse, ref)


def _rows(owner: Client | Pipeline, now: datetime) -> Iterator[dict[str, Any]]:
    about = owner.slug if isinstance(owner, Client) else owner.key
    for number, window in enumerate(owner.maintenance, 1):
        said = {"about": about, "number": number, "state": state_of(window, now), "when": timing(window)}
        yield {**said, "reason": window.get("reason"), "window": dict(window)}
