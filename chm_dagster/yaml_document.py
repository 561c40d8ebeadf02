"""YAML files with line numbers: bounded parsing, validation with located messages, and one way of writing.

Messages name the line and the field, never a value: somebody may have written a secret into the file.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from chm_dagster.domain.redaction import MASK, redact
from chm_dagster.domain.validation import not_one_of, unknown_field
from chm_dagster.errors import ConfigError, InputError

MAX_DEPTH = 32
MAX_ALIAS_GROWTH = 10
"""How many times larger than written a file may become by its aliases..."""
FREE_ALIAS_NODES = 10_000
"""... unless it stays below this many nodes anyway."""

_NAME = re.compile(r"[\w ./-]{1,100}")
_M = TypeVar("_M", bound=BaseModel)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Location = Sequence[str | int]


# --- reading


def compose(text: str) -> yaml.Node | None:
    """The root node of a YAML text; None for an empty one.

    Raises InputError by line for invalid YAML, for nesting beyond MAX_DEPTH, and for aliases that refer to themselves
    or blow up the file.
    """
    try:
        _check_size(text)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; indent with spaces, and quote texts that begin with a special character or contain ': '"
        raise InputError(f"line {mark.line + 1 if mark else 1}", f"not YAML: {error.problem}{hint}") from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        reason = f"not YAML: {' '.join(str(error).split())[:200]}"
        raise InputError(f"line {text.count(chr(10), 0, position) + 1}", reason) from None


def _check_size(text: str) -> None:
    """Raises InputError for nesting and aliases that would exhaust the stack or the memory when they are composed."""
    budget = _Expansion()
    for event in yaml.parse(text, Loader=_Loader):
        budget.add(event)


class _Expansion:
    """Counts the nodes of a document as written, and with every alias replaced by what it refers to."""

    def __init__(self) -> None:
        self._written = self._expanded = 0
        self._sizes: dict[str, int] = {}
        self._open: list[tuple[str | None, int]] = []

    def add(self, event: Any) -> None:
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor, line)
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                self._open.append((event.anchor, self._expanded))
                if len(self._open) > MAX_DEPTH:
                    raise InputError(line, f"nested too deeply; at most {MAX_DEPTH} levels are accepted")
            elif event.anchor is not None:
                self._sizes[event.anchor] = 1
            self._written += 1
            self._expanded += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor is not None:
                self._sizes[anchor] = self._expanded - before
        if self._expanded > max(FREE_ALIAS_NODES, MAX_ALIAS_GROWTH * self._written):
            raise InputError(line, "the aliases expand the file to many times its size; write fewer of them")

    def _alias(self, anchor: Any, line: str) -> None:
        if any(anchor == name for name, _ in self._open):
            raise InputError(line, "an alias that refers to itself; write out what is meant")
        # The composer reports an alias without an anchor.
        self._expanded += self._sizes.get(anchor, 1)


def line_of(node: yaml.Node) -> int:
    """The line on which the node begins."""
    line: int = node.start_mark.line
    return line + 1


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML file: its data, and the nodes that know their lines."""

    name: str
    data: Any
    root: yaml.Node | None

    def message(self, location: Location, issue: str) -> str:
        """A message about a location: `partners.yaml, line 7, connections.acme.platform: ...`."""
        field = ".".join(_shown(str(part)) for part in location)
        return f"{self.name}, line {self.locate(location)[0]}{f', {field}' if field else ''}: {issue}"

    def locate(self, location: Location, *, exists: bool = False) -> tuple[int, list[str | int]]:
        """The line of the deepest part of the location that is in the file, and the parts that are.

        A model adds parts of its own to a location (the tag of a union): they are left out. The last part may be
        missing from the file, unless `exists`.
        """
        node, line, real = self.root, 1, list[str | int]()
        for number, part in enumerate(location):
            child, at = _child(node, part)
            if child is not None:
                node, line = child, at
                real.append(part)
            elif number == len(location) - 1 and not exists:
                real.append(part)
        return line, real


def _shown(name: str) -> str:
    """The name of a field, unless it may be content: of a file that is no such file, or a secret in the wrong place."""
    return redact(name) if _NAME.fullmatch(name) else MASK


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node | None, int]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, line_of(key)
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], line_of(node.value[part])
    return None, 0


def parse(text: str, name: str) -> Document:
    """The document in a YAML text. Raises ConfigError for invalid YAML and for fields that appear twice."""
    try:
        root = compose(text)
        data = None if root is None else yaml.SafeLoader("").construct_document(root)
    except InputError as error:
        problem = f"{name}, {error}"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"{name}, line {line}: not YAML: {error.problem}"
    except (yaml.YAMLError, ValueError):
        # A value that its own tag or form does not allow, such as a date of the 32nd.
        problem = f"{name}: not YAML: it holds a number or a date that does not exist"
    else:
        twice = [f"{name}, line {line}, {_shown(key)}: appears twice" for key, line in _repeated(root)]
        if not twice:
            return Document(name, data, root)
        problem = "\n".join(twice)
    raise ConfigError(problem)


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Keys that appear twice in one mapping, with the line of the second."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen and key.value != "<<":
                yield str(key.value), line_of(key)
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


# --- validating


def validate(model: type[_M], document: Document, hint: str) -> _M:
    """The document as this model. Raises ConfigError with one line for each problem; `hint` is for an empty file."""
    if not isinstance(document.data, Mapping):
        raise ConfigError(f"{document.name}: empty, or not a mapping; {hint}")
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True, include_input=True)
    # Where either a word or an object is accepted, only the message about the word helps.
    words = {p["loc"][:-1] for p in problems if p["type"] == "literal_error"}
    kept = [p for p in problems if p["type"] != "model_type" or p["loc"][:-1] not in words]
    located = [(document.locate(p["loc"], exists=p["type"] != "missing"), _issue(model, p)) for p in kept]
    located.sort(key=lambda found: found[0][0])
    raise ConfigError("\n".join(dict.fromkeys(document.message(location, issue) for (_, location), issue in located)))


def _issue(model: type[BaseModel], problem: Any) -> str:
    kind, location = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return unknown_field(str(location[-1]), sorted(_fields(model.model_json_schema(), location[:-1])))
    if kind == "missing":
        return "missing"
    if kind in ("enum", "literal_error"):
        allowed = [word.strip(" '") for word in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        return not_one_of(problem["input"], allowed)
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    return str(problem["msg"][:1].lower() + problem["msg"][1:])


def _fields(schema: Mapping[str, Any], location: Location) -> set[str]:
    """The fields that a JSON schema allows at a location."""
    nodes = [schema]
    for part in location:
        following = [child for node in nodes for child in _schema_children(schema, node, part)]
        # Parts that the schema does not know are the model's own, such as the tag of a union.
        nodes = following or nodes
    return {name for node in nodes for one in _alternatives(schema, node) for name in one.get("properties", ())}


def _schema_children(root: Mapping[str, Any], node: Mapping[str, Any], part: str | int) -> Iterator[Mapping[str, Any]]:
    for one in _alternatives(root, node):
        if isinstance(part, int):
            if "items" in one:
                yield one["items"]
        elif part in one.get("properties", ()):
            yield one["properties"][part]
        elif isinstance(one.get("additionalProperties"), Mapping):
            yield one["additionalProperties"]
        elif "patternProperties" in one:
            yield from one["patternProperties"].values()


def _alternatives(root: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in node:
        yield from _alternatives(root, root["$defs"][node["$ref"].rpartition("/")[2]])
        return
    yield node
    for word in ("anyOf", "oneOf", "allOf"):
        for option in node.get(word, ()):
            yield from _alternatives(root, option)


# --- writing


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes multi-line texts as blocks, and the same list or mapping as often as it occurs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump(data: Any) -> str:
    """Plain data as YAML: block style, keys in their order, non-ASCII text unescaped."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
