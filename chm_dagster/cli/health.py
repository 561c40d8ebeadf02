"""`chm failing`, `changed`, `flaky`, `latest`: the health questions, each one block of the SQL contract."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import ClientOption, EnvironmentOption, ExitZeroOption
from chm_dagster.cli.moments import parse_moment
from chm_dagster.cli.names import find_client
from chm_dagster.cli.output import Format, FormatOption, chosen, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import Column, Kind
from chm_dagster.domain.inventory import Environment
from chm_dagster.domain.runs import RunStatus

PIPELINE = Column("pipeline")
WHY = Column("why", elastic=True, rank=1)
FAILING = (
    PIPELINE,
    Column("failing_since", "since"),
    Column("failures", "in a row"),
    Column("last_success_at", "last success", rank=2),
    WHY,
)
CHANGED = (Column("change"), PIPELINE, Column("started_at", "latest run"), Column("platform", rank=2), WHY)
FLAKY = (
    PIPELINE,
    Column("flip_rate", "flips", kind=Kind.SHARE),
    Column("recoveries", rank=3),
    Column("failures", "failed", rank=2),
    Column("settled_runs", "of", rank=2),
    Column("history", "oldest to latest", kind=Kind.STRIP, rank=1),
)
LATEST = (
    PIPELINE,
    Column("status"),
    Column("started_at", "started"),
    Column("duration_seconds", "took", rank=2, kind=Kind.SECONDS),
    WHY,
)


def failing(
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    exit_zero: ExitZeroOption = False,
    form: FormatOption = None,
) -> None:
    """What is failing now: pipelines whose latest run that settled has failed, and since when.

    Exit code 1 if anything is failing, unless --exit-zero.
    """
    rows = _ask("failing_now", client, environment)
    show_health(rows, form, FAILING)
    raise typer.Exit(1 if rows and not exit_zero else 0)


def changed(
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Compare with this time: 24h, 7d, or a date.")
    ] = "24h",
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    form: FormatOption = None,
) -> None:
    """What is another than it was: regressions, what is still failing, what was fixed, what is new."""
    moment = parse_moment(since, "--since", datetime.now(UTC))
    show_health(_ask("changed_since", client, environment, since=moment), form, CHANGED)


def flaky(
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="From which share of flips on a pipeline is flaky.")
    ] = 0.2,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    form: FormatOption = None,
) -> None:
    """Pipelines that keep changing between success and failure, over their last 30 runs that settled.

    One that always fails is broken, not flaky: see `chm failing`.
    """
    show_health(_ask("flaky_pipelines", client, environment, threshold=threshold), form, FLAKY)


def latest(
    status: Annotated[RunStatus | None, typer.Option("--status", help="Only those in this state.")] = None,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    form: FormatOption = None,
) -> None:
    """The latest run of every active pipeline."""
    rows = _ask("latest_status_by_pipeline", client, environment)
    show_health([row for row in rows if status is None or row["status"] == status], form, LATEST)


def _ask(query: str, client: str | None, environment: Environment | None, **parameters: Any) -> list[dict[str, Any]]:
    with open_warehouse() as warehouse:
        slug = None if client is None else find_client(warehouse, client).slug
        where = None if environment is None else str(environment)
        return warehouse.ask(query, client_slug=slug, environment=where, **parameters)


def show_health(rows: list[dict[str, Any]], form: Format | None, columns: Sequence[Column], title: str = "") -> None:
    """Rows of a health question: as they are for a program, with the pipeline's key and the reason for a person."""
    if chosen(form) is Format.TABLE:
        rows = [
            {
                **row,
                "pipeline": f"{row['client_slug']}/{row['pipeline_slug']}",
                "why": row.get("error_message") or row.get("status_reason"),
                "status": row.get("status") or "never ran",
            }
            for row in rows
        ]
    show(rows, form, title, columns)
