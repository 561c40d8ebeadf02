"""`chm lineage`: OpenLineage events whose job the inventory lacks, or lacked when they came."""

import typer

from chm_dagster.cli.output import Format, FormatOption, chosen, console, show
from chm_dagster.cli.stack import load_settings, open_warehouse
from chm_dagster.cli.tables import Column
from chm_dagster.ingestion.lineage import Shelf, jobs
from chm_dagster.ingestion.lineage import replay as take_in

app = typer.Typer(help="OpenLineage events that wait for their pipeline.", no_args_is_help=True)

_COLUMNS = (
    Column("namespace", elastic=True),
    Column("job", elastic=True),
    Column("events"),
    Column("last_event", "last event", rank=1),
)


@app.command("list")
def list_(form: FormatOption = None) -> None:
    """List the jobs that sent events and are in no inventory, those heard last first.

    To watch one, add a pipeline with the job as its external id and `openlineage:NAMESPACE` as its connection.
    """
    show(jobs(_shelf()), form, columns=_COLUMNS)


@app.command()
def replay(form: FormatOption = None) -> None:
    """Take all kept events in again, for pipelines that were added since. Twice changes nothing more."""
    with open_warehouse() as warehouse:
        counts = take_in(warehouse.engine, _shelf())
    if chosen(form) is not Format.TABLE:
        show(counts, form)
        return
    said = ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
    console.print(f"{sum(counts.values())} events: {said}" if counts else "no events are kept", highlight=False)


def _shelf() -> Shelf:
    return Shelf(load_settings().home / "lineage")
