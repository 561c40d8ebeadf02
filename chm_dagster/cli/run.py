"""`chm run`: look runs up, and tell of those that no partner tells of."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
import typer

from chm_dagster.cli.arguments import PipelineArgument, given
from chm_dagster.cli.moments import parse_moment
from chm_dagster.cli.names import find_pipeline, first
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, chosen, say, show
from chm_dagster.cli.run_import import import_
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import Column, Kind
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import InputError

app = typer.Typer(help="Runs of pipelines: look them up, record them, import them.", no_args_is_help=True)
app.command("import")(import_)

_COLUMNS = (
    Column("started_at", "started"),
    Column("status"),
    Column("duration_seconds", "took", kind=Kind.SECONDS),
    Column("rows_processed", "rows", rank=2),
    Column("external_run_id", "run", elastic=True),
    Column("why", elastic=True, rank=1),
)
_OUTCOMES = {
    "inserted": "recorded",
    "updated": "updated",
    "unchanged": "unchanged",
    "stale": "stale: the ledger knows better, and stays as it is",
}


@app.command("list")
def list_(
    pipeline: PipelineArgument,
    status: Annotated[RunStatus | None, typer.Option("--status", help="Only runs in this state.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Started at or after this time; 24h is a day ago.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Started before this time.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most this many.")] = 20,
    order: Annotated[Literal["asc", "desc"], typer.Option("--order", help="The oldest or the latest first.")] = "desc",
    form: FormatOption = None,
) -> None:
    """List runs of a pipeline, the latest first."""
    now = datetime.now(UTC)
    window = {
        "since": None if since is None else parse_moment(since, "--since", now),
        "until": None if until is None else parse_moment(until, "--until", now),
    }
    with open_warehouse() as warehouse:
        owner = find_pipeline(warehouse, pipeline).id
        asked = first(limit, warehouse.runs.list, pipeline_ref=owner, status=status, order=order, **window)
        rows = [as_row(run) for run in asked]
    if chosen(form) is Format.TABLE:
        rows = [{**row, "why": row["error_message"] or row["status_reason"]} for row in rows]
    show(rows, form, columns=_COLUMNS)


@app.command()
def latest(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Show the latest run of a pipeline; null in JSON if it never ran."""
    with open_warehouse() as warehouse:
        owner = find_pipeline(warehouse, pipeline)
        run = warehouse.runs.latest(owner.id)
    if run is None and chosen(form) is Format.TABLE:
        say(f"{owner.key} has never run")
    else:
        show(None if run is None else as_row(run), form)


@app.command()
def get(
    pipeline: PipelineArgument,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id at the partner.")],
    form: FormatOption = None,
) -> None:
    """Show one run, with what the partner said of it."""
    with open_warehouse() as warehouse:
        show(as_row(warehouse.runs.get(find_pipeline(warehouse, pipeline).id, run)), form)


@app.command()
def record(
    pipeline: PipelineArgument,
    status: Annotated[
        RunStatus, typer.Option("--status", metavar="STATUS", help=f"How it stands: {', '.join(RunStatus)}.")
    ],
    run: Annotated[str | None, typer.Option("--run", help="Its id; made up if left out.")] = None,
    started_at: Annotated[
        str | None, typer.Option("--started-at", metavar="TIME", help="Now if left out; 10m is ten minutes ago.")
    ] = None,
    finished_at: Annotated[
        str | None, typer.Option("--finished-at", metavar="TIME", help="Now if left out and the run is over.")
    ] = None,
    duration_seconds: Annotated[
        float | None,
        typer.Option("--duration-seconds", metavar="N", help="How long it took, in seconds, if its times do not tell."),
    ] = None,
    rows_processed: Annotated[
        int | None, typer.Option("--rows", metavar="N", help="How many rows it processed.")
    ] = None,
    error_message: Annotated[str | None, typer.Option("--error", help="Why it failed.")] = None,
    status_reason: Annotated[str | None, typer.Option("--status-reason", help="A word that says more.")] = None,
    source_url: Annotated[str | None, typer.Option("--url", help="A link to the run.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", metavar="N", help="Which try it is.")] = None,
    payload: Annotated[str | None, typer.Option("--payload", help="A JSON object to keep with it.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Send the same key again after a failure: one run.")
    ] = None,
    form: FormatOption = None,
) -> None:
    """Record a run by hand, or say more of one: what is not said again stays."""
    now = datetime.now(UTC)
    fields = given(
        status=status,
        external_run_id=run,
        started_at=None if started_at is None else parse_moment(started_at, "--started-at", now),
        finished_at=None if finished_at is None else parse_moment(finished_at, "--finished-at", now),
        duration_seconds=duration_seconds,
        rows_processed=rows_processed,
        error_message=error_message,
        status_reason=status_reason,
        source_url=source_url,
        attempt=attempt,
        payload=_object(payload),
    )
    with open_warehouse() as warehouse:
        owner = find_pipeline(warehouse, pipeline)
        known, outcome = warehouse.runs.record(owner.id, fields, idempotency_key=idempotency_key)
    sentence = f"{_OUTCOMES[outcome]}: run {known.external_run_id} of {owner.key}, {known.status}"
    answer(sentence, as_row(known, ("outcome", outcome)), form)


def _object(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise InputError("--payload", "not JSON; send an object such as '{\"rows\": 5}'") from None
