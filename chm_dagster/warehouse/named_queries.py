"""The named queries of `contracts/dashboard-queries.sql`, which dashboards run too."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from chm_dagster.domain.limits import INT_MAX
from chm_dagster.domain.values import clean_text
from chm_dagster.errors import ConfigError, InputError, NotFound
from chm_dagster.shipped import shipped
from chm_dagster.warehouse.engine import database_errors

CONTRACT = shipped("contracts/dashboard-queries.sql")

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
    """A named query: its question, parameters and columns, and the statement with `:name` for each parameter."""

    name: str
    answers: str
    parameters: tuple[Parameter, ...]
    columns: tuple[Column, ...]
    sql: str


def parse(text: str) -> dict[str, Query]:
    """The blocks of a contract, by name.

    Raises ConfigError for a duplicate name, an invalid comment, and parameters that the comment and
    the statement do not share.
    """
    found: dict[str, Query] = {}
    parts = _NAME.split(text)
    for name, block in zip(parts[1::2], parts[2::2], strict=True):
        if name in found:
            raise ConfigError(f"the query {name} is in the SQL contract twice")
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


@dataclasses.dataclass(frozen=True, slots=True)
class Excerpt:
    """Some rows of a query's answer in its own order, from number `skipped` on, and how many there are in all."""

    rows: list[dict[str, Any]]
    total: int
    skipped: int = 0

    @property
    def left(self) -> int:
        """How many rows come after these."""
        return max(0, self.total - self.skipped - len(self.rows))


def excerpt(
    engine: sa.Engine,
    name: str,
    *,
    first: int,
    skip: int = 0,
    where: Mapping[str, str | None] | None = None,
    text: str | None = None,
    worst_first: bool = False,
    **parameters: Any,
) -> Excerpt:
    """The first rows of what `ask` returns, after `skip`, of those whose columns have the values in `where`.

    With `worst_first`, the rows come by their `health` before anything else. `text` is looked for in the names and
    slugs of clients and pipelines. A value that is None filters nothing. Raises InputError for a column that the query
    does not have, and what `ask` raises.
    """
    query = queries()[name]
    columns = {column.name for column in query.columns}
    wanted = {column: value for column, value in (where or {}).items() if value is not None}
    for column in wanted:
        if column not in columns:
            raise InputError(column, f"no column of {name}")
    conditions = [f"q.{column} = :where_{column}" for column in wanted]
    values = {f"where_{column}": _argument(column, "text", (), value) for column, value in wanted.items()}
    if text is not None and "client_slug" in columns:
        named = [column for column in _NAMES if column in columns]
        conditions.append(f"strpos(lower(concat_ws('/', {', '.join(f'q.{n}' for n in named)})), lower(:text)) > 0")
        values["text"] = _argument("q", "text", (), text)
    order = _WORST_FIRST if worst_first and "health" in columns else ""
    counted = _EXCERPT.format(sql=query.sql, where=" AND ".join(conditions) or "true", order=order)
    values |= {"first": _argument("first", "int4", (), first), "skip": _argument("from", "int4", (), skip)}
    rows = _rows(engine, counted, {**_values(query, parameters), **values})
    total = rows[0]["total_rows"] if rows else 0
    return Excerpt([{k: v for k, v in row.items() if k != "total_rows"} for row in rows], total, skip)


_NAMES = ("client_slug", "pipeline_slug", "client_name", "pipeline_name")
_WORST_FIRST = """
ORDER BY array_position(ARRAY['failing', 'late', 'overrunning', 'unknown', 'healthy', 'paused'], q.health),
    q.client_slug, q.pipeline_slug
"""
_EXCERPT = """
SELECT q.*, count(*) OVER () AS total_rows FROM ({sql}) AS q WHERE {where} {order} LIMIT :first OFFSET :skip
"""


def answer(engine: sa.Engine, query: Query, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `ask` does with the query that it has found."""
    return _rows(engine, query.sql, _values(query, parameters))


def _rows(engine: sa.Engine, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    with database_errors(), engine.connect() as connection:
        connection.execute(_BEGIN)
        result = connection.execute(sa.text(sql), values)
        columns = tuple(result.keys())
        return [dict(zip(columns, row, strict=True)) for row in result]


def _values(query: Query, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in query.parameters}
    for name in given:
        if name not in known:
            raise InputError(name, f"unknown parameter; {query.name} takes {', '.join(known) or 'none'}")
    return {p.name: _argument(p.name, p.type, p.choices, given.get(p.name)) for p in query.parameters}


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
    """The lines of the leading comment, without dashes, and the statement."""
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


# --- values for parameters: what Postgres would reject is rejected here, with the parameter's name


def _argument(name: str, type_: str, choices: Sequence[str], value: Any) -> Any:
    """The value as the database takes it; None stays None. Raises InputError for what is not of the type."""
    if value is None:
        return None
    if choices and value not in choices:
        raise InputError(name, f"must be one of {', '.join(choices)}")
    accepts, wanted = _TYPES[type_]
    if not accepts(value):
        raise InputError(name, f"must be {wanted}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and clean_text(value) == value


def _is_time(value: Any) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -INT_MAX <= value <= INT_MAX


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text": (_is_text, "text without NUL or half a surrogate pair"),
    "timestamptz": (_is_time, "a time with a zone"),
    "float8": (_is_number, "a finite number"),
    "int4": (_is_integer, f"an integer of at most {INT_MAX}"),
}
