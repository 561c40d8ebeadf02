"""`chm pipeline`: clients' recurring jobs."""

from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import (
    AllOption,
    ClearOption,
    ClientArgument,
    ClientOption,
    EnvironmentOption,
    Fields,
    LimitOption,
    PipelineArgument,
    field_options,
    find_client,
    find_pipeline,
    first,
    given,
    read,
    with_cleared,
)
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, say, show, warn
from chm_dagster.domain.pipelines import (
    MEANING,
    NewPipelineOfClient,
    OldRuns,
    Pipeline,
    PipelineChanges,
    PipelineType,
    Platform,
)
from chm_dagster.errors import ConfigError
from chm_dagster.installation import configured, open_warehouse
from chm_dagster.presentation.columns import Column

app = typer.Typer(help="Clients' recurring jobs.", no_args_is_help=True)

_COLUMNS = (
    Column("key", "pipeline"),
    Column("name", elastic=True, rank=2),
    Column("platform"),
    Column("pipeline_type", "type", rank=4),
    Column("environment", "env", rank=3),
    Column("external_id", elastic=True, rank=1),
    Column("is_active", "active", rank=6),
    Column("observed_through", "synced", rank=5),
)
_FLAGS = {"pipeline_type": "--type"}


@app.command("list")
def list_(
    client: ClientOption = None,
    platform: Annotated[
        Platform | None, typer.Option("--platform", metavar="PLATFORM", help="Only this platform.")
    ] = None,
    pipeline_type: Annotated[
        PipelineType | None, typer.Option("--type", metavar="TYPE", help="Only this type.")
    ] = None,
    environment: EnvironmentOption = None,
    connection: Annotated[str | None, typer.Option("--connection", help="Only this connection.")] = None,
    everything: AllOption = False,
    limit: LimitOption = None,
    form: FormatOption = None,
) -> None:
    """List pipelines by client and slug, the active ones by default."""
    filters = given(platform=platform, pipeline_type=pipeline_type, environment=environment, connection=connection)
    with open_warehouse() as warehouse:
        if client is not None:
            filters["client"] = find_client(warehouse, client).id
        found = first(limit, warehouse.pipelines.list, active=None if everything else True, **filters)
        show([_row(pipeline) for pipeline in found], form, columns=_COLUMNS)


@app.command()
def get(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Show one pipeline."""
    with open_warehouse() as warehouse:
        show(_row(find_pipeline(warehouse, pipeline)), form)


@app.command()
@field_options(NewPipelineOfClient, flags=_FLAGS, leave_out=("name",))
def create(
    client: ClientArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pipeline's name, such as 'Daily orders'.")],
    fields: Fields,
    form: FormatOption = None,
) -> None:
    """Add a pipeline to a client."""
    with open_warehouse() as warehouse:
        new_fields = read(NewPipelineOfClient, {"name": name, **fields})
        new = warehouse.pipelines.create(find_client(warehouse, client).id, new_fields)
    _warn_of_unknown_connection(new)
    fed = "" if new.external_id else "; without an external id its runs are recorded, imported or pinged"
    answer(f"created pipeline {new.key}{fed}", _row(new), form)


@app.command()
@field_options(PipelineChanges, flags=_FLAGS)
def update(
    pipeline: PipelineArgument,
    fields: Fields,
    clear: ClearOption = None,
    runs: Annotated[
        OldRuns,
        typer.Option(
            "--runs", metavar="WHAT", help="Keep the existing runs, or remove them permanently: keep, remove."
        ),
    ] = OldRuns.KEEP,
    form: FormatOption = None,
) -> None:
    """Change the fields that are given.

    Another --external-id, --connection or --platform starts the history anew: the next sync reads all of it.
    """
    _change(pipeline, with_cleared(fields, clear or ()), form, runs=runs)


@app.command()
def disable(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Stop ingesting a pipeline and hide it; its history stays."""
    _change(pipeline, {"is_active": False}, form, "disabled")


@app.command()
def enable(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Enable a disabled pipeline again."""
    _change(pipeline, {"is_active": True}, form, "enabled")


def _change(
    ref: str, changes: dict[str, Any], form: Format | None, done: str = "updated", runs: OldRuns = OldRuns.KEEP
) -> None:
    with open_warehouse() as warehouse:
        before = find_pipeline(warehouse, ref)
        after = warehouse.pipelines.update(before.id, read(PipelineChanges, changes), runs=runs)
        known = None if runs is OldRuns.REMOVE else warehouse.runs.latest(before.id)
    if known is not None and any(getattr(before, name) != getattr(after, name) for name in MEANING):
        say(
            f"the runs of {after.key} known so far are kept; remove them with"
            f" `chm pipeline update {after.key} --runs remove` if they are not its own",
            "yellow",
        )
    if after.connection != before.connection:
        _warn_of_unknown_connection(after)
    answer(f"{'unchanged:' if after == before else done} pipeline {after.key}", _row(after), form)


def _warn_of_unknown_connection(pipeline: Pipeline) -> None:
    """It may be configured later, or on another machine; until then, nothing reads the pipeline."""
    if pipeline.connection is None:
        return
    from chm_dagster.partners.connections import partner_of

    try:
        partner_of(pipeline, configured().partners())
    except ConfigError as error:
        warn(str(error))


def _row(pipeline: Pipeline) -> dict[str, Any]:
    return as_row(pipeline, ("key", pipeline.key))
