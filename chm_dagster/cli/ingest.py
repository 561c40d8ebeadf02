"""`chm ingest`: one ingestion now, as a Dagster run, with its progress before your eyes."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chm_dagster.cli.moments import parse_moment
from chm_dagster.cli.output import Format, FormatOption, chosen, console, errors, show
from chm_dagster.cli.stack import Stack, load_settings, python, running_stack
from chm_dagster.domain.inventory import IngestedPipeline
from chm_dagster.errors import ChmError, InputError, NotFound
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.ingestion.report import IngestReport, PipelineReport
from chm_dagster.local.files import tail
from chm_dagster.warehouse import revision
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.inventory import ingested_pipelines

COUNTS = ("fetched", "inserted", "updated", "unchanged", "stale", "rejected")


def ingest(
    client: list[str] = typer.Option([], "--client", help="Only this client's pipelines (slug; may be repeated)."),
    pipeline: list[str] = typer.Option(
        [], "--pipeline", help="Only this pipeline (client-slug/pipeline-slug; may be repeated)."
    ),
    since: str | None = typer.Option(
        None,
        "--since",
        metavar="TIME",
        help="Read again from this time on (ISO 8601, or 7d); the watermark if that is older.",
    ),
    form: FormatOption = None,
) -> None:
    """Ask the partners for news now, and bring the ledger up to date."""
    now = datetime.now(UTC)
    moment = None if since is None else parse_moment(since, "--since", now)
    if moment is not None and moment > now:
        raise InputError("--since", "in the future; name a time from which on to read the partners again")
    with running_stack(load_settings()) as stack:
        keys = select(stack, client, pipeline)
        stack.prepare_dagster_home()
        report, code = run(stack, keys, everything=not client and not pipeline, since=moment)
    show_report(report, form)
    raise typer.Exit(code)


def select(stack: Stack, clients: list[str], pipelines: list[str]) -> list[str]:
    """The keys that the options name. Raises NotFound for a name that matches nothing."""
    engine = make_engine(stack.database_url)
    revision.require_current(engine)
    known = ingested_pipelines(engine)
    engine.dispose()
    if not known:
        raise NotFound("no active pipeline has an external id, so there is nothing to ingest")
    for slug in clients:
        if all(p.client_slug != slug for p in known):
            raise NotFound(f"--client: no ingested pipelines of a client {slug!r}; see `chm status`")
    for key in pipelines:
        if all(p.key != key for p in known):
            raise NotFound(f"--pipeline: no ingested pipeline {key!r}; write it as client-slug/pipeline-slug")
    return [p.key for p in known if _wanted(p, clients, pipelines)]


def _wanted(pipeline: IngestedPipeline, clients: list[str], pipelines: list[str]) -> bool:
    return (not clients and not pipelines) or pipeline.client_slug in clients or pipeline.key in pipelines


def run(
    stack: Stack, keys: list[str], *, everything: bool, since: datetime | None, alone: bool = False
) -> tuple[IngestReport, int]:
    """Start the Dagster run in a process of its own and follow it. Returns its report and exit code.

    `alone`: nothing else runs on this Dagster instance, so leftovers of a crash may be cleared away.
    """
    config: dict[str, Any] = {"pipelines": [] if everything else keys, "everything": everything}
    if since is not None:
        config["since"] = since.isoformat()
    log = stack.settings.home / "logs" / "ingest.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=stack.settings.home) as folder, log.open("ab") as stream:
        begin = stream.tell()
        progress_file = Path(folder) / "progress"
        progress_file.touch()
        config["progress_file"] = str(progress_file)
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            python("-m", "chm_dagster.launch", orjson.dumps(config).decode(), *(["--alone"] if alone else [])),
            env=stack.environment(),
            cwd=stack.dagster_home,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
        with _terminated(process), progress_file.open("rb") as progress:
            _follow(process, progress, len(keys))
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        run_id = process.stdout.read().decode().strip()
    report = LandingZone(stack.settings.home / "landing").open(run_id).report() if run_id else None
    if report is None:
        raise ChmError(f"the Dagster run {run_id or ''} ended early; the end of {log}:\n{tail(log, begin)}")
    return IngestReport.from_dict(report), process.returncode


@contextmanager
def _terminated(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _follow(process: subprocess.Popen[bytes], progress: IO[bytes], pipelines: int) -> None:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pipelines, {task.fields[records]} records"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("Reading partners", total=pipelines, records=0)
        records = 0
        rest = b""
        while True:
            ended = process.poll() is not None
            *lines, rest = (rest + progress.read()).split(b"\n")
            for line in lines:
                done, more = orjson.loads(line)
                records += more
                bar.update(task, advance=done, records=records)
            if bar.tasks[0].finished:
                bar.update(task, description="Checking the ledger")
            if ended:
                return
            time.sleep(0.05)


def show_report(report: IngestReport, form: Format | None) -> None:
    """The result table for people; everything for programs."""
    rows = [_row(pipeline) for pipeline in report.pipelines.values()]
    totals = {name: report.total(name) for name in COUNTS}
    if chosen(form) is not Format.TABLE:
        show({"totals": {**totals, "failed_pipelines": len(report.failed)}, "pipelines": rows}, form)
        return
    news = [row for row in rows if row["inserted"] or row["updated"] or row["rejected"] or row["error"]]
    if news:
        # A column of nothing but zeros says nothing, and terminals are narrow.
        empty = {name for name in COUNTS if not any(row[name] for row in news)} | {"error", "unknown_statuses"}
        show([{name: value for name, value in row.items() if name not in empty} for row in news], Format.TABLE)
    for pipeline in report.pipelines.values():
        _show_troubles(pipeline)
    quiet = len(rows) - len(news)
    console.print(
        f"{len(rows)} pipelines{f', {quiet} without news' if quiet else ''}: "
        + ", ".join(f"{name} {count}" for name, count in totals.items())
        + (f"; {len(report.failed)} could not be read" if report.failed else ""),
        style="red" if report.failed else "green",
        highlight=False,
        soft_wrap=True,
    )


def _row(pipeline: PipelineReport) -> dict[str, Any]:
    counts = {name: getattr(pipeline, name) for name in COUNTS}
    last = {"newest_run": pipeline.newest_run, "unknown_statuses": pipeline.unknown_statuses, "error": pipeline.error}
    return {"pipeline": pipeline.key, **counts, **last}


def _show_troubles(pipeline: PipelineReport) -> None:
    if pipeline.error:
        _warn(f"{pipeline.key}: {pipeline.error}", "red")
    for word, count in pipeline.unknown_statuses.items():
        _warn(
            f"{pipeline.key}: unknown status {word!r}, {count} times; it counts as running until it is mapped", "yellow"
        )


def _warn(line: str, style: str) -> None:
    errors.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
