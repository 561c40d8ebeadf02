"""The inventory as one YAML file: clients by slug, each with its pipelines by slug, both with their alert rules.

    clients:
      acme:
        name: Acme GmbH
        pipelines:
          orders:
            name: Daily orders
            platform: airflow
            pipeline_type: ingestion
            external_id: orders_daily
            rules:
              - {rule_type: on_failure, channel: slack, destination: "#acme"}

What is left out does not change; null clears a field. Text is read as it is spelled: `no` and `007` are text here.
Top-level names that begin with `x-` may hold anchors for YAML's `<<: *anchor`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import yaml

from chm_dagster import yaml_document
from chm_dagster.domain.clients import Client, ClientChanges
from chm_dagster.domain.fields import is_slug
from chm_dagster.domain.nouns import base_type
from chm_dagster.domain.pipelines import Pipeline, PipelineChanges
from chm_dagster.domain.rules import AlertRule, AlertRuleChanges
from chm_dagster.domain.validation import Problem, refuse, shown, unknown_field
from chm_dagster.yaml_document import line_of

CLIENT_FIELDS = ClientChanges.known_fields()
PIPELINE_FIELDS = PipelineChanges.known_fields()
RULE_FIELDS = tuple(name for name in AlertRuleChanges.known_fields() if name not in ("client_id", "pipeline_id"))
_FIELDS = {**Client.model_fields, **Pipeline.model_fields, **AlertRule.model_fields}
_LISTS = frozenset(name for name, field in _FIELDS.items() if base_type(field) is list)
_NUMBERS = frozenset(name for name, field in _FIELDS.items() if base_type(field) is int) | {"minutes"}
_FLAGS = frozenset(name for name, field in _FIELDS.items() if base_type(field) is bool)

HEADER = """\
# The inventory of CHM: clients by slug, their pipelines by slug, and alert rules of both.
# `chm inventory apply -f FILE` creates what is new here and changes what is different. What is left out stays as it is;
# null clears a field; is_active: false disables. Nothing is ever deleted.
"""

_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """An entry of the file; `kind` is client, pipeline or rule.

    `key` is the slug of a client or `client/pipeline`; of a rule, that of what it is about. `fields` are as written,
    `lines` where each of them stands.
    """

    kind: str
    key: str
    line: int
    fields: Mapping[str, Any]
    lines: Mapping[str, int]

    def place(self, field: str) -> str:
        """The position of a field, or where it belongs, for a message."""
        noun = " rule" if self.kind == "rule" else ""
        return f"line {self.lines.get(field, self.line)}: {self.key}{noun}: {field}"


def parse(text: str) -> list[Wanted]:
    """The entries of the file: each client, then its rules, then its pipelines, each with its rules.

    Raises InputError with everything that is wrong with the form of the file, by line.
    """
    reader = _Reader()
    reader.read(yaml_document.compose(text))
    refuse(reader.problems())
    return reader.found


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    line: int
    value: yaml.Node


class _Reader:
    """Reads the nodes, and collects entries and problems."""

    def __init__(self) -> None:
        self.found: list[Wanted] = []
        self._problems: list[tuple[int, str, str]] = []
        self._mappings: dict[int, dict[str, _Pair]] = {}

    def read(self, root: yaml.Node | None) -> None:
        """Read the whole file."""
        top = {} if root is None else self._mapping(root, "file")
        self._check_names("", {name: pair for name, pair in top.items() if not name.startswith("x-")}, ("clients",))
        if "clients" not in top and (root is None or isinstance(root, yaml.MappingNode)):
            self._problem(1, "clients", "missing; a file begins with it: see `chm inventory export`")
        for slug, pair in self._slugs(top.get("clients"), "clients"):
            self._client(slug, pair)

    def _client(self, slug: str, pair: _Pair) -> None:
        content = self._mapping(pair.value, slug)
        self._check_names(slug, content, (*CLIENT_FIELDS, "pipelines", "rules"))
        self._add("client", slug, pair.line, content, CLIENT_FIELDS)
        self._rules(slug, content.get("rules"))
        for name, inner in self._slugs(content.get("pipelines"), f"{slug}: pipelines"):
            key = f"{slug}/{name}"
            fields = self._mapping(inner.value, key)
            self._check_names(key, fields, (*PIPELINE_FIELDS, "rules"))
            self._add("pipeline", key, inner.line, fields, PIPELINE_FIELDS)
            self._rules(key, fields.get("rules"))

    def _rules(self, key: str, pair: _Pair | None) -> None:
        if pair is None or _is_null(pair.value):
            return
        if not isinstance(pair.value, yaml.SequenceNode):
            self._problem(pair.line, f"{key}: rules", "must be a list; write each rule after a dash")
            return
        for node in pair.value.value:
            content = self._mapping(node, f"{key} rule")
            self._check_names(f"{key} rule", content, RULE_FIELDS)
            self._add("rule", key, line_of(node), content, RULE_FIELDS)

    def _add(self, kind: str, key: str, line: int, content: Mapping[str, _Pair], known: Iterable[str]) -> None:
        fields: dict[str, Any] = {}
        for name in known:
            pair = content.get(name)
            if pair is None:
                continue
            if name == "destination" and _is_null(pair.value):
                self._problem(pair.line, f"{key}: {name}", 'empty; one that begins with # needs quotes: "#alerts"')
            elif isinstance(pair.value, yaml.ScalarNode):
                fields[name] = _scalar(pair.value, name)
            elif isinstance(pair.value, yaml.SequenceNode) and name in _LISTS:
                fields[name] = [self._item(node, f"{key}: {name}", name) for node in pair.value.value]
            else:
                wanted = "a list; write each item after a dash" if name in _LISTS else "a single value"
                self._problem(pair.line, f"{key}: {name}", f"must be {wanted}")
        self.found.append(Wanted(kind, key, line, fields, {name: content[name].line for name in fields}))

    def _item(self, node: yaml.Node, where: str, name: str) -> Any:
        """An item of a list: a text, or a map of single values."""
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, name)
        item: dict[str, Any] = {}
        for inner, pair in self._mapping(node, where).items():
            if isinstance(pair.value, yaml.ScalarNode):
                item[inner] = _scalar(pair.value, inner)
            else:
                self._problem(pair.line, f"{where}: {shown(inner)}", "must be a single value")
        return item

    def _slugs(self, pair: _Pair | None, where: str) -> Iterable[tuple[str, _Pair]]:
        """The entries of a map keyed by slug."""
        for slug, inner in (self._mapping(pair.value, where) if pair is not None else {}).items():
            if is_slug(slug):
                yield slug, inner
            else:
                issue = "not a slug; use a-z, 0-9 and single dashes between them, such as cafe-nord"
                self._problem(inner.line, f"{where}: {shown(slug)}", issue)

    def _mapping(self, node: yaml.Node, where: str) -> dict[str, _Pair]:
        """The entries of a map, including merged ones; none for null."""
        known = self._mappings.get(id(node))
        if known is not None:
            return known
        entries = self._mappings[id(node)] = {}
        if _is_null(node):
            return entries
        if not isinstance(node, yaml.MappingNode):
            self._problem(line_of(node), where, "must be a map; write names followed by a colon")
            return entries
        merged: list[yaml.Node] = []
        for key, value in node.value:
            line = line_of(key)
            if key.tag == f"{_TAG}merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif not isinstance(key, yaml.ScalarNode):
                self._problem(line, where, "has a name that is not text")
            elif key.value in entries:
                self._problem(
                    line,
                    f"{where}: {shown(key.value)}",
                    f"stands here again, after line {entries[key.value].line}; merge the two",
                )
            else:
                entries[key.value] = _Pair(line, value)
        for other in merged:
            for name, pair in self._mapping(other, where).items():
                entries.setdefault(name, pair)
        return entries

    def _check_names(self, where: str, content: Mapping[str, _Pair], known: tuple[str, ...]) -> None:
        for name, pair in content.items():
            if name not in known:
                self._problem(pair.line, ": ".join(filter(None, (where, shown(name)))), _unknown(name, known))

    def _problem(self, line: int, where: str, issue: str) -> None:
        self._problems.append((line, where, issue))

    def problems(self) -> list[Problem]:
        """All problems, by line."""
        return [(f"line {line}: {where}", issue) for line, where, issue in sorted(self._problems, key=_line)]


def _line(problem: tuple[int, str, str]) -> int:
    return problem[0]


def _unknown(name: str, known: tuple[str, ...]) -> str:
    if name == "slug":
        return "unknown field; the slug is the key that this is listed under"
    return unknown_field(name, known)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"


def _scalar(node: yaml.ScalarNode, field: str) -> Any:
    """The value of a field. The type of the field decides, not the spelling."""
    text: str = node.value
    if _is_null(node):
        return None
    if field in _FLAGS:
        return text.lower() in ("true", "yes", "on") if node.tag == f"{_TAG}bool" else text
    if field in _NUMBERS:
        return int(text) if not node.style and _WHOLE.fullmatch(text) else text
    return text


def document(
    clients: Iterable[Client], pipelines: Iterable[Pipeline], rules: Iterable[AlertRule], *, full: bool = False
) -> dict[str, Any]:
    """The inventory as plain data in the order of the file. `full`: with empty and default fields."""
    by_id: dict[Any, dict[str, Any]] = {}
    content: dict[str, Any] = {}
    for client in clients:
        by_id[client.id] = content[client.slug] = _plain(client, CLIENT_FIELDS, full)
    for pipeline in pipelines:
        by_id[pipeline.id] = _plain(pipeline, PIPELINE_FIELDS, full)
        by_id[pipeline.client_id].setdefault("pipelines", {})[pipeline.slug] = by_id[pipeline.id]
    for rule in rules:
        # A pipeline wins over a client, here as everywhere.
        owner = by_id[rule.pipeline_id or rule.client_id]
        owner.setdefault("rules", []).append(_plain(rule, RULE_FIELDS, full))
    return {"clients": content}


def _plain(item: Client | Pipeline | AlertRule, names: Iterable[str], full: bool) -> dict[str, Any]:
    values = {name: _spelled(getattr(item, name)) for name in names}
    if full:
        return values
    return {
        name: value
        for name, value in values.items()
        if value is not None and value != [] and not (value is True and name in _FLAGS)
    }


def _spelled(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, str) else value


def dump(content: Mapping[str, Any]) -> str:
    """The file for a document."""
    return HEADER + yaml_document.dump(dict(content))
