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

What is left out means nothing; null empties a field. Texts are read as they are spelled: `no` is a text here, and so
is `007`. Names at the top that begin with `x-` may hold anchors for YAML's own `<<: *anchor`.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import yaml

from chm_dagster.domain.fields import Problem, refuse, shown
from chm_dagster.domain.forms import CLIENT, PIPELINE, RULE
from chm_dagster.domain.inventory import Client, Pipeline, is_slug
from chm_dagster.domain.rules import AlertRule
from chm_dagster.errors import InputError

CLIENT_FIELDS = tuple(name for name in CLIENT if name != "slug")
PIPELINE_FIELDS = tuple(name for name in PIPELINE if name != "slug")
RULE_FIELDS = tuple(name for name in RULE if name not in ("client_id", "pipeline_id"))
_NUMBERS = frozenset({"grace_minutes", "max_runtime_minutes", "threshold", "window_minutes"})
_FLAGS = frozenset({"is_active", "is_enabled"})
_DEFAULTS = {"is_active": True, "is_enabled": True}

HEADER = """\
# The inventory of CHM: clients by slug, their pipelines by slug, and alert rules of both.
# `chm inventory apply -f FILE` creates what is new here and changes what is different. What is left out stays as it is;
# null empties a field; is_active: false disables. Nothing is ever deleted.
"""

_TAG = "tag:yaml.org,2002:"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes texts of several lines as such."""


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar(f"{_TAG}str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
_MAX_DEPTH = 32
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that the file tells of: `kind` is client, pipeline or rule.

    `key` is the slug of a client or `client/pipeline`; of a rule, that of what it is about. `fields` are as written,
    `lines` where each of them stands.
    """

    kind: str
    key: str
    line: int
    fields: Mapping[str, Any]
    lines: Mapping[str, int]

    def place(self, field: str) -> str:
        """Where a field stands, or should stand, for a message."""
        noun = " rule" if self.kind == "rule" else ""
        return f"line {self.lines.get(field, self.line)}: {self.key}{noun}: {field}"


def parse(text: str) -> list[Wanted]:
    """What the file tells of: each client, then its rules, then its pipelines, each with its rules.

    Raises InputError with all that is wrong with the form of the file, by line.
    """
    reader = _Reader()
    reader.read(_compose(text))
    refuse(reader.problems())
    return reader.found


def _compose(text: str) -> yaml.Node | None:
    try:
        _check_depth(text)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; indent with blanks, and quote texts that begin with a special character or hold ': '"
        raise InputError(f"line {mark.line + 1 if mark else 1}", f"not YAML: {error.problem}{hint}") from None
    except yaml.YAMLError as error:
        raise InputError("file", f"not YAML: {' '.join(str(error).split())[:200]}") from None


def _check_depth(text: str) -> None:
    """Raises InputError for nesting that means nothing here. Composing it would end the process, not raise."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                mark: Any = event.start_mark
                raise InputError(
                    f"line {mark.line + 1}", "nested too deeply; clients hold pipelines and rules, and that is all"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    line: int
    value: yaml.Node


class _Reader:
    """Walks over the nodes, and collects what it finds and what is wrong."""

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
            self._problem(pair.line, f"{key}: rules", "not a list; write each rule behind a dash")
            return
        for node in pair.value.value:
            content = self._mapping(node, f"{key} rule")
            self._check_names(f"{key} rule", content, RULE_FIELDS)
            self._add("rule", key, node.start_mark.line + 1, content, RULE_FIELDS)

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
            else:
                self._problem(pair.line, f"{key}: {name}", "holds more than one value; write a single one")
        self.found.append(Wanted(kind, key, line, fields, {name: content[name].line for name in fields}))

    def _slugs(self, pair: _Pair | None, where: str) -> Iterable[tuple[str, _Pair]]:
        """The entries of a map keyed by slug."""
        for slug, inner in (self._mapping(pair.value, where) if pair is not None else {}).items():
            if is_slug(slug):
                yield slug, inner
            else:
                issue = "not a slug; use a-z, 0-9 and single dashes between them, such as cafe-nord"
                self._problem(inner.line, f"{where}: {shown(slug)}", issue)

    def _mapping(self, node: yaml.Node, where: str) -> dict[str, _Pair]:
        """The entries of a map, those that it merges in included; none for null."""
        known = self._mappings.get(id(node))
        if known is not None:
            return known
        entries = self._mappings[id(node)] = {}
        if _is_null(node):
            return entries
        if not isinstance(node, yaml.MappingNode):
            self._problem(node.start_mark.line + 1, where, "not a map; write names with a colon behind them")
            return entries
        merged: list[yaml.Node] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_TAG}merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif not isinstance(key, yaml.ScalarNode):
                self._problem(line, where, "holds a name that is no text")
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
        """All that is wrong, by line."""
        return [(f"line {line}: {where}", issue) for line, where, issue in sorted(self._problems, key=_line)]


def _line(problem: tuple[int, str, str]) -> int:
    return problem[0]


def _unknown(name: str, known: tuple[str, ...]) -> str:
    if name == "slug":
        return "unknown field; the slug is the name that all of this stands under"
    close = difflib.get_close_matches(name[:100].lower(), known, n=1)
    return f"unknown field; {f'did you mean {close[0]}?' if close else 'known are ' + ', '.join(known)}"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"


def _scalar(node: yaml.ScalarNode, field: str) -> Any:
    """The value of a field: its own type decides, not what YAML makes of the spelling."""
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
    """The inventory as plain data in the order of the file. `full`: also fields that are empty or as they begin."""
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
    return {name: value for name, value in values.items() if value is not None and value != _DEFAULTS.get(name)}


def _spelled(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, str) else value


def dump(content: Mapping[str, Any]) -> str:
    """The file for a document."""
    body: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return HEADER + body
