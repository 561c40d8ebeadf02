"""The health questions over 5,000,000 runs of 10,000 pipelines: how long each query takes, and how long the same
question takes when it is written with window functions.

Measured from the call to the rows in Python, on a warm cache, through the product's own functions.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from bench.large_ledger import SEED, LedgerSize, make
from bench.naive import QUERIES as NAIVE
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.named_queries import queries
from chm_dagster.warehouse.warehouse import Warehouse

FULL = LedgerSize()
QUICK = LedgerSize(clients=4, pipelines_per_client=5, runs_per_pipeline=60, days=60)
ROUNDS, MANY_ROUNDS = 25, 400
"""How often a question about everything is measured, and one about a single pipeline or client."""
_TARGETS = {
    "latest run of a pipeline": 2.0,
    "client summary, 30 days": 10.0,
    "latest_status_by_pipeline": 150.0,
    "failing_now": 150.0,
    "changed_since": 150.0,
}
_TARGET = 250.0

Rows = Sequence[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question to measure. `ask` is called `rounds` times and may use its dice to choose a different argument."""

    name: str
    ask: Callable[[random.Random], Rows]
    rounds: int
    target_ms: float | None


def run(database_url: str, size: LedgerSize = FULL) -> dict[str, Any]:
    """Fill an empty database, measure and print a table. Returns p50, p95 and the statement of each question."""
    engine = make_engine(database_url)
    try:
        begin = time.perf_counter()
        make(engine, size)
        filled = time.perf_counter() - begin
        now = datetime.now(UTC)
        results = {q.name: _measure(engine, q, now) for q in _questions(engine, now)}
        ledger = {"pipelines": size.pipelines, "runs": size.runs, "fill_seconds": round(filled, 1), **_sizes(engine)}
    finally:
        engine.dispose()
    print(_table(ledger, results))
    return {"ledger": ledger, **results}


def _questions(engine: Engine, now: datetime) -> Iterator[Question]:
    warehouse = Warehouse(engine)
    times = {
        "changed_since": {"since": now - timedelta(days=1)},
        "flakiness_over_time": {"since": now - timedelta(days=30), "until": now},
    }
    for name in queries():
        yield Question(name, _asking(warehouse, name, times.get(name, {})), ROUNDS, _TARGETS.get(name, _TARGET))
    pipelines, clients = _ids(engine, "pipelines"), _ids(engine, "clients")
    single: dict[str, Callable[[random.Random], Rows]] = {
        "latest run of a pipeline": lambda dice: [warehouse.runs.latest(dice.choice(pipelines))],
        "client summary, 30 days": lambda dice: [warehouse.runs.summary(dice.choice(clients))],
        "run list, first 100": lambda dice: warehouse.runs.list(dice.choice(pipelines)).items,
    }
    for name, ask in single.items():
        yield Question(name, ask, MANY_ROUNDS, _TARGETS.get(name))


def _asking(warehouse: Warehouse, name: str, parameters: Mapping[str, Any]) -> Callable[[random.Random], Rows]:
    return lambda dice: warehouse.ask(name, **parameters)


def _measure(engine: Engine, question: Question, now: datetime) -> dict[str, Any]:
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    rows = question.ask(random.Random(SEED))
    sa.event.remove(engine, "before_cursor_execute", note)
    dice, spent = random.Random(SEED), []
    for _ in range(question.rounds):
        begin = time.perf_counter()
        question.ask(dice)
        spent.append((time.perf_counter() - begin) * 1_000)
    p95 = statistics.quantiles(spent, n=20)[-1]
    result: dict[str, Any] = {
        "p50_ms": round(statistics.median(spent), 2),
        "p95_ms": round(p95, 2),
        "rows": len(rows),
        "sql": statements[-1],
    }
    if question.target_ms is not None:
        result |= {"target_ms": question.target_ms, "within_target": p95 < question.target_ms}
    if question.name in NAIVE:
        result |= _naive(engine, question, rows, now, result["p50_ms"])
    return result


def _naive(engine: Engine, question: Question, rows: Rows, now: datetime, p50: float) -> dict[str, Any]:
    """Measure the naive form: only once for a question about everything, because that takes seconds."""
    chosen = {table: random.Random(SEED).choice(_ids(engine, table)) for table in ("pipelines", "clients")}
    parameters = {"now": now, "pipeline": chosen["pipelines"], "client": chosen["clients"]}
    statement = sa.text(NAIVE[question.name])
    given = {name: parameters[name] for name in statement.compile().params}
    spent = []
    for _ in range(1 if question.rounds == ROUNDS else 21):
        begin = time.perf_counter()
        with engine.connect() as connection:
            found = [dict(row) for row in connection.execute(statement, given).mappings()]
        spent.append((time.perf_counter() - begin) * 1_000)
    if rows and isinstance(rows[0], Mapping):
        _require_agreement(question.name, rows, found)
    naive = statistics.median(spent)
    return {"naive_ms": round(naive, 2), "naive_ratio": round(naive / p50, 1), "naive_sql": NAIVE[question.name]}


def _require_agreement(name: str, ours: Sequence[Mapping[Any, Any]], theirs: Sequence[Mapping[Any, Any]]) -> None:
    """Comparing two forms is fair only if they return the same rows. One may return a rule or a row more."""
    columns = [column for column in ours[0] if all(column in row for row in theirs)]
    left, right = ({tuple(row[c] for c in columns) for row in rows} for rows in (ours, theirs))
    if not (left <= right or right <= left):
        raise AssertionError(f"{name}: the naive form returns different rows: {list(left ^ right)[:3]}")


def _ids(engine: Engine, table: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.scalars(sa.text(f"SELECT id FROM {table} ORDER BY id")))


def _sizes(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        heap, indexes = connection.execute(sa.text("SELECT pg_table_size('runs'), pg_indexes_size('runs')")).one()
    return {"runs_mb": heap // 1_000_000, "indexes_mb": indexes // 1_000_000}


def _table(ledger: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]) -> str:
    head = f"Questions over {ledger['runs']:,} runs of {ledger['pipelines']:,} pipelines, in milliseconds"
    lines = [head, f"{'question':28}{'rows':>8}{'p50':>10}{'p95':>10}{'target':>9}{'naive':>11}{'ratio':>8}"]
    for name, result in results.items():
        target = (
            f"< {result['target_ms']:g}" + ("" if result["within_target"] else " !") if "target_ms" in result else ""
        )
        naive = f"{result['naive_ms']:,.1f}" if "naive_ms" in result else ""
        ratio = f"{result['naive_ratio']:g}x" if "naive_ms" in result else ""
        numbers = f"{result['rows']:>8,}{result['p50_ms']:>10,.2f}{result['p95_ms']:>10,.2f}"
        lines.append(f"{name:28}{numbers}{target:>9}{naive:>11}{ratio:>8}")
    return "\n".join(lines)
