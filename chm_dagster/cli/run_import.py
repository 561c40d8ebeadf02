"""`chm run import`: runs out of a file."""

import sys
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import typer

from chm_dagster.cli import completion
from chm_dagster.cli.moments import parse_moment
from chm_dagster.cli.names import find_pipeline
from chm_dagster.cli.output import Format, FormatOption, chosen, errors, say, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import harmless
from chm_dagster.domain.schedule import time_zone
from chm_dagster.errors import InputError
from chm_dagster.ingestion.run_files import Shape, read_rows, shape_of
from chm_dagster.ingestion.run_import import ImportReport, Progress, RowMapper, check_columns, import_runs
from chm_dagster.warehouse.paging import every

COUNTS = ("inserted", "updated", "unchanged", "stale", "rejected")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .jsonl file; - is standard input.")],
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            metavar="CLIENT/PIPELINE",
            help="All rows are of this pipeline, and need not name one.",
            autocompletion=completion.pipelines,
        ),
    ] = None,
    shape: Annotated[
        Shape | None, typer.Option("--as", help="How the file is written, if its name does not tell.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="ZONE", help="Of times without an offset: Europe/Berlin, UTC.")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="TIME", help="When this was known; when the file was written, if left out."),
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option("--rejects", metavar="FILE", help="Where rejected rows go; beside FILE if left out.")
    ] = None,
    form: FormatOption = None,
) -> None:
    """Import runs from a CSV file with a header, or from JSON lines.

    Columns: pipeline (client/pipeline), id and status are needed; started_at, finished_at, updated_at,
    duration_seconds, rows_processed, error_message, status_reason, url and attempt are understood, all others kept
    with the run. Times are ISO 8601. Importing a file again changes nothing; where CHM knows better, it stays so.
    A row that cannot be used is told with its line and kept in FILE.rejects.jsonl; the others are imported.
    Exit code 1 if a row was rejected.
    """
    zone = None if timezone is None else zoneinfo.ZoneInfo(time_zone(timezone, "--timezone"))
    written = shape or (Shape.CSV if str(file) == "-" else shape_of(str(file)))
    place = rejects or file.with_name(f"{'stdin' if str(file) == '-' else file.name}.rejects.jsonl")
    with _opened(file) as stream, open_warehouse() as warehouse:
        only = None if pipeline is None else find_pipeline(warehouse, pipeline)
        known = [only] if only else every(warehouse.pipelines.list, active=None)
        mapper = RowMapper(known, _known_at(file, as_of), only=only, zone=zone)
        rows = read_rows(stream, written, partial(check_columns, named=only is not None))
        with _progress(file, stream) as progress:
            report = import_runs(warehouse.engine, rows, mapper, place, progress)
    _show(report, place, form)
    raise typer.Exit(1 if report.rejected else 0)


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
        return min(parse_moment(as_of, "--as-of", now), now)
    if str(file) == "-":
        return now
    written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    # Archives hand out files from 1980.
    return min(written, now) if written.year >= 2000 else now


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
    counts = ", ".join(f"{name} {getattr(report, name):,}" for name in COUNTS)
    say(f"{report.rows:,} rows: {counts}", "red" if report.rejected else "green")
    for line, reason in report.rejections:
        errors.print(f"line {line}: {harmless(reason)}", style="red", markup=False, highlight=False, soft_wrap=True)
    if report.rejected:
        more = report.rejected - len(report.rejections)
        say(f"{f'{more:,} more; ' if more else ''}all rejected rows with their reasons are in {place}")
    if report.kept:
        say(f"kept with the runs, but no field of theirs: {', '.join(sorted(report.kept)[:20])}", "dim")


def _plain(report: ImportReport, place: Path) -> dict[str, Any]:
    counts = {name: getattr(report, name) for name in ("rows", *COUNTS)}
    return {
        **counts,
        "rejections": [{"line": line, "reason": reason} for line, reason in report.rejections],
        "rejects_file": str(place) if report.rejected else None,
        "kept": sorted(report.kept),
    }
