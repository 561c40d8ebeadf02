"""The panels of Grafana and the cards of Metabase over a large ledger: their statements as these tools send them, as
the BI role, compared with the bare contract query of the same parameters as CHM asks it.
"""

import gc
import re
import secrets
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from chm_dagster.presentation import grafana, metabase
from chm_dagster.presentation.dashboards import DASHBOARDS
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.named_queries import queries
from chm_dagster.warehouse.roles import BI, apply_roles
from chm_dagster.warehouse.warehouse import Warehouse

ROUNDS = 25
TARGETS_MS = {"latest_status_by_pipeline": 150.0, "failing_now": 150.0, "changed_since": 150.0}
TARGET_MS = 250.0
DAYS = 1
"""The time that Grafana's dashboards begin with; the same is set in Metabase."""


def run(engine: Engine, *, quick: bool = False) -> dict[str, Any]:
    """Measure and print a table. The database is one of `bench.large_ledger`, with the rules of `bench.alerts`."""
    warehouse, rounds, password = Warehouse(engine), 3 if quick else ROUNDS, secrets.token_urlsafe(16)
    apply_roles(engine, {BI: password})
    now = datetime.now(UTC)
    times = {"since": now - timedelta(days=DAYS), "until": now}
    reader = make_engine(engine.url.set(username=BI, password=password).render_as_string(hide_password=False))
    with reader.connect() as connection:
        found = {
            name: _measure(warehouse, connection, name, times, rounds)
            for name in dict.fromkeys(panel.query for _, panels in DASHBOARDS.values() for panel in panels)
        }
    reader.dispose()
    print(_table(found))
    return found


def _measure(
    warehouse: Warehouse, connection: sa.Connection, name: str, times: Mapping[str, datetime], rounds: int
) -> dict[str, Any]:
    query = queries()[name]
    given = {p.name: times[p.name] for p in query.parameters if p.name in times}
    statements = {"panel": panel(grafana.statement(query), times), "card": card(metabase.statement(query), times)}
    rows = len(warehouse.ask(name, **given))
    found: dict[str, Any] = {"query": _timed(lambda: warehouse.ask(name, **given), rounds), "rows": rows}
    for kind, statement in statements.items():
        found[kind] = _timed(lambda text=statement: connection.exec_driver_sql(text).all(), rounds)
    target = TARGETS_MS.get(name, TARGET_MS)
    slowest = max(found["panel"]["p95_ms"], found["card"]["p95_ms"])
    ratios = {kind: round(found[kind]["p50_ms"] / found["query"]["p50_ms"], 2) for kind in statements}
    return {**found, "ratio": ratios, "target_ms": target, "within_target": slowest < target}


def panel(statement: str, times: Mapping[str, datetime]) -> str:
    """A statement as Grafana sends it while every variable is empty."""
    text = statement.replace("$__timeFrom()", f"'{times['since'].isoformat()}'")
    text = text.replace("$__timeTo()", f"'{times['until'].isoformat()}'")
    return _escaped(re.sub(r"\$\{\w+:sqlstring\}", "''", text))


def card(statement: str, times: Mapping[str, datetime]) -> str:
    """A statement as Metabase sends it while only the time is set: what is in brackets goes where its tag is empty."""
    for name, time_ in times.items():
        statement = statement.replace(f"[[|| {{{{{name}}}}}]]", f"|| '{time_.isoformat()}'")
    return _escaped(re.sub(r"\[\[.*?\]\]", "", statement))


def _escaped(statement: str) -> str:
    return statement.replace("%", "%%")


def _timed(action: Callable[[], object], rounds: int) -> dict[str, float]:
    """p50 and p95 in milliseconds, after a first call that does not count.

    Python's garbage collector is off meanwhile, as in `timeit`: Grafana and Metabase do not have it.
    """
    action()
    spent = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        begin = time.perf_counter()
        action()
        spent.append((time.perf_counter() - begin) * 1_000)
        gc.enable()
    return {"p50_ms": round(statistics.median(spent), 1), "p95_ms": round(statistics.quantiles(spent, n=20)[-1], 1)}


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    head = (
        "query p50",
        "panel p50",
        "panel p95",
        "card p50",
        "card p95",
        "panel/query",
        "card/query",
        "target",
        "rows",
    )
    lines = ["Dashboards as the BI role, in milliseconds", f"{'query':28}" + "".join(f"{name:>12}" for name in head)]
    for name, one in found.items():
        times = [one[kind][key] for kind in ("panel", "card") for key in ("p50_ms", "p95_ms")]
        numbers = [one["query"]["p50_ms"], *times, *one["ratio"].values(), one["target_ms"], one["rows"]]
        lines.append(f"{name:28}" + "".join(f"{n:>12,}" for n in numbers) + ("" if one["within_target"] else " !"))
    return "\n".join(lines)
