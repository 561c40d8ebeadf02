"""`chm rule`: alert rules, when to tell whom."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from chm_dagster.cli import completion
from chm_dagster.cli.arguments import ClientOption, LimitOption, given, with_cleared
from chm_dagster.cli.moments import parse_moment
from chm_dagster.cli.names import SHORT, Scopes, find_client, find_pipeline, find_rule, first
from chm_dagster.cli.output import Format, FormatOption, answer, as_row, chosen, show
from chm_dagster.cli.stack import open_warehouse
from chm_dagster.cli.tables import Column
from chm_dagster.domain.rules import AlertRule, Channel, RuleType
from chm_dagster.errors import InputError
from chm_dagster.warehouse.warehouse import Warehouse

app = typer.Typer(help="Alert rules: when to tell whom.", no_args_is_help=True)

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

RuleArgument = Annotated[
    str, typer.Argument(metavar="RULE", help="The rule's id, or the end of it, as `chm rule list` shows it.")
]
PipelineOption = Annotated[
    str | None,
    typer.Option(
        "--pipeline", metavar="CLIENT/PIPELINE", help="About this pipeline.", autocompletion=completion.pipelines
    ),
]
ScopeOption = Annotated[
    str | None,
    typer.Option(
        "--client", metavar="CLIENT", help="About all pipelines of this client.", autocompletion=completion.clients
    ),
]
ThresholdOption = Annotated[int | None, typer.Option("--threshold", metavar="N", help="How many failures it takes.")]
WindowOption = Annotated[int | None, typer.Option("--window-minutes", metavar="N", help="Over how long.")]
MutedOption = Annotated[
    str | None, typer.Option("--muted-until", metavar="TIME", help="Tell nobody before this time; 4h means from now.")
]


@app.command("list")
def list_(
    client: ClientOption = None,
    pipeline: PipelineOption = None,
    rule_type: Annotated[RuleType | None, typer.Option("--type", metavar="TYPE", help="Only this type.")] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enabled/--disabled", help="Only these; all if left out.", show_default=False)
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
def create(
    rule_type: Annotated[
        RuleType,
        typer.Option("--type", metavar="TYPE", help=f"What is watched: {', '.join(RuleType)}."),
    ],
    channel: Annotated[Channel, typer.Option("--channel", help="By which way it tells.")],
    destination: Annotated[
        str, typer.Option("--destination", help="Whom: '#channel', an address, the name of an endpoint.")
    ],
    client: ScopeOption = None,
    pipeline: PipelineOption = None,
    threshold: ThresholdOption = None,
    window_minutes: WindowOption = None,
    muted_until: MutedOption = None,
    form: FormatOption = None,
) -> None:
    """Add a rule about a client (--client) or one pipeline (--pipeline)."""
    if client is None and pipeline is None:
        raise InputError("--client", "missing, as is --pipeline; a rule is about one of them")
    fields = given(
        rule_type=rule_type,
        channel=channel,
        destination=destination,
        threshold=threshold,
        window_minutes=window_minutes,
        muted_until=_muted(muted_until),
    )
    with open_warehouse() as warehouse:
        if client is not None:
            fields["client_id"] = find_client(warehouse, client).id
        if pipeline is not None:
            fields["pipeline_id"] = find_pipeline(warehouse, pipeline).id
        _tell("created", warehouse, warehouse.rules.create(fields), form)


@app.command()
def update(
    rule: RuleArgument,
    channel: Annotated[Channel | None, typer.Option("--channel", help="By which way it tells.")] = None,
    destination: Annotated[str | None, typer.Option("--destination", help="Whom it tells.")] = None,
    threshold: ThresholdOption = None,
    window_minutes: WindowOption = None,
    muted_until: MutedOption = None,
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="FIELD", help="Empty this field, such as muted-until; may be repeated."),
    ] = None,
    form: FormatOption = None,
) -> None:
    """Change what is given; everything else stays."""
    changes = given(
        channel=channel,
        destination=destination,
        threshold=threshold,
        window_minutes=window_minutes,
        muted_until=_muted(muted_until),
    )
    _change(rule, with_cleared(changes, clear or ()), form)


@app.command()
def disable(rule: RuleArgument, form: FormatOption = None) -> None:
    """Keep a rule, but evaluate it no longer."""
    _change(rule, {"is_enabled": False}, form, "disabled")


@app.command()
def enable(rule: RuleArgument, form: FormatOption = None) -> None:
    """Evaluate a disabled rule again."""
    _change(rule, {"is_enabled": True}, form, "enabled")


@app.command()
def delete(rule: RuleArgument, form: FormatOption = None) -> None:
    """Delete a rule for good. Clients and pipelines can only be disabled."""
    with open_warehouse() as warehouse:
        found = find_rule(warehouse, rule)
        row = _rows(warehouse, [found])[0]
        warehouse.rules.delete(found.id)
    answer(f"deleted rule {found.id}", row, form)


def _change(ref: str, changes: dict[str, Any], form: Format | None, done: str = "updated") -> None:
    with open_warehouse() as warehouse:
        before = find_rule(warehouse, ref)
        after = warehouse.rules.update(before.id, changes)
        _tell("unchanged:" if after == before else done, warehouse, after, form)


def _tell(what: str, warehouse: Warehouse, rule: AlertRule, form: Format | None) -> None:
    row = _rows(warehouse, [rule])[0]
    about = row["pipeline"] or row["client"]
    answer(f"{what} rule {str(rule.id)[-SHORT:]}: {rule.rule_type} of {about} to {rule.destination}", row, form)


def _rows(warehouse: Warehouse, rules: list[AlertRule]) -> list[dict[str, Any]]:
    """Rules with the slugs of what they are about."""
    scopes = Scopes(warehouse, rules)
    return [
        as_row(rule, ("client", scopes.client(rule.client_id)), ("pipeline", scopes.pipeline(rule.pipeline_id)))
        for rule in rules
    ]


def _muted(text: str | None) -> datetime | None:
    return None if text is None else parse_moment(text, "muted_until", datetime.now(UTC), ahead=True)
