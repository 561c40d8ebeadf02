"""Bring the inventory to what a file says of it, in one transaction: all of it, or, after any error, none of it."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from chm_dagster.domain.fields import Form, Problem, read_changes, read_new, refuse
from chm_dagster.domain.forms import CLIENT, PIPELINE, RULE, pipeline_problems, rule_problems
from chm_dagster.domain.inventory import Client, Pipeline
from chm_dagster.domain.rules import AlertRule
from chm_dagster.errors import Conflict, InputError
from chm_dagster.ingestion.inventory_file import Wanted, document
from chm_dagster.warehouse.paging import every
from chm_dagster.warehouse.warehouse import Inventory, Warehouse

Thing = Client | Pipeline | AlertRule
Identity = tuple[str, Any, Any, Any]
"""What a rule goes by, because it has no slug: what it is about, its type, its channel and its destination."""

_FORMS: Mapping[str, Form] = {
    "client": CLIENT,
    "pipeline": PIPELINE,
    "rule": {name: field for name, field in RULE.items() if name not in ("client_id", "pipeline_id")},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What is created, or updated. `fields` are (old, new) by name; old is None where there was nothing."""

    action: str
    kind: str
    key: str
    line: int
    fields: Mapping[str, tuple[Any, Any]]


@dataclasses.dataclass(slots=True)
class ApplyReport:
    """What came of a file. What is in the inventory but not in the file is not counted: it stays."""

    changes: list[Change] = dataclasses.field(default_factory=list)
    unchanged: int = 0

    def count(self, action: str) -> int:
        """How many things were created, or updated."""
        return sum(change.action == action for change in self.changes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """What the file wants, what there is, and the fields of it that are different or new, fit to be stored."""

    wanted: Wanted
    current: Thing | None
    news: Mapping[str, Any]


def apply(warehouse: Warehouse, wanted: Sequence[Wanted], *, rehearsal: bool = False) -> ApplyReport:
    """Create what is new and change what is different. A rehearsal does all of it and takes it back.

    Raises InputError with everything that is wrong, by line, or Conflict; then nothing was written.
    """
    report = ApplyReport()
    with warehouse.transaction(rehearsal=rehearsal) as inventory:
        known = _Known(inventory)
        for step in _steps(known, wanted):
            if step.current is not None and not step.news:
                report.unchanged += 1
                continue
            with _placed(step.wanted):
                known.take(step)
            report.changes.append(_change(step))
    return report


def export(warehouse: Warehouse, *, full: bool = False) -> dict[str, Any]:
    """The whole inventory as a document that `apply` finds nothing to do for."""
    known = _Known(Inventory(warehouse.clients, warehouse.pipelines, warehouse.rules))
    rules = [rule for group in known.rules.values() for rule in group]
    return document(known.clients.values(), known.pipelines.values(), rules, full=full)


class _Known:
    """The inventory as it stands, by what the file calls things."""

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
        """What there is of this already. `seen` counts the rules that were looked for, by identity."""
        if wanted.kind == "client":
            return self.clients.get(wanted.key)
        if wanted.kind == "pipeline":
            return self.pipelines.get(wanted.key)
        clean = read_new(wanted.fields, _FORMS["rule"])
        identity = (wanted.key, clean["rule_type"], clean["channel"], clean["destination"])
        place = seen[identity]
        seen[identity] += 1
        return self.rules[identity][place] if place < len(self.rules[identity]) else None

    def take(self, step: _Step) -> None:
        """Create or update one thing. Raises InputError, Conflict."""
        current, wanted = step.current, step.wanted
        if isinstance(current, Client):
            self._inventory.clients.update(current.id, step.news)
        elif isinstance(current, Pipeline):
            self._inventory.pipelines.update(current.id, step.news)
        elif isinstance(current, AlertRule):
            self._inventory.rules.update(current.id, step.news)
        else:
            self._create(wanted, step.news)

    def _create(self, wanted: Wanted, fields: Mapping[str, Any]) -> None:
        if wanted.kind == "client":
            new = self._inventory.clients.create(fields["name"], wanted.key)
            self._ids[wanted.key] = new.id
            if fields.get("is_active") is False:
                self._inventory.clients.disable(new.id)
        elif wanted.kind == "pipeline":
            client, _, slug = wanted.key.partition("/")
            self._ids[wanted.key] = self._inventory.pipelines.create(self._ids[client], {**fields, "slug": slug}).id
        else:
            scope = "pipeline_id" if "/" in wanted.key else "client_id"
            self._inventory.rules.create({**fields, scope: self._ids[wanted.key]})


def _steps(known: _Known, wanted: Sequence[Wanted]) -> list[_Step]:
    """What is to be done, in order. Raises InputError with all problems of all entries."""
    problems: list[Problem] = []
    steps: list[_Step] = []
    seen: dict[Identity, int] = defaultdict(int)
    for w in wanted:
        try:
            current = known.find(w, seen)
            steps.append(_Step(w, current, _news(w, current)))
        except InputError as refused:
            problems.extend((w.place(field), issue) for field, issue in refused.details)
    refuse(problems)
    return steps


def _news(wanted: Wanted, current: Thing | None) -> dict[str, Any]:
    """The fields that are different or new, fit to be stored. Raises InputError."""
    form = _FORMS[wanted.kind]
    clean = read_new(wanted.fields, form) if current is None else read_changes(wanted.fields, form)
    whole = {name: clean.get(name, getattr(current, name, None)) for name in form}
    if wanted.kind == "pipeline":
        refuse(pipeline_problems(whole))
    elif wanted.kind == "rule":
        # A rule is about whatever it stands under.
        refuse(rule_problems({**whole, "client_id": wanted.key}))
    if current is None:
        return clean
    return {name: value for name, value in clean.items() if value != getattr(current, name)}


def _change(step: _Step) -> Change:
    old = {name: getattr(step.current, name, None) for name in step.news}
    wanted, fields = step.wanted, {name: (old[name], value) for name, value in step.news.items()}
    key = wanted.key
    if wanted.kind == "rule":
        key = f"{key}: {wanted.fields['rule_type']} to {wanted.fields['channel']} {wanted.fields['destination']}"
    return Change("create" if step.current is None else "update", wanted.kind, key, wanted.line, fields)


@contextmanager
def _placed(wanted: Wanted) -> Iterator[None]:
    """Name the line in whatever the database refuses."""
    try:
        yield
    except InputError as refused:
        (field, issue), *others = [(wanted.place(field), issue) for field, issue in refused.details]
        raise InputError(field, issue, *others) from None
    except Conflict as taken:
        raise Conflict(wanted.place(taken.field), taken.issue) from None
