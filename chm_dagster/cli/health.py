"""Health questions: `chm status`, `attention`, `failing`, `changed`, `errors`, `flaky`, `latest`."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from chm_dagster.cli.arguments import (
    AtOption,
    ClientOption,
    EnvironmentOption,
    ExitZeroOption,
    TimezoneOption,
    find_client,
    parse_at,
    parse_time,
)
from chm_dagster.cli.output import Format, FormatOption, chosen, console, say, show
from chm_dagster.domain.pipelines import Environment, Platform
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import ConfigError, DatabaseUnavailable, InputError
from chm_dagster.installation import load_settings, open_warehouse
from chm_dagster.presentation.columns import (
    ATTENTION,
    CHANGED,
    CLIENTS,
    ERRORS,
    FAILING,
    FLAKY,
    LATEST,
    Question,
    Row,
    ago,
    alerts_sentence,
    count,
    for_people,
    freshness,
    is_blind,
    is_stopped,
    last_sync,
    to_the_minute,
)
from chm_dagster.settings import Settings
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.warehouse import Warehouse


def failing(
    at: AtOption = None,
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    exit_zero: ExitZeroOption = False,
    form: FormatOption = None,
) -> None:
    """Show what is failing now, or was then: pipelines whose latest settled run failed, and since when.

    Exit code 1 if anything is failing, unless --exit-zero.
    """
    rows = _ask("failing_now", client, environment, at=_at(at, timezone))
    show_health(rows, form, FAILING)
    raise typer.Exit(1 if rows and not exit_zero else 0)


def attention(
    at: AtOption = None,
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    exit_zero: ExitZeroOption = False,
    form: FormatOption = None,
) -> None:
    """Show what needs attention: pipelines that are failing, late, overrunning or unknown, the worst first.

    Exit code 1 if anything does, unless --exit-zero.
    """
    rows = _ask("needs_attention", client, environment, at=_at(at, timezone))
    show_health(rows, form, ATTENTION)
    raise typer.Exit(1 if rows and not exit_zero else 0)


def changed(
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Compare with this time: 24h, yesterday, or a date.")
    ] = "24h",
    at: AtOption = None,
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    form: FormatOption = None,
) -> None:
    """Show what changed: regressions, what is still failing, what was fixed, what is new.

    Exit code 0 whatever changed.
    """
    now = datetime.now(UTC)
    moment = parse_at(at, now, timezone)
    then = _since(since, moment, now, timezone, "name the time to compare with")
    show_health(_ask("changed_since", client, environment, at=moment, since=then), form, CHANGED)


def errors(
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Failures since this time: 24h, 7d, yesterday, or a date.")
    ] = "7d",
    at: AtOption = None,
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    platform: Annotated[Platform | None, typer.Option("--platform", help="Only this platform.")] = None,
    environment: EnvironmentOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000, metavar="N", help="At most this many.")] = 20,
    form: FormatOption = None,
) -> None:
    """Show which errors made runs fail, those at the most clients first.

    Failures with the same message are one error; ids, numbers, times, hosts and paths in it do not count.
    """
    now = datetime.now(UTC)
    moment = parse_at(at, now, timezone)
    begin = _since(since, moment, now, timezone, "name the beginning of the time to look at")
    where = None if platform is None else str(platform)
    rows = _ask("error_groups", client, environment, at=moment, since=begin, groups=limit, platform=where)
    show_health(rows, form, ERRORS)
    more = rows[0]["all_groups"] - len(rows) if rows else 0
    if more and chosen(form) is Format.TABLE:
        say(f"{count(more, 'error')} more: see --limit.")


def flaky(
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0, max=1, help="Minimum share of flips for a pipeline to count as flaky."),
    ] = 0.2,
    at: AtOption = None,
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    form: FormatOption = None,
) -> None:
    """List pipelines that flip between success and failure, over their last 30 settled runs.

    A pipeline that always fails is broken, not flaky: see `chm failing`.
    """
    show_health(_ask("flaky_pipelines", client, environment, at=_at(at, timezone), threshold=threshold), form, FLAKY)


def latest(
    status: Annotated[
        RunStatus | None, typer.Option("--status", help="Only pipelines whose latest run has this status.")
    ] = None,
    at: AtOption = None,
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    environment: EnvironmentOption = None,
    form: FormatOption = None,
) -> None:
    """Show the latest run of every active pipeline."""
    rows = _ask("latest_status_by_pipeline", client, environment, at=_at(at, timezone))
    show_health([row for row in rows if status is None or row["status"] == status], form, LATEST)


def _since(text: str, moment: datetime | None, now: datetime, timezone: str | None, fix: str) -> datetime:
    """The time that `--since` names. Raises InputError if it is after the time that the question is about."""
    then = parse_time(text, "--since", moment or now, zone=timezone)
    if then > (moment or now):
        wanted = "must not be in the future" if moment is None else "must not be after --at"
        raise InputError("--since", f"{wanted}; {fix}")
    return then


def _at(text: str | None, timezone: str | None) -> datetime | None:
    return parse_at(text, datetime.now(UTC), timezone)


def _ask(query: str, client: str | None, environment: Environment | None, **parameters: Any) -> list[dict[str, Any]]:
    with open_warehouse() as warehouse:
        slug = None if client is None else find_client(warehouse, client).slug
        where = None if environment is None else str(environment)
        return warehouse.ask(query, client_slug=slug, environment=where, **parameters)


def show_health(rows: list[dict[str, Any]], form: Format | None, question: Question) -> None:
    """Rows of a health question: as they are for a program, with what people read on a terminal."""
    if chosen(form) is Format.TABLE:
        rows = for_people(rows)
    show(rows, form, columns=question.columns, empty=question.empty)


_CHANGED_TODAY = dataclasses.replace(
    CHANGED, title="Changed in the last 24 hours", empty="Nothing changed in the last 24 hours."
)


def status(
    at: AtOption = None,
    timezone: TimezoneOption = None,
    exit_zero: ExitZeroOption = False,
    form: FormatOption = None,
) -> None:
    """Show the health of each client, what needs attention, what changed in the last 24 hours, alerts, the last sync.

    Exit code 1 if anything needs attention, unless --exit-zero. With --at, alerts and syncs are left
    out: how they were is not kept.
    """
    now = datetime.now(UTC)
    moment = parse_at(at, now, timezone)
    with open_warehouse() as warehouse:
        found = _found(warehouse, moment, now)
        alerts = {name: warehouse.ask(name) for name in ("open_episodes", "waiting_messages")} if moment is None else {}
        connections = warehouse.ask("connections") if moment is None else []
    if chosen(form) is not Format.TABLE:
        known = {"last_sync_at": last_sync(connections), "freshness": freshness(connections, now)}
        present = {"connections": connections, **alerts, **known}
        show({**found, **(present if moment is None else {"at": moment})}, form)
    else:
        parts = zip((CLIENTS, ATTENTION, _CHANGED_TODAY), found.values(), strict=False)
        for question, rows in parts:
            show(for_people(rows), Format.TABLE, question.title, question.columns, question.empty)
            console.print()
        if moment is None:
            say(alerts_sentence(alerts["open_episodes"], alerts["waiting_messages"]))
            say(freshness(connections, now))
        else:
            say(f"As it was at {to_the_minute(moment)} UTC, from what is known now.")
    raise typer.Exit(1 if found["needs_attention"] and not exit_zero else 0)


def _found(warehouse: Warehouse, at: datetime | None, now: datetime) -> dict[str, list[dict[str, Any]]]:
    yesterday = (at or now) - timedelta(days=1)
    return {
        "clients": warehouse.ask("latest_status_by_client", at=at),
        "needs_attention": warehouse.ask("needs_attention", at=at),
        "changed_since_yesterday": warehouse.ask("changed_since", since=yesterday, at=at),
        "failing_now": warehouse.ask("failing_now", at=at),
    }


# --- CHM itself ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `chm doctor` looked at; `fix` is empty if it is well."""

    check: str
    ok: bool
    found: str
    fix: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    form: FormatOption = None,
) -> None:
    """Check CHM itself: settings, database, partners file, credentials, and when each connection was last read.

    Makes no request to partners; `chm partner check` does. A schedule or a daemon that does not run shows as a last
    sync that is too old. Exit code 1 if there is a problem.
    """
    findings = list(_examine())
    form = Format.JSON if as_json else form
    if chosen(form) is Format.TABLE:
        for one in findings:
            say(f"{'ok     ' if one.ok else 'problem'}  {one.check}: {one.found}" + (f"; {one.fix}" if one.fix else ""))
    else:
        show([dataclasses.asdict(one) for one in findings], form)
    raise typer.Exit(0 if all(one.ok for one in findings) else 1)


def _examine() -> Iterator[Finding]:
    try:
        settings = load_settings()
    except ConfigError as error:
        yield Finding("settings", False, str(error), "correct the environment or .env; docs/operations.md lists all")
        return
    yield Finding("settings", True, f"CHM_HOME is {settings.home}")
    yield from _examine_credentials(settings)
    try:
        with open_warehouse() as warehouse:
            yield Finding("database", True, f"reachable, at revision {schema.head()}")
            yield from _examine_syncs(warehouse.ask("connections"), datetime.now(UTC))
    except (DatabaseUnavailable, ConfigError) as error:
        yield Finding("database", False, str(error), "check CHM_DATABASE_URL, or run chm migrate")


def _examine_credentials(settings: Settings) -> Iterator[Finding]:
    """The partners file, and whether the environment has what each connection names. Values are never shown."""
    from chm_dagster.partners.connections import configured

    if settings.partners_file is None:
        yield Finding("partners file", True, "none; CHM_PARTNERS_FILE is not set")
        return
    try:
        connections = configured(settings.partners_file)
    except ConfigError as error:
        yield Finding("partners file", False, str(error), f"correct {settings.partners_file}")
        return
    yield Finding("partners file", True, f"{count(len(connections), 'connection')} in {settings.partners_file}")
    for one in connections:
        address = [one.config.base_url_env] if one.config.base_url_env is not None else []
        missing = [name for name in (*address, *one.config.credentials.values()) if not os.environ.get(name)]
        if missing:
            yield Finding(f"credentials of {one.name}", False, f"not set: {', '.join(missing)}", "set them in .env")
        else:
            yield Finding(f"credentials of {one.name}", True, "all variables are set")


def _examine_syncs(connections: Sequence[Row], now: datetime) -> Iterator[Finding]:
    if connections:
        well = not is_stopped(connections, now)
        fix = "" if well else "start `chm up`, or Dagster's daemon, and turn sync_schedule on; or run chm ingest"
        yield Finding("last sync", well, freshness(connections, now), fix)
    else:
        yield Finding("last sync", True, freshness(connections, now))
    for row in connections:
        name = row["connection"] or f"{row['platform']} (default)"
        read = "never read" if row["read_at"] is None else f"read {ago(row['read_at'], now)}"
        if row["unreadable"]:
            found = (
                f"{read}; {count(row['unreadable'], 'pipeline')} of {row['pipelines']} cannot be read: {row['error']}"
            )
            yield Finding(f"connection {name}", False, found, "run chm partner check")
        elif is_blind(row, now):
            oldest = row["oldest_read_at"]
            behind = "never read" if oldest is None else f"last read {ago(oldest, now)}"
            found = f"{read}; of its {count(row['pipelines'], 'pipeline')}, the one furthest behind was {behind}"
            yield Finding(f"connection {name}", False, found, "run chm ingest, and see its report")
        elif row["error"]:
            yield Finding(f"connection {name}", False, f"{read}; {row['error']}", "correct the clock that is wrong")
        else:
            yield Finding(f"connection {name}", True, f"{read}, {count(row['pipelines'], 'pipeline')}")
