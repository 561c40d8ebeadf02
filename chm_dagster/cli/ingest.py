"""`chm ingest`: one ingestion now, as a Dagster run, with a progress bar."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import IO, Any

import orjson
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chm_dagster.cli.arguments import TimezoneOption, parse_time
from chm_dagster.cli.output import Format, FormatOption, chosen, console, errors, show
from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.runs import Outcome
from chm_dagster.domain.sync import IngestReport, PipelineReport
from chm_dagster.errors import ChmError, InputError, NotFound
from chm_dagster.ingestion.landing import Landing, LandingZone
from chm_dagster.installation import Installation, running
from chm_dagster.local.postgres_setup import open_log, tail
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines

COUNTS = ("fetched", *Outcome)


def ingest(
    client: list[str] = typer.Option([], "--client", help="Only this client's pipelines (slug; can be repeated)."),
    pipeline: list[str] = typer.Option(
        [], "--pipeline", help="Only this pipeline (client-slug/pipeline-slug; can be repeated)."
    ),
    since: str | None = typer.Option(
        None,
        "--since",
        metavar="TIME",
        help="Read again from this time (ISO 8601, or 7d), or from the watermark if that is earlier.",
    ),
    timezone: TimezoneOption = None,
    form: FormatOption = None,
) -> None:
    """Sync now: read new and changed runs from the partners and update the ledger."""
    now = datetime.now(UTC)
    moment = None if since is None else parse_time(since, "--since", now, zone=timezone)
    if moment is not None and moment > now:
        raise InputError("--since", "in the future; name a time from which on to read the partners again")
    with running() as installation:
        keys = select(installation, client, pipeline)
        installation.prepare_dagster_home()
        report, code = run(installation, keys, everything=not client and not pipeline, since=moment)
    show_report(report, form)
    raise typer.Exit(code)


def select(installation: Installation, clients: list[str], pipelines: list[str]) -> list[str]:
    """The keys that the options name. Raises NotFound for a name that matches nothing."""
    warehouse = installation.warehouse()
    schema.require_current(warehouse.engine)
    known = ingested_pipelines(warehouse.engine)
    warehouse.close()
    if not known:
        raise NotFound("nothing to ingest: no active pipeline has an external id")
    for slug in clients:
        if all(p.client_slug != slug for p in known):
            raise NotFound(f"--client: no ingested pipelines of a client {slug!r}; see `chm status`")
    for key in pipelines:
        if all(p.key != key for p in known):
            raise NotFound(
                f"--pipeline: no ingested pipeline {key!r}; write it as client-slug/pipeline-slug. A pipeline is"
                " ingested if it and its client are active and it has an external id"
            )
    return [p.key for p in known if _wanted(p, clients, pipelines)]


def _wanted(pipeline: IngestedPipeline, clients: list[str], pipelines: list[str]) -> bool:
    return (not clients and not pipelines) or pipeline.client_slug in clients or pipeline.key in pipelines


def run(
    installation: Installation, keys: list[str], *, everything: bool, since: datetime | None, alone: bool = False
) -> tuple[IngestReport, int]:
    """Start the Dagster run in a separate process and follow it. Returns its report and exit code.

    `alone`: nothing else runs on this Dagster instance, so runs left by a crash may be cleaned up.
    """
    config: dict[str, Any] = {"pipelines": [] if everything else keys, "everything": everything}
    if since is not None:
        config["since"] = since.isoformat()
    log = installation.log_folder / "ingest.log"
    config["report_progress"] = True
    with open_log(log) as stream:
        begin = stream.tell()
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", "chm_dagster.launch", *(["--alone"] if alone else [])],
            env=installation.environment(),
            cwd=installation.dagster_home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            umask=0o077,
        )
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        with _terminated(process):
            # Not an argument: the keys of a large client exceed the length of a command line.
            with process.stdin, suppress(BrokenPipeError):
                process.stdin.write(orjson.dumps(config))
            landing = _follow(process, process.stdout, installation.landing(), len(keys))
    report = landing.report() if landing else None
    if report is None:
        named = f" {landing.folder.name}" if landing else ""
        raise ChmError(f"the Dagster run{named} ended early; the end of {log}:\n{tail(log, begin)}")
    found = IngestReport.from_dict(report)
    return found, process.returncode or int(bool(found.failed))


@contextmanager
def _terminated(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _follow(process: subprocess.Popen[bytes], answer: IO[bytes], zone: LandingZone, pipelines: int) -> Landing | None:
    """Show progress until the process ends. Returns the landing of its Dagster run, None if it did not start."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pipelines, {task.fields[records]} records"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("Reading partners", total=pipelines, records=0)
        run_id = answer.readline().decode().strip()
        landing = zone.open(run_id) if run_id else None
        records = offset = 0
        while landing is not None:
            ended = process.poll() is not None
            steps, offset = landing.read_progress(offset)
            for done, more in steps:
                records += more
                bar.update(task, advance=done, records=records)
            if bar.tasks[0].finished:
                bar.update(task, description="Checking the ledger")
            if ended:
                break
            time.sleep(0.05)
    return landing


def show_report(report: IngestReport, form: Format | None) -> None:
    """The result table for people; everything for programs."""
    rows = [_row(pipeline) for pipeline in report.pipelines.values()]
    totals = {"fetched": report.fetched, **dataclasses.asdict(report.counts)}
    if chosen(form) is not Format.TABLE:
        show({"totals": {**totals, "failed_pipelines": len(report.failed)}, "pipelines": rows}, form)
        return
    news = [row for row in rows if row["inserted"] or row["updated"] or row["rejected"] or row["error"]]
    if news:
        # A column of zeros is left out, because terminals are narrow.
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
    counts = {"fetched": pipeline.fetched, **dataclasses.asdict(pipeline.counts)}
    last = {"newest_run": pipeline.newest_run, "unknown_statuses": pipeline.unknown_statuses, "error": pipeline.error}
    return {"pipeline": pipeline.key, **counts, **last}


def _show_troubles(pipeline: PipelineReport) -> None:
    if pipeline.error:
        _warn(f"{pipeline.key}: {pipeline.error}", "red")
    for warning in pipeline.warnings:
        _warn(f"{pipeline.key}: {warning}", "yellow")
    for word, count in pipeline.unknown_statuses.items():
        _warn(
            f"{pipeline.key}: unknown status {word!r}, {count} times; it counts as running until it is mapped", "yellow"
        )


def _warn(line: str, style: str) -> None:
    errors.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
