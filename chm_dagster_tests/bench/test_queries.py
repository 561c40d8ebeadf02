"""The query part of the benchmark on a small ledger: it measures every question, and both forms return the same rows."""

import pytest
import sqlalchemy as sa

from bench import queries
from bench.large_ledger import make
from bench.naive import QUERIES as NAIVE
from chm_dagster.warehouse import named_queries
from chm_dagster_tests.factories import rows


@pytest.mark.alone
@pytest.mark.slow
def test_every_question_is_measured(empty_database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = queries.run(empty_database_url, queries.QUICK)
    assert found["ledger"]["runs"] == 1_200
    questions = {name: result for name, result in found.items() if name != "ledger"}
    assert set(questions) == set(named_queries.queries()) | {
        "latest run of a pipeline",
        "client summary, 30 days",
        "run list, first 100",
    }
    printed = capsys.readouterr().out
    for name, result in questions.items():
        assert 0 < result["p50_ms"] <= result["p95_ms"], name
        assert "SELECT" in result["sql"], name
        assert ("naive_ms" in result) == (name in NAIVE), name
        assert name in printed


def test_a_result_that_differs_stops_the_benchmark() -> None:
    with pytest.raises(AssertionError, match="returns different rows"):
        queries._require_agreement("failing_now", [{"a": 1, "b": 2}], [{"a": 2}])


@pytest.mark.alone
def test_the_large_ledger_resembles_a_real_one_and_has_all_indexes(engine: sa.Engine) -> None:
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'runs' ORDER BY 1"
    before = rows(engine, indexes)
    make(engine, queries.QUICK)
    assert rows(engine, indexes) == before
    statuses = {row["status"]: row["n"] for row in rows(engine, "SELECT status, count(*) AS n FROM runs GROUP BY 1")}
    assert set(statuses) >= {"success", "failed", "canceled", "skipped"}
    assert sum(statuses.values()) == queries.QUICK.runs


@pytest.mark.alone
def test_a_database_that_is_not_empty_is_left_alone(engine: sa.Engine) -> None:
    make(engine, queries.QUICK)
    with pytest.raises(SystemExit, match="empty database"):
        make(engine, queries.QUICK)
