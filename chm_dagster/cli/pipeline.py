"""`chm pipeline`: clients' recurring jobs."""

from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import (
    AllOption,
    ClientArgument,
    ClientOption,
    EnvironmentOption,
    LimitOption,
    PipelineArgument,
    given,
    with_cleared,
)
from chm_dagster.cli.names import find_client, find_pipeline, first
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import Column
from chm_dagster.domain.inventory import Environment, Pipeline, PipelineType, Platform

app = typer.Typer(help="Clients' recurring jobs.", no_args_is_help=True)

_COLUMNS = (
    Column("key", "pipeline"),
    Column("name", elastic=True, rank=2),
    Column("platform"),
    Column("pipeline_type", "type", rank=4),
    Column("environment", "env", rank=3),
    Column("external_id", elastic=True, rank=1),
    Column("is_active", "active", rank=6),
    Column("synced_through", "synced", rank=5),
)

WHERE = f"Where it runs: {', '.join(Platform)}."
WHAT_FOR = f"What it is for: {', '.join(PipelineType)}."
ExternalId = Annotated[
    str | None, typer.Option("--external-id", help="Its id at the partner; without one it is not ingested.")
]
Connection = Annotated[
    str | None, typer.Option("--connection", help="The partner connection that tells of it, if not the default one.")
]
Description = Annotated[str | None, typer.Option("--description", help="A text for people.")]
Cron = Annotated[
    str | None,
    typer.Option("--schedule-cron", help="When it is expected to run, such as '0 6 * * 1-5'."),
]
Timezone = Annotated[
    str | None,
    typer.Option("--schedule-timezone", help="The cron's zone, such as Europe/Berlin; UTC if left out."),
]
Grace = Annotated[int | None, typer.Option("--grace-minutes", metavar="N", help="How late a run may be.")]
MaxRuntime = Annotated[int | None, typer.Option("--max-runtime-minutes", metavar="N", help="How long a run may take.")]
EnvironmentField = Annotated[
    Environment | None, typer.Option("--environment", help="Where it runs; prod if never told.")
]


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
    """List pipelines by client and slug, the active ones unless told otherwise."""
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
def create(
    client: ClientArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pipeline's name, such as 'Daily orders'.")],
    platform: Annotated[Platform, typer.Option("--platform", metavar="PLATFORM", help=WHERE)],
    pipeline_type: Annotated[PipelineType, typer.Option("--type", metavar="TYPE", help=WHAT_FOR)],
    slug: Annotated[
        str | None, typer.Option("--slug", help="The readable key that stays; made from the name if left out.")
    ] = None,
    external_id: ExternalId = None,
    connection: Connection = None,
    environment: EnvironmentField = None,
    description: Description = None,
    schedule_cron: Cron = None,
    schedule_timezone: Timezone = None,
    grace_minutes: Grace = None,
    max_runtime_minutes: MaxRuntime = None,
    form: FormatOption = None,
) -> None:
    """Add a pipeline to a client."""
    fields = given(
        name=name,
        platform=platform,
        pipeline_type=pipeline_type,
        slug=slug,
        external_id=external_id,
        connection=connection,
        environment=environment,
        description=description,
        schedule_cron=schedule_cron,
        schedule_timezone=schedule_timezone,
        grace_minutes=grace_minutes,
        max_runtime_minutes=max_runtime_minutes,
    )
    with open_warehouse() as warehouse:
        new = warehouse.pipelines.create(find_client(warehouse, client).id, fields)
    fed = "" if new.external_id else "; without an external id its runs are recorded, imported or pinged"
    answer(f"created pipeline {new.key}{fed}", _row(new), form)


@app.command()
def update(
    pipeline: PipelineArgument,
    name: Annotated[str | None, typer.Option("--name", help="The new name; the slug stays.")] = None,
    platform: Annotated[Platform | None, typer.Option("--platform", metavar="PLATFORM", help=WHERE)] = None,
    pipeline_type: Annotated[PipelineType | None, typer.Option("--type", metavar="TYPE", help=WHAT_FOR)] = None,
    external_id: ExternalId = None,
    connection: Connection = None,
    environment: EnvironmentField = None,
    description: Description = None,
    schedule_cron: Cron = None,
    schedule_timezone: Timezone = None,
    grace_minutes: Grace = None,
    max_runtime_minutes: MaxRuntime = None,
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="FIELD", help="Empty this field, such as description; may be repeated."),
    ] = None,
    form: FormatOption = None,
) -> None:
    """Change what is given; everything else stays."""
    changes = given(
        name=name,
        platform=platform,
        pipeline_type=pipeline_type,
        external_id=external_id,
        connection=connection,
        environment=environment,
        description=description,
        schedule_cron=schedule_cron,
        schedule_timezone=schedule_timezone,
        grace_minutes=grace_minutes,
        max_runtime_minutes=max_runtime_minutes,
    )
    _change(pipeline, with_cleared(changes, clear or ()), form)


@app.command()
def disable(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Ingest a pipeline no longer and leave it out of all that is true now; its history stays."""
    _change(pipeline, {"is_active": False}, form, "disabled")


@app.command()
def enable(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Bring a disabled pipeline back."""
    _change(pipeline, {"is_active": True}, form, "enabled")


def _change(ref: str, changes: dict[str, Any], form: Format | None, done: str = "updated") -> None:
    with open_warehouse() as warehouse:
        before = find_pipeline(warehouse, ref)
        after = warehouse.pipelines.update(before.id, changes)
    answer(f"{'unchanged:' if after == before else done} pipeline {after.key}", _row(after), form)


def _row(pipeline: Pipeline) -> dict[str, Any]:
    return as_row(pipeline, ("key", pipeline.key))
