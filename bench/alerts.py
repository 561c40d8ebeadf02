"""Alerts over 10,000 pipelines: how long an evaluation of 12,000 rules takes and how many rows it reads, and how long
a back-test of every pipeline over 30 days takes.
"""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from chm_dagster.alerting.backtesting import back_test
from chm_dagster.alerting.evaluating import EvaluationReport, evaluate_rules
from chm_dagster.domain.backtests import BackTestRequest
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse

EVALUATIONS, BACK_TESTS = 25, 5
_TARGET_SECONDS = {"evaluation": 1.0, "back-test of 30 days": 10.0}

# Each client has one rule of each type, and all pipelines but every tenth have one of their own: 200 clients with 50
# pipelines each give 1,200 and 10,800 rules.
_RULES = """
INSERT INTO alert_rules (client_id, pipeline_id, rule_type, threshold, window_minutes, channel, destination)
SELECT c.id, NULL, t.rule_type, t.threshold, t.window_minutes, 'inbox', 'bench'
FROM clients AS c CROSS JOIN (VALUES
    ('on_failure', NULL, NULL), ('consecutive_failures', 3, NULL), ('failures_in_window', 5, 1440),
    ('no_success_in_window', NULL, 2880), ('running_too_long', NULL, 240), ('missed_run', NULL, 30)
) AS t(rule_type, threshold, window_minutes)
UNION ALL
SELECT NULL, p.id,
    (ARRAY['on_failure', 'no_success_in_window', 'running_too_long'])[1 + p.number % 3], NULL,
    (ARRAY[NULL, 2880, 240])[1 + p.number % 3], 'inbox', 'bench ' || p.number % 50
FROM (SELECT id, row_number() OVER (ORDER BY client_id, slug) AS number FROM pipelines) AS p
UNION ALL
SELECT NULL, p.id, 'consecutive_failures', 2, NULL, 'inbox', 'bench ' || p.number % 50
FROM (SELECT id, row_number() OVER (ORDER BY client_id, slug) AS number FROM pipelines) AS p
WHERE p.number % 25 IN (1, 2)
"""


def run(engine: Engine, *, quick: bool = False) -> dict[str, Any]:
    """Measure and print a table. The database is one of `bench.large_ledger`, and gets rules."""
    rules = add_rules(engine)
    first = time.perf_counter()
    opened = _evaluate(engine)
    first = time.perf_counter() - first
    before = _rows_read(engine)
    evaluations = _timed(lambda: _evaluate(engine), 2 if quick else EVALUATIONS)
    rows = (_rows_read(engine) - before) // len(evaluations)
    warehouse = Warehouse(engine)
    request = BackTestRequest.read({"rule_type": "on_failure", "days": 30})
    tests = _timed(lambda: back_test(warehouse, request, datetime.now(UTC)), 1 if quick else BACK_TESTS)
    found = {
        "rules": rules,
        "pairs": opened.looked_at,
        "open_episodes": opened.open_episodes,
        "first_evaluation_seconds": round(first, 3),
        "evaluation": _spread(evaluations),
        "rows_read_by_an_evaluation": rows,
        "back-test of 30 days": _spread(tests),
    }
    print(_table(found))
    return found


def add_rules(engine: Engine) -> int:
    """Give the clients and pipelines rules, and say that everything was read just now. Returns the number of rules."""
    with engine.begin() as connection:
        rules = connection.execute(sa.text(_RULES)).rowcount
        connection.execute(sa.text("UPDATE pipelines SET observed_through = now()"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE alert_rules, pipelines")
    return rules


def _evaluate(engine: Engine) -> EvaluationReport:
    report = evaluate_rules(engine)
    if report is None:
        raise RuntimeError("somebody else evaluates")
    return report


def _timed(action: Callable[[], object], rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return found


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_seconds": round(statistics.median(ordered), 3),
        "p95_seconds": round(ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))], 3),
    }


def _rows_read(engine: Engine) -> int:
    """Rows that the server has returned from tables and fetched by indexes in this database, so far."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
        time.sleep(1.1)  # other sessions report once a second
        query = "SELECT tup_returned + tup_fetched FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.exec_driver_sql(query).scalar_one())


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"Alerts: {found['rules']:,} rules, {found['pairs']:,} pairs that may fire,"
        f" {found['open_episodes']:,} open; the first evaluation took {found['first_evaluation_seconds']:.2f} s",
        f"{'':24}{'p50':>10}{'p95':>10}{'target':>10}",
    ]
    for name, target in _TARGET_SECONDS.items():
        p50, p95 = found[name]["p50_seconds"], found[name]["p95_seconds"]
        lines.append(f"{name:24}{p50:>8.2f} s{p95:>8.2f} s{target:>8.0f} s")
    return "\n".join([*lines, f"An evaluation reads {found['rows_read_by_an_evaluation']:,} rows."])
