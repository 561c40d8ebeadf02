"""`chm report`: what a client is owed each week or month."""

import dataclasses
import enum
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chm_dagster.cli.arguments import ClientArgument, find_client
from chm_dagster.cli.output import Format, FormatOption, chosen, console, say, show, warn
from chm_dagster.errors import InputError
from chm_dagster.installation import configured, open_warehouse
from chm_dagster.presentation.columns import Column

if TYPE_CHECKING:
    from chm_dagster.reporting import Built

app = typer.Typer(help="What a client is owed each week or month: build, show and send reports.", no_args_is_help=True)


class ReportFormat(enum.StrEnum):
    """How a report is written."""

    HTML = "html"
    PDF = "pdf"
    CSV = "csv"
    JSON = "json"


WeekOption = Annotated[
    str | None,
    typer.Option("--week", metavar="WEEK", help="An ISO week such as 2026-W47. Default: the last one that is over."),
]
MonthOption = Annotated[
    str | None, typer.Option("--month", metavar="MONTH", help="A month such as 2026-10, instead of a week.")
]


@app.command()
def build(
    client: ClientArgument,
    week: WeekOption = None,
    month: MonthOption = None,
    form: Annotated[ReportFormat, typer.Option("--format", help="How to write it.")] = ReportFormat.PDF,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write it; - for standard output. Default: its name."),
    ] = None,
) -> None:
    """Write a report to a file, and keep its figures: data that arrive later make a revision that says what changed.

    A week or month that is not over gives a preliminary report, of which nothing is kept.
    """
    from chm_dagster.reporting import FORMATS, file_name, issue_report

    with open_warehouse() as warehouse:
        slug = find_client(warehouse, client).slug
        built = issue_report(warehouse.engine, slug, week, month, datetime.now(UTC))
    write, _ = FORMATS[form]
    content = write(built.report)
    if output is not None and str(output) == "-":
        sys.stdout.buffer.write(content)
        return
    path = output or Path(file_name(built.report, form))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(
            "--output", f"{path} cannot be written: {(error.strerror or 'no reason given').lower()}"
        ) from None
    say(f"wrote {path}: {_name(built)}")
    _warn_of_what_is_missing(built)


@app.command("show")
def show_(
    client: ClientArgument, week: WeekOption = None, month: MonthOption = None, form: FormatOption = None
) -> None:
    """Show a report as it would be built now. Nothing is kept."""
    from chm_dagster.presentation.report.content import content
    from chm_dagster.reporting import build as build_report

    with open_warehouse() as warehouse:
        slug = find_client(warehouse, client).slug
        built = build_report(warehouse.engine, slug, week, month, datetime.now(UTC))
    if chosen(form) is not Format.TABLE:
        import msgspec

        show(msgspec.to_builtins(built.report), form)
        return
    page = content(built.report)
    say(page.title, style="bold")
    say(page.span, style="dim")
    for text in (page.summary, *page.revisions):
        say(text)
    for title, rows, columns in (
        ("Figures", [_row(tile) for tile in page.tiles], _TILES),
        ("Days", [{"day": f"{day.weekday} {day.date}", "said": day.word} for day in page.days], _DAYS),
        ("Incidents", [_row(one) for one in page.incidents], _INCIDENTS),
        ("Pipelines", [_row(one) for one in page.pipelines], _PIPELINES),
    ):
        console.print()
        show(rows, Format.TABLE, title, columns)
    for word, text in page.notes:
        say(f"{word}: {text}")


_TILES = (Column("label", "figure"), Column("value"), Column("note", "of", elastic=True), Column("before", rank=1))
_DAYS = (Column("day"), Column("said", "how it went", elastic=True))
_INCIDENTS = (
    Column("start", "began"),
    Column("end", "ended"),
    Column("lasted", rank=1),
    Column("pipeline", elastic=True),
    Column("what", "what happened", elastic=True),
)
_PIPELINES = (
    Column("name", "pipeline", elastic=True),
    Column("runs"),
    Column("success"),
    Column("on_time", "on time"),
    Column("incidents"),
)


def _row(shown: Any) -> dict[str, Any]:
    return {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}


@app.command()
def send(client: ClientArgument, week: WeekOption = None, month: MonthOption = None) -> None:
    """Send a report to the client's report_email now, also if it was sent before.

    The same revision always has the same Message-ID.
    """
    from chm_dagster.reporting import send_report

    with open_warehouse() as warehouse:
        slug = find_client(warehouse, client).slug
        channels = configured().channels()
        built = send_report(warehouse.engine, channels, slug, week, month, datetime.now(UTC))
    say(f"sent to {built.client.email}: {_name(built)}")
    _warn_of_what_is_missing(built)


def _name(built: "Built") -> str:
    if not built.report.is_final:
        return f"{built.period}, preliminary"
    return f"{built.period}, revision {built.report.revision}"


def _warn_of_what_is_missing(built: "Built") -> None:
    from chm_dagster.presentation.report.content import percent

    figures = built.report.figures
    if built.report.is_final and figures.coverage is not None and not figures.is_known:
        warn(f"{percent(figures.coverage)} of {built.period} is known; what is not known reads unknown")
