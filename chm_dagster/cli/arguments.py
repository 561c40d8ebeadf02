"""Arguments and options that several commands share, how they follow from the fields of a noun, and how a client, a
pipeline or a rule is looked up by slug or id.
"""

import difflib
import enum
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import typer

from chm_dagster.domain.clients import Client
from chm_dagster.domain.fields import read_time
from chm_dagster.domain.nouns import Input, base_type
from chm_dagster.domain.pipelines import Environment, Pipeline
from chm_dagster.domain.rules import AlertRule
from chm_dagster.domain.schedule import TimeZone
from chm_dagster.domain.validation import read_value, shown
from chm_dagster.errors import ChmError, InputError, NotFound
from chm_dagster.installation import load_settings, open_warehouse
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse.paging import MAX_LIMIT, Page, every
from chm_dagster.warehouse.scope import check_at
from chm_dagster.warehouse.warehouse import Warehouse

T = TypeVar("T")
SHORT = 8
"""How many trailing characters of a rule's id a table shows."""


def first(limit: int | None, ask: Callable[..., Page[T]], **filters: Any) -> Iterator[T]:
    """The first items of a list, or all without a limit."""
    return islice(every(ask, size=min(limit or MAX_LIMIT, MAX_LIMIT), **filters), limit)


def find_client(warehouse: Warehouse, ref: str) -> Client:
    """The client with this slug or id. Raises NotFound with a suggestion."""
    try:
        return warehouse.clients.get(ref)
    except NotFound as error:
        known = [client.slug for client in every(warehouse.clients.list, active=None)]
        raise _did_you_mean(error, ref, "client", known) from None


def find_pipeline(warehouse: Warehouse, ref: str) -> Pipeline:
    """The pipeline with this key (`client/pipeline`) or id. Raises NotFound with a suggestion."""
    try:
        return warehouse.pipelines.get(ref)
    except NotFound as error:
        known = [pipeline.key for pipeline in every(warehouse.pipelines.list, active=None)]
        named = [key for key in known if key.partition("/")[2] == ref]
        raise _did_you_mean(error, ref, "pipeline", known, named[:3]) from None


def _did_you_mean(error: NotFound, ref: str, noun: str, known: list[str], meant: Sequence[str] = ()) -> NotFound:
    close = meant or difflib.get_close_matches(ref[:200].lower(), known, n=1)
    if close:
        return NotFound(f"no {noun} '{shown(ref)}'; did you mean {' or '.join(close)}?")
    return error if known else NotFound(f"no {noun} '{shown(ref)}': there are none yet; see `chm {noun} create --help`")


def find_rule(warehouse: Warehouse, ref: str) -> AlertRule:
    """The rule whose id is or ends with this. Raises NotFound, and InputError if several do."""
    if len(ref) == 36:
        return warehouse.rules.get(ref)
    ends = ref.lower()
    found = [rule for rule in every(warehouse.rules.list) if len(ends) >= 4 and str(rule.id).endswith(ends)]
    if len(found) > 1:
        raise InputError("rule", f"{len(found)} ids end in {shown(ref)}; give more of it")
    if not found:
        raise NotFound(f"no alert rule '{shown(ref)}': give its id, or the end of it, as `chm rule list` shows them")
    return found[0]


class Scopes:
    """Slugs of the clients and pipelines of rules, looked up once."""

    def __init__(self, warehouse: Warehouse, rules: Iterable[AlertRule]) -> None:
        wanted = list(rules)
        # One rule needs two queries; for many it is cheaper to list everything.
        self._clients = {id_: warehouse.clients.get(id_).slug for id_ in {r.client_id for r in wanted[:1]} if id_}
        self._pipelines = {id_: warehouse.pipelines.get(id_).key for id_ in {r.pipeline_id for r in wanted[:1]} if id_}
        if len(wanted) > 1:
            self._clients = {client.id: client.slug for client in every(warehouse.clients.list, active=None)}
            self._pipelines = {p.id: p.key for p in every(warehouse.pipelines.list, active=None)}

    def client(self, client_id: UUID | None) -> str | None:
        """The client's slug."""
        return self._clients.get(client_id) if client_id else None

    def pipeline(self, pipeline_id: UUID | None) -> str | None:
        """The pipeline's `client/pipeline`."""
        return self._pipelines.get(pipeline_id) if pipeline_id else None


def complete_client(incomplete: str) -> list[str]:
    """Slugs of clients that start with this text."""
    return _slugs("clients", "slug", incomplete)


def complete_pipeline(incomplete: str) -> list[str]:
    """Keys (`client/pipeline`) of pipelines that start with this text."""
    return _slugs("pipelines", "key", incomplete)


def _slugs(noun: str, attribute: str, incomplete: str) -> list[str]:
    from chm_dagster.warehouse.paging import every

    try:
        settings = load_settings()
        # Completion must not start a server.
        if settings.database_url is None and not EmbeddedPostgres(settings.home).is_running():
            return []
        with open_warehouse() as warehouse:
            known = [getattr(item, attribute) for item in every(getattr(warehouse, noun).list, active=None)]
    except ChmError:
        return []
    return [slug for slug in known if slug.startswith(incomplete)]


def parse_time(text: str, field: str, now: datetime, *, ahead: bool = False, zone: str | None = None) -> datetime:
    """A time from ISO 8601, from a span before `now` (`24h`; after it with `ahead`), or from `today` and the like.

    Days begin at midnight in `zone`, which is also the zone of times without an offset; by default, that of
    CHM_TIMEZONE. Raises InputError.
    """
    name = load_settings().timezone if zone is None else read_value(TimeZone, zone, "--timezone")
    return read_time(text, field, now, ahead=ahead, zone=ZoneInfo(name))


def parse_at(text: str | None, now: datetime, zone: str | None) -> datetime | None:
    """The time that a question is about, from `--at`; None: now. Raises InputError, also for a time to come."""
    at = None if text is None else parse_time(text, "--at", now, zone=zone)
    check_at(at, now, "--at")
    return at


ClientArgument = Annotated[
    str, typer.Argument(metavar="CLIENT", help="The client's slug or id.", autocompletion=complete_client)
]
PipelineArgument = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE", help="The pipeline as client/pipeline, or its id.", autocompletion=complete_pipeline
    ),
]
TimezoneOption = Annotated[
    str | None,
    typer.Option(
        "--timezone",
        metavar="ZONE",
        help="Where days begin, and the zone of times without an offset: Europe/Berlin. Default: CHM_TIMEZONE, or UTC.",
    ),
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="How it was at this time, from what is known now: 2026-11-24T09:00, 3h, yesterday. Default: now.",
    ),
]
ClientOption = Annotated[
    str | None,
    typer.Option("--client", metavar="CLIENT", help="Only this client.", autocompletion=complete_client),
]
EnvironmentOption = Annotated[Environment | None, typer.Option("--environment", help="Only this environment.")]
AllOption = Annotated[bool, typer.Option("--all", help="Include disabled ones.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most this many.")]
ExitZeroOption = Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 even if something needs attention.")]
ClearOption = Annotated[
    list[str] | None,
    typer.Option("--clear", metavar="FIELD", help="Clear this field, such as description; can be repeated."),
]

Fields = Mapping[str, Any]
"""The type of the parameter of a command that receives the fields that were given."""
_NUMBERS = (int, float)
_OWN_COMMANDS = frozenset({"is_active", "is_enabled", "maintenance"})
"""Fields that commands of their own set: enable, disable, and those of maintenance windows."""


def field_options(
    shape: type[Input], *, flags: Mapping[str, str] | None = None, leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of an input. It receives those that were given, read, as `fields`.

    `flags` renames options. Fields that have commands of their own get no option.
    """
    names = [n for n in shape.known_fields() if n not in leave_out and n not in _OWN_COMMANDS]
    options = [_option(shape, name, (flags or {}).get(name)) for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            fields = {name: _value(shape, name, value) for name, value in given.items() if value is not None}
            command(**values, fields=fields)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "fields"]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        # --format and the like come last in the help.
        required = [p for p in parameters if p.default is inspect.Parameter.empty]
        others = [p for p in parameters if p.default is not inspect.Parameter.empty]
        run.__signature__ = inspect.Signature([*required, *options, *others])  # type: ignore[attr-defined]
        return run

    return decorate


def _option(shape: type[Input], name: str, flag: str | None) -> inspect.Parameter:
    field = shape.model_fields[name]
    type_ = base_type(field)
    choices = [str(word) for word in type_] if issubclass(type_, enum.StrEnum) else []
    text = (field.description or "").replace("`", "")
    option = typer.Option(
        flag or f"--{name.replace('_', '-')}",
        metavar=None if type_ is bool else _metavar(name, type_),
        help=f"{text} One of {', '.join(choices)}." if choices else text,
    )
    plain: Any = type_ if choices or type_ in (*_NUMBERS, bool) else str
    required = field.is_required()
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[plain if required else plain | None, option],
    )


def _metavar(name: str, type_: type) -> str:
    if type_ in _NUMBERS:
        return "N"
    if issubclass(type_, enum.StrEnum):
        return name.rpartition("_")[2].upper()
    return {"datetime": "TIME", "dict": "JSON", "list": "A,B"}.get(type_.__name__, "TEXT")


def _value(shape: type[Input], name: str, value: Any) -> Any:
    type_ = base_type(shape.model_fields[name])
    if type_ is list:
        return [part for part in value.split(",") if part.strip()]
    if type_ is not dict:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise InputError(f"--{name}", "must be JSON: an object such as '{\"rows\": 5}'") from None


def read(shape: type[Input], fields: Fields) -> Input:
    """The fields of a command as an input. Times without an offset are in UTC. Raises InputError."""
    return shape.read(fields, zone=UTC)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: leaving one out means nothing."""
    return {name: value for name, value in options.items() if value is not None}


def with_cleared(changes: Mapping[str, Any], clear: Iterable[str]) -> dict[str, Any]:
    """The changes and, as None, the fields to clear, spelled like options or like fields.

    Raises InputError for a field that is both set and cleared, and if there is nothing to change.
    """
    cleared = [name.strip().removeprefix("--").replace("-", "_") for name in clear]
    for name in cleared:
        if name in changes:
            raise InputError(name, "is set and cleared at once; leave one of the two out")
    if not changes and not cleared:
        raise InputError("options", "nothing to change; see --help for what can be")
    return {**changes, **dict.fromkeys(cleared)}
