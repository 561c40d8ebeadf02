"""Questions about a time in the past, answered from what is known now. The model of `test_model.py` covers the runs."""

import re
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.runs import Run
from chm_dagster.warehouse.ledger.runs import Runs
from chm_dagster.warehouse.named_queries import ask, queries
from chm_dagster_tests.contracts.histories import DAY, HOUR, NOW, execution, one, watch
from chm_dagster_tests.contracts.test_form import nodes

TIMED = sorted(query.name for query in queries().values() if "at" in {p.name for p in query.parameters})


def change(engine: sa.Engine, assignments: str, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE pipelines SET {assignments}"), values)


def test_every_question_about_health_now_can_be_about_then() -> None:
    assert set(TIMED) == {
        *("changed_since", "failing_now", "flaky_pipelines", "latest_status_by_client"),
        *("latest_status_by_pipeline", "needs_attention", "recent_runs_by_pipeline"),
        *("error_groups", "failed_runs"),
    }


def test_what_failed_then_and_is_fixed_now(engine: sa.Engine) -> None:
    watch(engine, "SSFFS")
    then = NOW - 1.5 * HOUR
    assert ask(engine, "failing_now") == []
    row = one(engine, "failing_now", at=then)
    assert (row["failures"], row["failing_since"], row["external_run_id"]) == (2, NOW - 3 * HOUR, "run-3")
    assert row["failing_seconds"] == 1.5 * 3600
    assert one(engine, "needs_attention", at=then)["health_since"] == NOW - 3 * HOUR
    assert one(engine, "latest_status_by_client", at=then)["failing"] == 1
    assert one(engine, "changed_since", at=then, since=NOW - 3.5 * HOUR)["change"] == "regression"


def test_a_run_that_ended_later_was_running_and_may_have_taken_too_long(engine: sa.Engine) -> None:
    runs = [execution(1, "S", NOW - 9 * HOUR), execution(2, "F", NOW - 5 * HOUR, NOW - HOUR)]
    watch(engine, runs)
    change(engine, "max_runtime_minutes = 60")
    then = one(engine, "latest_status_by_pipeline", at=NOW - 2 * HOUR)
    assert (then["status"], then["health"], then["health_since"]) == ("running", "overrunning", NOW - 4 * HOUR)
    assert (then["finished_at"], then["duration_seconds"], then["error_message"]) == (None, None, None)
    assert one(engine, "latest_status_by_pipeline", at=NOW - 4.5 * HOUR)["health"] == "healthy"
    assert one(engine, "latest_status_by_pipeline", at=NOW - HOUR)["health"] == "failing"


def test_lateness_is_not_claimed_where_only_the_writer_could_have_known_it(engine: sa.Engine) -> None:
    watch(engine, [execution(1, "S", NOW - 9 * HOUR), execution(2, "S", NOW - 2 * HOUR)])
    change(engine, "schedule_cron = '0 * * * *', due_at = :due, known_through = now()", due=NOW - HOUR)
    open_question = one(engine, "latest_status_by_pipeline", at=NOW - 5 * HOUR)
    assert (open_question["health"], open_question["due_at"]) == ("healthy", None)
    assert open_question["health_reason"] == "whether a run was late then is not known"
    # It has not run since then: the due time of now was that of then.
    assert one(engine, "latest_status_by_pipeline", at=NOW - HOUR / 2)["health"] == "late"
    assert one(engine, "latest_status_by_pipeline", at=NOW - 1.5 * HOUR)["health_reason"] is None
    assert one(engine, "latest_status_by_pipeline")["health"] == "late"


def test_what_was_found_out_about_reading_later_says_nothing_about_then(engine: sa.Engine) -> None:
    watch(engine, "SSS")
    columns = "external_id = 'x', sync_error_code = 'unreachable', sync_error = 'no', sync_failing_since = :since"
    change(
        engine,
        f"{columns}, sync_attempted_at = now(), observed_through = :since, stale_at = :stale",
        since=NOW - 3 * HOUR,
        stale=NOW - 2.5 * HOUR,
    )
    assert one(engine, "latest_status_by_pipeline", at=NOW - 2.6 * HOUR)["health"] == "healthy"
    blind = one(engine, "latest_status_by_pipeline", at=NOW - 2 * HOUR)
    assert blind["health"] == "unknown" and "unreachable since" in blind["health_reason"]


def test_before_anything_is_known_everything_is_unknown(engine: sa.Engine) -> None:
    watch(engine, "SSS")
    row = one(engine, "latest_status_by_pipeline", at=NOW - 30 * DAY)
    assert (row["health"], row["health_since"], row["status"]) == ("unknown", None, None)
    assert row["health_reason"] == "no run has settled yet"


def test_an_error_counts_from_when_a_run_had_failed_with_it(engine: sa.Engine) -> None:
    """It began before the first time asked for and ended after it; then it was mended."""
    watch(engine, [execution(1, "F", NOW - 6 * HOUR, NOW - 4 * HOUR), execution(2, "S", NOW - 2 * HOUR)])
    for question in ("error_groups", "failed_runs"):
        assert ask(engine, question, at=NOW - 5 * HOUR) == []
        assert len(ask(engine, question, at=NOW - 3 * HOUR)) == len(ask(engine, question)) == 1
        assert ask(engine, question, at=NOW + 8 * DAY) == []
        assert ask(engine, question, at=NOW - 3 * HOUR, since=NOW - 5 * HOUR) == []
    assert one(engine, "error_groups", at=NOW - 3 * HOUR)["still_failing"] == 1
    assert one(engine, "error_groups")["still_failing"] == 0


def test_a_run_as_it_was_is_the_same_in_the_database_and_in_python(engine: sa.Engine) -> None:
    times = [execution(1, "F", NOW - 8 * HOUR, NOW - 6 * HOUR), execution(2, "S", NOW - 7 * HOUR, NOW - 5 * HOUR)]
    pipeline = watch(engine, [*times, execution(3, "R", NOW - 4 * HOUR), execution(4, "C", NOW - 4 * HOUR, None)])
    present = Runs(engine).list(pipeline).items
    for hours in (9, 8, 7.5, 6.5, 6, 5.5, 4, 3.9, 0):
        at = NOW - hours * HOUR
        with engine.connect() as connection:
            query = sa.text("SELECT * FROM latest_runs(:pipeline, 100, :at)")
            rows = {row["id"]: row for row in connection.execute(query, {"pipeline": pipeline, "at": at}).mappings()}
        then = {run.id: run.as_dict() for one in present if (run := one.as_it_was(at)) is not None}
        assert then.keys() == rows.keys()
        for name in set(Run.model_fields) & set(next(iter(rows.values()), {})):
            assert {i: run[name] for i, run in then.items()} == {i: row[name] for i, row in rows.items()}, (hours, name)


# --- plans -----------------------------------------------------------------------------------------------------------------

AT = "CAST(:at AS timestamptz)"


def without_time(sql: str) -> str:
    """The statement as it would be if the question were about now only."""
    sql = re.sub(rf"health_at\(([^()]+), {re.escape(AT)}\)", r"health_of(\1, now())", sql)
    runs = "(SELECT * FROM health_runs AS h WHERE h.pipeline_id = p.pipeline_id)"
    sql = sql.replace(f"health_runs_at(p.pipeline_id, {AT})", runs)
    sql = re.sub(rf"AND \({re.escape(AT)} IS NULL OR [^()]+\([^()]+\) <= {re.escape(AT)}\)", "", sql)
    sql = sql.replace(f"coalesce({AT}, now())", "now()")
    sql = re.sub(rf"{re.escape(AT)}( - interval '\d+ hours')?, ", "", sql)
    return re.sub(rf",\s+{re.escape(AT)}(?=\s*\))", "", sql)


def shape(engine: sa.Engine, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        params = {**dict.fromkeys(sa.text(sql).compile().params), **values}
        (plan,) = connection.scalar(sa.text(f"EXPLAIN (FORMAT JSON) {sql}"), params)
    return [
        (n["Node Type"], n.get("Index Name"), n.get("Index Cond"), n.get("Relation Name")) for n in nodes(plan["Plan"])
    ]


@pytest.mark.alone
@pytest.mark.parametrize("name", TIMED)
def test_without_a_time_the_plan_is_that_of_a_question_about_now(name: str, engine: sa.Engine) -> None:
    sql = queries()[name].sql
    assert ":at" not in without_time(sql)
    assert shape(engine, sql) == shape(engine, without_time(sql))


@pytest.mark.alone
@pytest.mark.parametrize("name", TIMED)
def test_with_a_time_runs_are_still_read_by_index(name: str, engine: sa.Engine) -> None:
    found = [part for part in shape(engine, queries()[name].sql, at=NOW - DAY) if part[3] == "runs"]
    bounds = [condition for _, index, condition, _ in found if index in ("ix_runs_latest", "ix_runs_failed")]
    assert any("effective_at <" in condition for condition in bounds), found
    assert "Seq Scan" not in {kind for kind, _, _, _ in found}
