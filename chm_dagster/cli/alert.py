"""`chm alert`: what alert rules have found, and the messages about it."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from chm_dagster.alerting.delivering import deliver
from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.cli.arguments import (
    SHORT,
    ClientOption,
    TimezoneOption,
    complete_pipeline,
    find_client,
    find_pipeline,
    given,
    parse_time,
)
from chm_dagster.cli.output import Format, FormatOption, answer, chosen, say, show
from chm_dagster.domain.messages import Message
from chm_dagster.errors import Busy, InputError, NotFound
from chm_dagster.installation import configured, open_warehouse, running
from chm_dagster.presentation.alerts import plain, subject
from chm_dagster.presentation.columns import (
    EPISODES,
    MESSAGES,
    PAST_EPISODES,
    Question,
    Row,
    count,
    for_people,
    to_the_minute,
)
from chm_dagster.warehouse.api_uptime import api_state
from chm_dagster.warehouse.outbox import Outbox, acknowledge
from chm_dagster.warehouse.warehouse import Warehouse

app = typer.Typer(help="What alert rules have found: open episodes and their messages.", no_args_is_help=True)

_MIN_CHARS = 4
"""So many characters of an id's end name it, if no other id ends so."""

PipelineOption = Annotated[
    str | None,
    typer.Option("--pipeline", metavar="CLIENT/PIPELINE", help="Only this pipeline.", autocompletion=complete_pipeline),
]
MessageArgument = Annotated[
    str, typer.Argument(metavar="MESSAGE", help="Its id, or the end of it, as `chm alert messages` shows it.")
]


@app.command("list")
def list_(client: ClientOption = None, pipeline: PipelineOption = None, form: FormatOption = None) -> None:
    """List the open episodes, the longest first. Exit code 1 if there are any."""
    with open_warehouse() as warehouse:
        rows = warehouse.ask("open_episodes", **_scope(warehouse, client, pipeline))
    _show(rows, form, EPISODES, "episode_id")
    if rows:
        raise typer.Exit(1)


@app.command()
def history(
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Over since this time: 24h, yesterday, or a date.")
    ] = "30d",
    timezone: TimezoneOption = None,
    client: ClientOption = None,
    pipeline: PipelineOption = None,
    form: FormatOption = None,
) -> None:
    """List the episodes that are over, the latest first. A rule keeps its last 200, for 90 days.

    The messages that were delivered are in Dagster: materializations of the asset alert_notifications.
    """
    begin = parse_time(since, "--since", datetime.now(UTC), zone=timezone)
    with open_warehouse() as warehouse:
        rows = warehouse.ask("past_episodes", since=begin, **_scope(warehouse, client, pipeline))
    _show(rows, form, PAST_EPISODES, "episode_id")


@app.command()
def ack(
    episode: Annotated[str, typer.Argument(metavar="EPISODE", help="Its id, or the end of it, as the message shows.")],
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who takes care of it.")] = "",
) -> None:
    """Acknowledge an episode: there are no more reminders of it; its end is still announced."""
    with open_warehouse() as warehouse:
        rows = warehouse.ask("open_episodes")
        unknown = NotFound(f"no open episode '{episode}'; `chm alert list` shows them")
        found = _named(episode, "episode", [row["episode_id"] for row in rows], unknown)
        if not acknowledge(warehouse.engine, found, by, datetime.now(UTC)):
            raise unknown
    row = next(row for row in rows if row["episode_id"] == found)
    about = f"{row['client_slug']}/{row['pipeline_slug']}: {row['rule_type']}"
    answer(f"acknowledged {about}", {"id": found, "acknowledged_by": by}, None)


@app.command()
def messages(client: ClientOption = None, form: FormatOption = None) -> None:
    """List the messages that no receiver has accepted yet, the oldest first; those to the operator come last."""
    with open_warehouse() as warehouse:
        rows = warehouse.ask("waiting_messages", **_scope(warehouse, client, None))
    to_operator = [] if client else [_about_chm(message) for message in configured().operator().messages()]
    _show([*rows, *to_operator], form, MESSAGES, "message_id")


@app.command()
def retry(message: MessageArgument) -> None:
    """Have a message tried anew, for a day from now on, at the present receivers of its rules."""
    _change(message, "to be sent again:", lambda outbox, found: outbox.retry(found, datetime.now(UTC)))


@app.command()
def drop(message: MessageArgument) -> None:
    """Drop a message that no receiver has accepted: it is not sent any more."""
    _change(message, "dropped", Outbox.drop)


@app.command()
def inbox(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most this many.")] = 10,
    form: FormatOption = None,
) -> None:
    """Show what rules with the channel inbox have sent, the latest last. It is kept in CHM's home, also as a page."""
    found, board = configured().inbox(), configured().board_url
    shown = found.messages()[:limit][::-1]
    if chosen(form) is not Format.TABLE:
        rows = [{"id": m.id, "created_at": m.created_at, "subject": subject(m), "text": plain(m, board)} for m in shown]
        show(rows, form)
        return
    for message in shown:
        say(f"--- {to_the_minute(message.created_at)} UTC: {subject(message)}\n\n{plain(message, board)}")
    say(f"The page of them: {found.page}" if shown else "Nothing was sent to the inbox yet.")


@app.command()
def run(form: FormatOption = None) -> None:
    """Evaluate all rules now and send what is due, as the sensor in Dagster does every 30 seconds.

    Exit code 1 if a message could not be sent.
    """
    with running() as installation, open_warehouse() as warehouse:
        operator = installation.operator()
        operator.look(warehouse.ask("connections"), datetime.now(UTC), api_state(warehouse.engine))
        report = evaluate_rules(warehouse.engine)
        sent = deliver(warehouse.engine, installation.channels(), lambda: datetime.now(UTC), operator=operator)
    if report is None or sent is None:
        raise Busy("another process is evaluating the rules or delivering; try again in a minute")
    failed = [*sent.postponed, *sent.undeliverable]
    row = {"open_episodes": report.open_episodes, "delivered": len(sent.delivered), "failed": [m.error for m in failed]}
    answer(f"{count(report.open_episodes, 'open episode')}, {count(len(sent.delivered), 'message')} sent", row, form)
    if failed:
        raise typer.Exit(1)


def _about_chm(message: Message) -> Row:
    """A message to the operator as a row of the query `waiting_messages`. It is about CHM itself and no client."""
    return {
        "message_id": message.id,
        "channel": message.channel,
        "destination": message.destination,
        "state": "undeliverable" if message.next_at is None else "waiting",
        "created_at": message.created_at,
        "next_at": message.next_at,
        "attempts": message.attempts,
        "error": message.error or None,
        "notices": len(message.notes),
        "clients": None,
    }


def _scope(warehouse: Warehouse, client: str | None, pipeline: str | None) -> dict[str, Any]:
    """The parameters of a named query. Raises NotFound, InputError for a pipeline of another client."""
    slug = None if client is None else find_client(warehouse, client).slug
    if pipeline is None:
        return given(client_slug=slug)
    found = find_pipeline(warehouse, pipeline)
    if slug not in (None, found.client_slug):
        raise InputError("--pipeline", "is a pipeline of another client; leave --client out")
    return {"client_slug": found.client_slug, "pipeline_slug": found.slug}


def _show(rows: Sequence[Row], form: Format | None, question: Question, key: str) -> None:
    if chosen(form) is Format.TABLE:
        rows = [{**row, key: str(row[key])[-SHORT:]} for row in for_people(rows)]
    show(rows, form, columns=question.columns, empty=question.empty)


def _named(given_id: str, what: str, ids: Sequence[UUID], unknown: NotFound) -> UUID:
    """The id that is given, in full or by its end. Raises InputError if several end so, else what is given."""
    found = {one for one in ids if len(given_id) >= _MIN_CHARS and str(one).endswith(given_id.lower())}
    if len(found) > 1:
        raise InputError(what, f"{len(found)} ids end in {given_id}; give more of it")
    if not found:
        raise unknown
    return found.pop()


def _change(message: str, done: str, change: Callable[[Outbox, UUID], bool]) -> None:
    with open_warehouse() as warehouse:
        rows = warehouse.ask("waiting_messages")
        unknown = NotFound(f"no message '{message}' waits; `chm alert messages` shows them")
        found = _named(message, "message", [row["message_id"] for row in rows], unknown)
        if not change(Outbox(warehouse.engine), found):
            raise unknown
    row = next(row for row in rows if row["message_id"] == found)
    answer(f"{done} the message to {row['destination']} by {row['channel']}", {"id": found}, None)
