"""Apply a file to the inventory in one transaction (all of it or, after any error, nothing), and discovered pipelines
as such a file.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from chm_dagster.domain.clients import Client, ClientChanges, NewClient
from chm_dagster.domain.fields import free_slug, slugify
from chm_dagster.domain.limits import MAX_NAME_CHARS
from chm_dagster.domain.nouns import Changes, Input, New, Noun
from chm_dagster.domain.pipelines import NewPipelineOfClient, Pipeline, PipelineChanges
from chm_dagster.domain.rules import AlertRule, AlertRuleChanges, NewAlertRule
from chm_dagster.domain.validation import Problem, refuse
from chm_dagster.errors import ConfigError, Conflict, InputError
from chm_dagster.ingestion.inventory_file import Wanted, document
from chm_dagster.partners.connections import partner_of
from chm_dagster.partners.port import Partner, SourcePipeline
from chm_dagster.warehouse.paging import every
from chm_dagster.warehouse.warehouse import Inventory, Warehouse

Thing = Client | Pipeline | AlertRule
Identity = tuple[str, Any, Any, Any]
"""What identifies a rule, which has no slug: its client or pipeline, its type, its channel and its destination."""

_NEW: Mapping[str, type[New]] = {"client": NewClient, "pipeline": NewPipelineOfClient, "rule": NewAlertRule}
_CHANGES: Mapping[str, type[Changes]] = {
    "client": ClientChanges,
    "pipeline": PipelineChanges,
    "rule": AlertRuleChanges,
}
_NOUNS: Mapping[str, type[Noun]] = {"client": Client, "pipeline": Pipeline, "rule": AlertRule}
_IDENTIFYING = ("slug", "client_id", "pipeline_id")
"""Fields that follow from the position of an entry in the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Something created or updated. `fields` are (old, new) by name; old is None where there was nothing."""

    action: str
    kind: str
    key: str
    line: int
    fields: Mapping[str, tuple[Any, Any]]


@dataclasses.dataclass(slots=True)
class ApplyReport:
    """What applying a file changed. What is in the inventory but not in the file stays, and is not counted."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    unchanged: int = 0
    warnings: list[str] = dataclasses.field(default_factory=list)

    def count(self, action: str) -> int:
        """How many were created, or updated."""
        return sum(change.action == action for change in self.changes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """The entry of the file, the existing row, the input, and the fields that differ."""

    wanted: Wanted
    current: Thing | None
    read: Input
    news: Mapping[str, Any]


def apply(warehouse: Warehouse, wanted: Sequence[Wanted], *, dry_run: bool = False) -> ApplyReport:
    """Create what is new and change what is different. A dry run does all of it and rolls it back.

    Raises InputError with everything that is wrong, by line, or Conflict; then nothing was written.
    """
    report = ApplyReport()
    with warehouse.transaction(dry_run=dry_run) as inventory:
        known = _Known(inventory)
        for step in _steps(known, wanted):
            if step.current is not None and not step.news:
                report.unchanged += 1
                continue
            with _placed(step.wanted):
                known.take(step)
            report.changes.append(_change(step))
            report.warnings.extend(_warnings(inventory, step))
    return report


def _warnings(inventory: Inventory, step: _Step) -> list[str]:
    """Whether a client was given a name that differs from another one's by case only."""
    if step.wanted.kind != "client" or "name" not in step.news:
        return []
    client = inventory.clients.get(step.wanted.key)
    return [
        step.wanted.place("name") + f": {other.lookalike_warning}" for other in inventory.clients.lookalikes(client)
    ]


def export(warehouse: Warehouse, *, full: bool = False) -> dict[str, Any]:
    """The whole inventory as a document. Applying it changes nothing."""
    known = _Known(Inventory(warehouse.clients, warehouse.pipelines, warehouse.rules))
    rules = [rule for group in known.rules.values() for rule in group]
    return document(known.clients.values(), known.pipelines.values(), rules, full=full)


class _Known:
    """The present inventory, by the names in the file."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self.clients = {client.slug: client for client in every(inventory.clients.list, active=None)}
        self.pipelines = {pipeline.key: pipeline for pipeline in every(inventory.pipelines.list, active=None)}
        self._names: dict[UUID, str] = {client.id: slug for slug, client in self.clients.items()}
        self._names |= {pipeline.id: key for key, pipeline in self.pipelines.items()}
        self._ids = {name: id_ for id_, name in self._names.items()}
        self.rules: dict[Identity, list[AlertRule]] = defaultdict(list)
        # Several rules may share an identity if all but one are disabled: the enabled one is the first.
        for rule in sorted(every(inventory.rules.list), key=lambda rule: not rule.is_enabled):
            self.rules[self._identity(rule)].append(rule)

    def _identity(self, rule: AlertRule) -> Identity:
        owner = rule.pipeline_id or rule.client_id
        assert owner is not None  # noqa: S101 - a rule is about something
        return (self._names[owner], rule.rule_type, rule.channel, rule.destination)

    def find(self, wanted: Wanted, seen: dict[Identity, int]) -> Thing | None:
        """What exists already. `seen` counts the rules that were looked up, by identity."""
        if wanted.kind == "client":
            return self.clients.get(wanted.key)
        if wanted.kind == "pipeline":
            return self.pipelines.get(wanted.key)
        type_, channel, destination = (
            str(wanted.fields.get(name)).strip() for name in ("rule_type", "channel", "destination")
        )
        identity = (wanted.key, type_, channel, destination)
        place = seen[identity]
        seen[identity] += 1
        return self.rules[identity][place] if place < len(self.rules[identity]) else None

    def take(self, step: _Step) -> None:
        """Create or update one thing. Raises InputError, Conflict."""
        inventory, kind = self._inventory, step.wanted.kind
        nouns: Mapping[str, Any] = {
            "client": inventory.clients,
            "pipeline": inventory.pipelines,
            "rule": inventory.rules,
        }
        if step.current is not None:
            nouns[kind].update(step.current.id, step.read)
        elif kind == "pipeline":
            inventory.pipelines.create(step.wanted.key.partition("/")[0], step.read)
        else:
            nouns[kind].create(step.read)


def _steps(known: _Known, wanted: Sequence[Wanted]) -> list[_Step]:
    """The steps to take, in order. Raises InputError with all problems of all entries."""
    problems: list[Problem] = []
    steps: list[_Step] = []
    seen: dict[Identity, int] = defaultdict(int)
    for w in wanted:
        try:
            current = known.find(w, seen)
            steps.append(_step(w, current))
        except InputError as refused:
            problems.extend((w.place(field), issue) for field, issue in refused.details)
    refuse(problems)
    return steps


def _step(wanted: Wanted, current: Thing | None) -> _Step:
    """Read the fields of one thing, once. Raises InputError."""
    if current is None:
        read: Input = _NEW[wanted.kind].read({**wanted.fields, **_place_of(wanted)})
        _NOUNS[wanted.kind].check(read.given())
        news = {name: value for name, value in read.given().items() if name not in _IDENTIFYING}
    else:
        read = _CHANGES[wanted.kind].read(wanted.fields)
        current.check({**current.as_dict(), **read.given()})
        news = current.news(read.given())
    return _Step(wanted, current, read, news)


def _place_of(wanted: Wanted) -> dict[str, str]:
    """The name or scope of a new entry, which follows from its position in the file."""
    if wanted.kind == "rule":
        return {"pipeline_id" if "/" in wanted.key else "client_id": wanted.key}
    return {"slug": wanted.key.rpartition("/")[2]}


def _change(step: _Step) -> Change:
    old = {name: getattr(step.current, name, None) for name in step.news}
    wanted, fields = step.wanted, {name: (old[name], value) for name, value in step.news.items()}
    key = wanted.key
    if wanted.kind == "rule":
        key = f"{key}: {wanted.fields['rule_type']} to {wanted.fields['channel']} {wanted.fields['destination']}"
    return Change("create" if step.current is None else "update", wanted.kind, key, wanted.line, fields)


@contextmanager
def _placed(wanted: Wanted) -> Iterator[None]:
    """Add the line to errors of the database."""
    try:
        yield
    except InputError as refused:
        (field, issue), *others = [(wanted.place(field), issue) for field, issue in refused.details]
        raise InputError(field, issue, *others) from None
    except Conflict as taken:
        raise Conflict(wanted.place(taken.field), taken.issue) from None


_MAX_SUFFIX = 60


def lacking(
    found: Iterable[SourcePipeline], inventory: Iterable[Pipeline], partner: Partner, partners: Mapping[str, Partner]
) -> list[SourcePipeline]:
    """What was found and is not in the inventory, under whichever client; a disabled pipeline is in it on purpose."""
    known = {p.external_id for p in inventory if p.external_id is not None and _tells_of(p, partner, partners)}
    return [pipeline for pipeline in found if pipeline.external_id not in known]


def _tells_of(pipeline: Pipeline, partner: Partner, partners: Mapping[str, Partner]) -> bool:
    try:
        return partner_of(pipeline, partners).name == partner.name
    except ConfigError:
        return False


def as_inventory(
    found: Sequence[SourcePipeline], partner: Partner, client: tuple[str, str], taken: Iterable[str] = ()
) -> dict[str, Any]:
    """The pipelines as inventory YAML holds them, under one client (slug, name). `taken` are slugs that are in use.

    Names that more than one pipeline has are distinguished by the pipelines' ids. Raises ConfigError for pipelines
    whose platform is not known.
    """
    if partner.platform is None and any(pipeline.platform is None for pipeline in found):
        raise ConfigError(f"connection {partner.name} does not say where its pipelines run; give it a platform")
    slug, name = client
    names = [_short(pipeline.name) for pipeline in found]
    pipelines: dict[str, Any] = {}
    used = set(taken)
    for pipeline, short in zip(found, names, strict=True):
        suffix = "" if names.count(short) == 1 else f" ({pipeline.external_id})"[-_MAX_SUFFIX:]
        label = f"{_short(short, MAX_NAME_CHARS - len(suffix))}{suffix}"
        key = free_slug(slugify(label) or slugify(pipeline.external_id) or "pipeline", used)
        used.add(key)
        pipelines[key] = {
            "name": label,
            "platform": str(pipeline.platform or partner.platform),
            "connection": partner.name,
            "external_id": pipeline.external_id,
            "pipeline_type": pipeline.pipeline_type.value,
        }
    return {"clients": {slug: {"name": name, "pipelines": pipelines}}}


def _short(name: str, limit: int = MAX_NAME_CHARS) -> str:
    return " ".join(name.split())[:limit].strip()
