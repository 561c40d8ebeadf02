"""`chm run`: look up, record and import runs. `chm lineage`: OpenLineage events that matched no pipeline on arrival."""

import dataclasses
import sys
import zoneinfo
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from chm_dagster.cli.arguments import (
    Fields,
    PipelineArgument,
    TimezoneOption,
    complete_pipeline,
    field_options,
    find_pipeline,
    first,
    parse_time,
    read,
)
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, chosen, console, errors, say, show
from chm_dagster.domain.runs import NewRun, Outcome, RunKind, RunStatus
from chm_dagster.domain.schedule import TimeZone
from chm_dagster.domain.validation import read_value
from chm_dagster.errors import InputError
from chm_dagster.ingestion.lineage import jobs
from chm_dagster.ingestion.lineage import replay as replay_events
from chm_dagster.ingestion.run_files import Shape, header_name, read_rows, shape_of
from chm_dagster.ingestion.run_import import ImportReport, Progress, import_runs
from chm_dagster.ingestion.run_rows import FIELDS, RowFormat, RowMapper
from chm_dagster.installation import configured, open_warehouse
from chm_dagster.partners.engine.mapping import normalise_status
from chm_dagster.presentation.columns import Column, Kind
from chm_dagster.presentation.rendering import harmless
from chm_dagster.warehouse.paging import every

app = typer.Typer(help="Runs of pipelines: look up, record, import.", no_args_is_help=True)

_COLUMNS = (
    Column("effective_at", "when"),
    Column("status"),
    Column("duration_seconds", "took", kind=Kind.SECONDS),
    Column("rows_processed", "rows", rank=2),
    Column("external_run_id", "run"),
    Column("why", elastic=True, rank=1),
)
_FLAGS = {
    "external_run_id": "--run",
    "rows_processed": "--rows",
    "error_message": "--error",
    "source_url": "--url",
}
_OUTCOMES = {
    "inserted": "recorded",
    "updated": "updated",
    "unchanged": "unchanged",
    "stale": "stale, the ledger has newer knowledge",
}


@app.command("list")
def list_(
    pipeline: PipelineArgument,
    status: Annotated[RunStatus | None, typer.Option("--status", help="Only runs with this status.")] = None,
    kind: Annotated[RunKind | None, typer.Option("--kind", help="Only runs of this kind.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="At or after this time; 24h is a day ago.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time.")] = None,
    timezone: TimezoneOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most this many.")] = 20,
    order: Annotated[Literal["asc", "desc"], typer.Option("--order", help="desc: the latest first.")] = "desc",
    form: FormatOption = None,
) -> None:
    """List runs of a pipeline, the latest first."""
    now = datetime.now(UTC)
    window = {
        "since": None if since is None else parse_time(since, "--since", now, zone=timezone),
        "until": None if until is None else parse_time(until, "--until", now, zone=timezone),
    }
    with open_warehouse() as warehouse:
        owner = find_pipeline(warehouse, pipeline).id
        asked = first(limit, warehouse.runs.list, pipeline_ref=owner, status=status, kind=kind, order=order, **window)
        rows = [as_row(run) for run in asked]
    if chosen(form) is Format.TABLE:
        rows = [{**row, "why": row["error_message"] or row["status_reason"]} for row in rows]
    show(rows, form, columns=_COLUMNS)


@app.command()
def latest(pipeline: PipelineArgument, form: FormatOption = None) -> None:
    """Show the latest run of a pipeline. JSON is null if it never ran."""
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
    """Show one run, with its partner's record."""
    with open_warehouse() as warehouse:
        show(as_row(warehouse.runs.get(find_pipeline(warehouse, pipeline).id, run)), form)


@app.command()
@field_options(NewRun, flags=_FLAGS)
def record(
    pipeline: PipelineArgument,
    fields: Fields,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", help="A key that makes it safe to repeat the command: the same key is the same run."
        ),
    ] = None,
    form: FormatOption = None,
) -> None:
    """Record a run by hand, or add to one: what is left out stays."""
    with open_warehouse() as warehouse:
        owner = find_pipeline(warehouse, pipeline)
        known, outcome = warehouse.runs.record(owner.id, read(NewRun, fields), idempotency_key=idempotency_key)
    sentence = f"{_OUTCOMES[outcome]}: run {known.external_run_id} of {owner.key}, {known.status}"
    answer(sentence, as_row(known, ("outcome", outcome)), form)


# --- chm run import --------------------------------------------------------------------------------------------------

PipelineOption = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        metavar="CLIENT/PIPELINE",
        help="The pipeline of all rows, which then need not name one.",
        autocompletion=complete_pipeline,
    ),
]
ShapeOption = Annotated[Shape | None, typer.Option("--as", help="The format of the file, if its name does not say.")]
ZoneOption = Annotated[
    str | None,
    typer.Option("--timezone", metavar="ZONE", help="The time zone of times without an offset: Europe/Berlin, UTC."),
]
DateFormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--date-format", metavar="FORM", help="Of times that are not ISO 8601: '%d.%m.%Y %H:%M'. May be repeated."
    ),
]
CommaOption = Annotated[bool, typer.Option("--decimal-comma", help="Numbers are written as 1.234,5.")]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="FIELD=COLUMN", help="The column of a field: status=state. May be repeated."),
]
StatusOption = Annotated[
    list[str] | None,
    typer.Option("--status", metavar="WORD=STATUS", help="The status of a word: completed=success. May be repeated."),
]
AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", metavar="TIME", help="When the content was known; by default, when the file was written."),
]
RejectsOption = Annotated[
    Path | None,
    typer.Option("--rejects", metavar="FILE", help="The file for rejected rows; by default next to FILE."),
]


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv, .jsonl or .json file; - is standard input.")],
    pipeline: PipelineOption = None,
    shape: ShapeOption = None,
    timezone: ZoneOption = None,
    date_format: DateFormatOption = None,
    decimal_comma: CommaOption = False,
    column: ColumnOption = None,
    status: StatusOption = None,
    as_of: AsOfOption = None,
    rejects: RejectsOption = None,
    form: FormatOption = None,
) -> None:
    """Import runs from a file: CSV, JSON lines, a JSON array, or the output of gh, Airflow, dbt or Jenkins.

    `gh run list --json databaseId,status,conclusion,startedAt,updatedAt`, `airflow dags list-runs -o json`, dbt's
    run_results.json, and Jenkins' api/json.

    Columns: pipeline (client/pipeline), id and status are needed; started_at, finished_at, updated_at,
    duration_seconds, rows_processed, error_message, status_reason, url and attempt are understood; all others are kept
    with the run. Importing a file again changes nothing, and newer knowledge in CHM stays as it is. A row that cannot
    be used is reported with its line and kept in FILE.rejects.jsonl; the others are imported. Exit code 1 if a row was
    rejected.
    """
    form_of_rows = _row_format(column, status, timezone, date_format, decimal_comma=decimal_comma)
    written = shape or (Shape.CSV if str(file) == "-" else shape_of(str(file)))
    place = rejects or file.with_name(f"{'stdin' if str(file) == '-' else file.name}.rejects.jsonl")
    with _opened(file) as stream, open_warehouse() as warehouse:
        only = None if pipeline is None else find_pipeline(warehouse, pipeline)
        known = [only] if only else every(warehouse.pipelines.list, active=None)
        mapper = RowMapper(known, _known_at(file, as_of), only=only, form=form_of_rows, now=datetime.now(UTC))
        rows = read_rows(stream, written, partial(form_of_rows.check_columns, named=only is not None))
        with _progress(file, stream) as progress:
            report = import_runs(warehouse.engine, rows, mapper, place, progress)
    _show(report, place, form)
    raise typer.Exit(1 if report.counts.rejected else 0)


def _row_format(
    column: list[str] | None,
    status: list[str] | None,
    timezone: str | None,
    date_formats: list[str] | None,
    *,
    decimal_comma: bool,
) -> RowFormat:
    return RowFormat(
        columns={
            spelled: field
            for field, name in _pairs(column, "--column", FIELDS).items()
            # As it stands in the file, or as the header of a CSV file is read.
            for spelled in (name, header_name(name))
        },
        statuses=_statuses(status),
        zone=None if timezone is None else zoneinfo.ZoneInfo(read_value(TimeZone, timezone, "--timezone")),
        date_formats=tuple(date_formats or ()),
        decimal_comma=decimal_comma,
    )


def _pairs(given: list[str] | None, option: str, left: Collection[str] = ()) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`. Raises InputError for anything else; `left` are the only names before the sign."""
    pairs = {}
    for text in given or ():
        name, sign, value = (part.strip() for part in text.rpartition("="))
        if not (name and sign and value):
            raise InputError(
                option, f"{text!r} is no pair; write it as {'status=state' if left else 'completed=success'}"
            )
        if left and name not in left:
            raise InputError(option, f"there is no field {name!r}; use one of {', '.join(left)}")
        pairs[name] = value
    return pairs


def _statuses(given: list[str] | None) -> dict[str, RunStatus]:
    pairs = _pairs(given, "--status")
    return {normalise_status(word): read_value(RunStatus, value, "--status") for word, value in pairs.items()}


@contextmanager
def _opened(file: Path) -> Iterator[BufferedReader]:
    if str(file) == "-":
        assert isinstance(sys.stdin.buffer, BufferedReader)  # noqa: S101 - it is not replaced
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise InputError("FILE", f"cannot read {file} ({error.strerror})") from None
    with stream:
        yield stream


def _known_at(file: Path, as_of: str | None) -> datetime:
    now = datetime.now(UTC)
    if as_of is not None:
        return min(parse_time(as_of, "--as-of", now), now)
    if str(file) == "-":
        return now
    # It may be any age, as archives and copies set it: the times in a row say more.
    return min(datetime.fromtimestamp(file.stat().st_mtime, UTC), now)


@contextmanager
def _progress(file: Path, stream: BufferedReader) -> Iterator[Progress]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("[bold]Importing"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    size = None if str(file) == "-" else file.stat().st_size
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("import", total=size, rows=0)
        yield lambda rows: bar.update(task, rows=rows, completed=stream.tell() if size is not None else 0)


def _show(report: ImportReport, place: Path, form: Format | None) -> None:
    if chosen(form) is not Format.TABLE:
        show(_plain(report, place), form)
        return
    counts = ", ".join(f"{name} {getattr(report.counts, name):,}" for name in Outcome)
    say(f"{report.rows:,} rows: {counts}", "red" if report.counts.rejected else "green")
    for line, reason in report.rejections:
        errors.print(f"line {line}: {harmless(reason)}", style="red", markup=False, highlight=False, soft_wrap=True)
    if report.counts.rejected:
        more = report.counts.rejected - len(report.rejections)
        say(f"{f'{more:,} more; ' if more else ''}all rejected rows with their reasons are in {place}")
    if report.kept:
        say(f"kept with the runs, but no field of theirs: {', '.join(sorted(report.kept)[:20])}", "dim")


def _plain(report: ImportReport, place: Path) -> dict[str, Any]:
    return {
        "rows": report.rows,
        **dataclasses.asdict(report.counts),
        "rejections": [{"line": line, "reason": reason} for line, reason in report.rejections],
        "rejects_file": str(place) if report.counts.rejected else None,
        "kept": sorted(report.kept),
    }


# --- chm lineage -----------------------------------------------------------------------------------------------------

lineage_app = typer.Typer(help="OpenLineage events that match no pipeline yet.", no_args_is_help=True)

_UNMATCHED_COLUMNS = (
    Column("namespace", elastic=True),
    Column("job", elastic=True),
    Column("events"),
    Column("last_event", "last event", rank=1),
)


@lineage_app.command()
def unmatched(form: FormatOption = None) -> None:
    """List the jobs whose events match no pipeline, most recent first.

    To watch a job, add a pipeline with the job as its external id and `openlineage:NAMESPACE` as its connection.
    """
    show(jobs(configured().unmatched_events()), form, columns=_UNMATCHED_COLUMNS)


@lineage_app.command()
def replay(form: FormatOption = None) -> None:
    """Process all unmatched events again, for pipelines that were added since. It is safe to repeat."""
    with open_warehouse() as warehouse:
        counts = replay_events(warehouse.engine, configured().unmatched_events())
    if chosen(form) is not Format.TABLE:
        show(counts, form)
        return
    summary = ", ".join(f"{outcome} {count}" for outcome, count in sorted(counts.items()))
    console.print(f"{sum(counts.values())} events: {summary}" if counts else "No unmatched events.", highlight=False)
