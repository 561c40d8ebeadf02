"""`chm rule`: alert rules, who is notified about what."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from chm_dagster.alerting.backtesting import back_test
from chm_dagster.cli.arguments import (
    SHORT,
    ClearOption,
    ClientOption,
    Fields,
    LimitOption,
    Scopes,
    complete_client,
    complete_pipeline,
    field_options,
    find_client,
    find_pipeline,
    find_rule,
    first,
    given,
    read,
    with_cleared,
)
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, chosen, say, show
from chm_dagster.domain.alerts import Evidence, NoticeKind
from chm_dagster.domain.backtests import BackTest, BackTestRequest
from chm_dagster.domain.messages import Item, Message, grouped
from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.rules import AlertRule, AlertRuleChanges, NewAlertRule, RuleType
from chm_dagster.errors import InputError
from chm_dagster.installation import open_warehouse, running
from chm_dagster.presentation.columns import Column, count, duration
from chm_dagster.warehouse.warehouse import Warehouse

app = typer.Typer(help="Alert rules: who is notified about what.", no_args_is_help=True)

_COLUMNS = (
    Column("id"),
    Column("about"),
    Column("rule_type", "when"),
    Column("threshold", rank=3),
    Column("window_minutes", "minutes", rank=2),
    Column("channel", rank=1),
    Column("destination", elastic=True),
    Column("is_enabled", "on", rank=4),
    Column("muted_until", "muted until", rank=5),
)

_FLAGS = {"rule_type": "--type"}
_SCOPE = ("client_id", "pipeline_id")

RuleArgument = Annotated[
    str, typer.Argument(metavar="RULE", help="The rule's id, or the end of it, as `chm rule list` shows it.")
]
PipelineOption = Annotated[
    str | None,
    typer.Option("--pipeline", metavar="CLIENT/PIPELINE", help="For this pipeline.", autocompletion=complete_pipeline),
]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        "--client", metavar="CLIENT", help="For all pipelines of this client.", autocompletion=complete_client
    ),
]


@app.command("list")
def list_(
    client: ClientOption = None,
    pipeline: PipelineOption = None,
    rule_type: Annotated[RuleType | None, typer.Option("--type", metavar="TYPE", help="Only this type.")] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enabled/--disabled", help="Only these; all by default.", show_default=False)
    ] = None,
    limit: LimitOption = None,
    form: FormatOption = None,
) -> None:
    """List rules, the oldest first."""
    filters = given(rule_type=rule_type, enabled=enabled)
    with open_warehouse() as warehouse:
        if client is not None:
            filters["client"] = find_client(warehouse, client).id
        if pipeline is not None:
            filters["pipeline"] = find_pipeline(warehouse, pipeline).id
        rows = _rows(warehouse, list(first(limit, warehouse.rules.list, **filters)))
    if chosen(form) is Format.TABLE:
        rows = [{**r, "id": str(r["id"])[-SHORT:], "about": r["pipeline"] or r["client"]} for r in rows]
    show(rows, form, columns=_COLUMNS)


@app.command()
def get(rule: RuleArgument, form: FormatOption = None) -> None:
    """Show one rule."""
    with open_warehouse() as warehouse:
        show(_rows(warehouse, [find_rule(warehouse, rule)])[0], form)


@app.command()
@field_options(NewAlertRule, flags=_FLAGS, leave_out=_SCOPE)
def create(
    fields: Fields, client: ScopeOption = None, pipeline: PipelineOption = None, form: FormatOption = None
) -> None:
    """Add a rule for a client (--client) or one pipeline (--pipeline)."""
    if client is None and pipeline is None:
        raise InputError("--client", "is required, unless there is --pipeline: a rule needs one of the two")
    with open_warehouse() as warehouse:
        scope = given(
            client_id=None if client is None else find_client(warehouse, client).id,
            pipeline_id=None if pipeline is None else find_pipeline(warehouse, pipeline).id,
        )
        rule = warehouse.rules.create(read(NewAlertRule, {**fields, **scope}))
        _report("created", warehouse, rule, form)


@app.command()
@field_options(AlertRuleChanges, flags=_FLAGS, leave_out=_SCOPE)
def update(rule: RuleArgument, fields: Fields, clear: ClearOption = None, form: FormatOption = None) -> None:
    """Change the fields that are given."""
    _change(rule, with_cleared(fields, clear or ()), form)


@app.command()
def disable(rule: RuleArgument, form: FormatOption = None) -> None:
    """Keep a rule, but switch it off."""
    _change(rule, {"is_enabled": False}, form, "disabled")


@app.command()
def enable(rule: RuleArgument, form: FormatOption = None) -> None:
    """Switch a disabled rule on again."""
    _change(rule, {"is_enabled": True}, form, "enabled")


@app.command()
def delete(rule: RuleArgument, form: FormatOption = None) -> None:
    """Delete a rule for good."""
    with open_warehouse() as warehouse:
        found = find_rule(warehouse, rule)
        row = _rows(warehouse, [found])[0]
        warehouse.rules.delete(found.id)
    answer(f"deleted rule {found.id}", row, form)


def _change(ref: str, changes: dict[str, Any], form: Format | None, done: str = "updated") -> None:
    with open_warehouse() as warehouse:
        before = find_rule(warehouse, ref)
        after = warehouse.rules.update(before.id, read(AlertRuleChanges, changes))
        _report("unchanged:" if after == before else done, warehouse, after, form)


def _report(what: str, warehouse: Warehouse, rule: AlertRule, form: Format | None) -> None:
    row = _rows(warehouse, [rule])[0]
    about = row["pipeline"] or row["client"]
    answer(f"{what} rule {str(rule.id)[-SHORT:]}: {rule.rule_type} of {about} to {rule.destination}", row, form)


def _rows(warehouse: Warehouse, rules: list[AlertRule]) -> list[dict[str, Any]]:
    """Rules with the slugs of their clients and pipelines."""
    scopes = Scopes(warehouse, rules)
    return [
        as_row(rule, ("client", scopes.client(rule.client_id)), ("pipeline", scopes.pipeline(rule.pipeline_id)))
        for rule in rules
    ]


_EFFECTIVE = (
    Column("id"),
    Column("rule_type", "when"),
    Column("scope"),
    Column("applies"),
    Column("why", elastic=True),
)


@app.command()
def effective(
    pipeline: Annotated[
        str, typer.Argument(metavar="CLIENT/PIPELINE", help="The pipeline.", autocompletion=complete_pipeline)
    ],
    form: FormatOption = None,
) -> None:
    """Show which rules apply to a pipeline, and why the others do not."""
    with open_warehouse() as warehouse:
        found = find_pipeline(warehouse, pipeline)
        client = warehouse.clients.get(found.client_id)
        of_client = first(None, warehouse.rules.list, client=found.client_id)
        rules = [rule for rule in of_client if rule.pipeline_id in (None, found.id)]
    own = {rule.rule_type for rule in rules if rule.pipeline_id is not None and rule.is_enabled}
    rows: list[dict[str, Any]] = []
    for rule in rules:
        scope = "client" if rule.pipeline_id is None else "pipeline"
        why = ""
        if not found.is_active:
            why = "the pipeline is disabled"
        elif not client.is_active:
            why = "the client is disabled"
        elif not rule.is_enabled:
            why = "the rule is disabled"
        elif scope == "client" and rule.rule_type in own:
            why = "a rule of the pipeline itself takes its place"
        rows.append({"id": rule.id, "rule_type": str(rule.rule_type), "scope": scope, "applies": not why, "why": why})
    if chosen(form) is Format.TABLE:
        rows = [{**row, "id": str(row["id"])[-SHORT:]} for row in rows]
    show(rows, form, columns=_EFFECTIVE, empty="No rule is about this pipeline.")


_NOISIEST = (Column("pipeline", elastic=True), Column("episodes"), Column("open_minutes", "minutes open"))
_LATEST = (
    Column("pipeline", elastic=True),
    Column("since"),
    Column("until"),
    Column("announced_at", "announced", rank=2),
    Column("failures", rank=1),
)


@app.command("test")
@field_options(BackTestRequest, flags=_FLAGS, leave_out=_SCOPE)
def test_(
    fields: Fields,
    rule: Annotated[
        str | None, typer.Argument(metavar="RULE", help="The rule's id, or the end of it; without it, --type.")
    ] = None,
    client: ScopeOption = None,
    pipeline: PipelineOption = None,
    form: FormatOption = None,
) -> None:
    """Show what a rule would have said over the last days, as it is or with other parameters. Nothing is sent.

    Without RULE, a rule of the given --type, for a client, a pipeline or all of them.
    """
    if rule is None and "rule_type" not in fields:
        raise InputError("--type", "is required, unless there is a RULE")
    with open_warehouse() as warehouse:
        scope = given(
            client_id=None if client is None else find_client(warehouse, client).id,
            pipeline_id=None if pipeline is None else find_pipeline(warehouse, pipeline).id,
        )
        found = None if rule is None else find_rule(warehouse, rule)
        request = BackTestRequest.read(read(BackTestRequest, {**fields, **scope}))
        result = back_test(warehouse, request, datetime.now(UTC), found)
    if chosen(form) is not Format.TABLE:
        show(result.model_dump(mode="json"), form)
        return
    for sentence in back_test_in_words(result):
        say(sentence)
    show([noisy.model_dump() for noisy in result.noisiest], form, "Noisiest pipelines", _NOISIEST, "No episodes.")
    if result.latest:
        show([one.model_dump() for one in result.latest[:10]], form, "Latest episodes", _LATEST)
    for sentence in result.not_considered:
        say(f"Not considered: {sentence}", style="dim")


def back_test_in_words(result: BackTest) -> list[str]:
    """What a person wants to know first."""
    said = [
        f"{result.condition.rstrip('/')}, {result.since:%Y-%m-%d} to {result.until:%Y-%m-%d}, on"
        f" {count(result.pipelines, 'pipeline')}: {count(result.episodes, 'episode')}"
        f" ({result.still_open:,} still open, {result.short_episodes:,} over within 15 min),"
        f" {count(result.messages, 'message')}.",
        f"Of {result.unknown_share:.1%} of the time, at least, nothing is known.",
    ]
    if result.delay_minutes_p50 is not None and result.delay_minutes_p95 is not None:
        p50, p95 = duration(result.delay_minutes_p50 * 60), duration(result.delay_minutes_p95 * 60)
        said.append(f"From the fault to the message: {p50} for half of them, {p95} for 95 of 100.")
    if (other := result.difference) is not None:
        said.append(
            f"The rule as it is now: {count(other.episodes_now, 'episode')}, {count(other.messages_now, 'message')};"
            f" {other.added:,} would be new, {other.removed:,} would be gone."
        )
    return said


@app.command("send-test")
def send_test(rule: RuleArgument) -> None:
    """Send a test message to the rule's receiver, whether the rule is enabled or not."""
    with running() as installation, open_warehouse() as warehouse:
        found = find_rule(warehouse, rule)
        message = message_for_test(found, Scopes(warehouse, [found]), datetime.now(UTC))
        asyncio.run(installation.channels().send(message, datetime.now(UTC)))
    answer(f"sent a test to {found.destination} by {found.channel}", {"id": message.id, "sent": True}, None)


def message_for_test(rule: AlertRule, scopes: Scopes, now: datetime) -> Message:
    """What a test of this rule sends."""
    client, _, pipeline = (scopes.pipeline(rule.pipeline_id) or f"{scopes.client(rule.client_id)}/").partition("/")
    item = Item(
        key=f"{rule.id}-{NoticeKind.TEST}-{int(now.timestamp())}",
        kind=NoticeKind.TEST,
        rule_id=rule.id,
        rule_type=rule.rule_type,
        threshold=rule.threshold,
        window_minutes=rule.window_minutes,
        episode_id=rule.id,
        client_slug=client,
        client_name=client,
        pipeline_slug=pipeline,
        pipeline_name=pipeline or "all pipelines",
        platform=Platform.CUSTOM,
        environment="prod",
        since=now,
        evidence=Evidence(),
    )
    return grouped([(rule.channel, rule.destination, item)], now)[0]
