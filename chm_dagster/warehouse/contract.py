"""The named queries of `contracts/dashboard-queries.sql`, which dashboards run too."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from chm_dagster.errors import ConfigError, InputError, NotFound
from chm_dagster.warehouse.arguments import argument
from chm_dagster.warehouse.engine import database_errors

CONTRACT = Path(__file__).resolve().parents[2] / "contracts" / "dashboard-queries.sql"

_NAME = re.compile(r"^-- name: (\S+)[ \t]*$", re.MULTILINE)
_PARAMETER = re.compile(r"(\w+) (\w+) = (.+?)(?: \((\w+(?:, \w+)+)\))?(?:: (.+))?")
_COLUMN = re.compile(r"(\w+) (\w+)(?:: (.+))?")
_PLACEHOLDER = re.compile(r"(?<![:\w]):(\w+)(?!:)")
# Plans are made for the values at hand: a filter that is null costs nothing, one that is given uses its index.
# Compiling a plan of ten thousand short look-ups would take longer than running it.
_BEGIN = sa.text(
    "SELECT set_config('transaction_read_only', 'on', true), set_config('plan_cache_mode', 'force_custom_plan', true),"
    " set_config('jit', 'off', true)"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query. `default` is what null stands for, in SQL; `choices` is empty where any value goes."""

    name: str
    type: str
    default: str
    choices: tuple[str, ...]
    meaning: str


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a query's answer. `type` is Postgres' own short name, such as `int8` or `timestamptz`."""

    name: str
    type: str
    meaning: str


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """A named query: what it answers, what it takes and gives, and the statement with `:name` for each parameter."""

    name: str
    answers: str
    parameters: tuple[Parameter, ...]
    columns: tuple[Column, ...]
    sql: str


def parse(text: str) -> dict[str, Query]:
    """The blocks of a contract, by name.

    Raises ConfigError for a name that stands twice, a comment that cannot be read, and parameters that the comment and
    the statement do not share.
    """
    found: dict[str, Query] = {}
    parts = _NAME.split(text)
    for name, block in zip(parts[1::2], parts[2::2], strict=True):
        if name in found:
            raise ConfigError(f"the query {name} stands twice in the SQL contract")
        found[name] = _query(name, block)
    return found


@functools.cache
def queries() -> dict[str, Query]:
    """All named queries of this release."""
    return parse(CONTRACT.read_text(encoding="utf-8"))


def ask(engine: sa.Engine, name: str, **parameters: Any) -> list[dict[str, Any]]:
    """Run a named query, read-only. Returns a dict of its columns for each row.

    A parameter that is left out or None takes its default. Raises NotFound for an unknown name, InputError for an
    unknown parameter or a value that it does not take, DatabaseUnavailable.
    """
    query = queries().get(name)
    if query is None:
        raise NotFound(f"there is no query {name}; there are {', '.join(queries())}")
    return answer(engine, query, parameters)


def answer(engine: sa.Engine, query: Query, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `ask` does with the query that it has found."""
    values = _values(query, parameters)
    with database_errors(), engine.connect() as connection:
        connection.execute(_BEGIN)
        result = connection.execute(sa.text(query.sql), values)
        columns = tuple(result.keys())
        return [dict(zip(columns, row, strict=True)) for row in result]


def _values(query: Query, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in query.parameters}
    for name in given:
        if name not in known:
            raise InputError(name, f"unknown parameter; {query.name} takes {', '.join(known) or 'none'}")
    return {p.name: argument(p.name, p.type, p.choices, given.get(p.name)) for p in query.parameters}


def _query(name: str, block: str) -> Query:
    comment, sql = _split(block)
    sections = _sections(name, comment)
    parameters = tuple(_parameter(*_match(name, _PARAMETER, line)) for line in sections["Parameters:"])
    columns = tuple(Column(n, kind, meaning or "") for n, kind, meaning in _columns(name, sections["Columns:"]))
    described, used = [p.name for p in parameters], set(_PLACEHOLDER.findall(sql))
    if set(described) != used or len(described) != len(used):
        raise ConfigError(f"the query {name} describes {described}, and its statement uses {sorted(used)}")
    return Query(name, " ".join(sections[""]), parameters, columns, sql)


def _split(block: str) -> tuple[list[str], str]:
    """The lines of the comment on top, without dashes, and the statement."""
    lines = block.strip().splitlines()
    comment = list(itertools.takewhile(lambda line: line.startswith("--"), lines))
    sql = "\n".join(lines[len(comment) :]).strip().removesuffix(";")
    return [line.removeprefix("--").strip() for line in comment], sql


def _sections(name: str, comment: list[str]) -> dict[str, list[str]]:
    """The lines of a comment under each of its headings; what comes first has none."""
    sections: dict[str, list[str]] = {"": []}
    heading = ""
    for text in comment:
        if text in ("Parameters:", "Columns:"):
            heading = text
            sections[heading] = []
        else:
            sections[heading].append(text)
    if missing := [h for h in ("Parameters:", "Columns:") if h not in sections]:
        raise ConfigError(f"the query {name} has no comment {missing[0]!r}")
    return sections


def _columns(name: str, lines: list[str]) -> Iterator[tuple[str, ...]]:
    seen = set()
    for line in lines:
        column = _match(name, _COLUMN, line)
        if column[0] in seen:
            raise ConfigError(f"the query {name} describes its column {column[0]} twice")
        seen.add(column[0])
        yield column


def _parameter(name: str, type_: str, default: str, choices: str | None, meaning: str | None) -> Parameter:
    return Parameter(name, type_, default, tuple(choices.split(", ")) if choices else (), meaning or "")


def _match(name: str, pattern: re.Pattern[str], line: str) -> tuple[Any, ...]:
    found = pattern.fullmatch(line)
    if found is None:
        raise ConfigError(f"the query {name} has a comment that cannot be read: {line}")
    return found.groups()
