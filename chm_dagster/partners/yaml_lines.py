"""YAML that is checked against a model, with messages that say where: line, field, and what was probably meant."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from chm_dagster.errors import ConfigError

_M = TypeVar("_M", bound=BaseModel)
Place = Sequence[str | int]


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML file: its data, and the lines that they came from."""

    name: str
    data: Any
    root: yaml.Node | None

    def says(self, place: Place, what: str) -> str:
        """A message about a place: `partners.yaml, line 7, connections.acme.platform: ...`."""
        field = ".".join(str(part) for part in place)
        return f"{self.name}, line {self.found(place)[0]}{f', {field}' if field else ''}: {what}"

    def found(self, place: Place, *, is_there: bool = False) -> tuple[int, list[str | int]]:
        """The line of the deepest part of the place that the file has, and the place without a model's own detours.

        Its last part may be missing, unless `is_there`.
        """
        node, line, real = self.root, 1, list[str | int]()
        for number, part in enumerate(place):
            child, at = _child(node, part)
            if child is not None:
                node, line = child, at
                real.append(part)
            elif number == len(place) - 1 and not is_there:
                real.append(part)
        return line, real


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node | None, int]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return value, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line + 1
    return None, 0


def parsed(text: str, name: str) -> Document:
    """The YAML text. Raises ConfigError for what is no YAML, and for a field that stands there twice."""
    problem = None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # Its own text quotes the file, and somebody may have put a secret there.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f"{name}, line {line}: not YAML: {error.problem}"
    except (yaml.YAMLError, ValueError, RecursionError):
        problem = f"{name}: not YAML"
    if problem is not None:
        raise ConfigError(problem)
    document = Document(name, data, root)
    twice = [f"{name}, line {line}, {key}: stands there twice" for key, line in _repeated(root)]
    if twice:
        raise ConfigError("\n".join(twice))
    return document


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Keys that stand twice in one mapping, with the line of the second."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen and key.value != "<<":
                yield str(key.value), key.start_mark.line + 1
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def checked(model: type[_M], document: Document) -> _M:
    """The document as this model. Raises ConfigError with a line for each problem; values are not shown."""
    if not isinstance(document.data, Mapping):
        raise ConfigError(f"{document.name}: empty, or not a mapping; see contracts/partners.example.yaml")
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=True, include_input=True)
    # Of a word or an object, the word was meant; and what is not missing is in the file, so the rest is a detour.
    words_at = {p["loc"][:-1] for p in problems if p["type"] == "literal_error"}
    told = [p for p in problems if p["type"] != "model_type" or p["loc"][:-1] not in words_at]
    places = [(document.found(p["loc"], is_there=p["type"] != "missing"), _in_words(model, p)) for p in told]
    places.sort(key=lambda found: found[0][0])
    raise ConfigError("\n".join(dict.fromkeys(document.says(place, words) for (_, place), words in places)))


def _in_words(model: type[BaseModel], problem: Any) -> str:
    kind, place = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return "unknown field" + meant(str(place[-1]), sorted(_fields(model.model_json_schema(), place[:-1])))
    if kind == "missing":
        return "missing"
    if kind in ("enum", "literal_error"):
        # The words that may stand here are ours; what stands here instead is shown only if it is one word.
        allowed = [word.strip(" '") for word in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"one of {', '.join(allowed)}" + meant(str(problem["input"]), allowed)
    if kind == "string_pattern_mismatch" and "credentials" in place:
        return "the name of an environment variable belongs here, and never the secret itself"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "string_pattern_mismatch" and place[-1] == "[key]":
        return "a name is made of letters, digits, dots, dashes and underscores, at most 100, no sign first"
    return str(problem["msg"][:1].lower() + problem["msg"][1:])


def meant(word: str, known: Sequence[str]) -> str:
    """The end of a message about a word that is none of the known ones: which of them it may have been."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else (f"; known: {', '.join(known)}" if len(known) < 20 else "")


def _fields(schema: Mapping[str, Any], place: Place) -> set[str]:
    """The fields that a JSON schema allows at a place."""
    nodes = [schema]
    for part in place:
        following = [child for node in nodes for child in _schema_children(schema, node, part)]
        # A part that the schema does not know is a detour of the model: the tag of a union.
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
