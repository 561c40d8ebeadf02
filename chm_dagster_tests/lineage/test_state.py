"""Events combine to the same state in any order, and to what their producers meant."""

import random
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.lineage import Ignored, LineageEvent, LineageState, read_event
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import InputError
from chm_dagster_tests.lineage.recorded import LATEST, events, of_task, sent


def read(event: Any) -> LineageEvent:
    said = read_event(event, LATEST)
    assert isinstance(said, LineageEvent), said
    return said


def states(sent_events: list[dict[str, Any]]) -> dict[str, LineageState]:
    """Run id -> the state from all its events; Airflow's own run id if there is one."""
    known: dict[str, LineageState] = {}
    for event in sent_events:
        said = read_event(event, LATEST)
        if isinstance(said, LineageEvent):
            key = said.airflow_run_id or said.run_id
            state = LineageState.of(said)
            known[key] = known[key].join(state) if key in known else state
    return known


def test_airflow_runs_end_with_airflows_own_status() -> None:
    known = states(events("airflow"))
    ours = {key: (s.status, s.attempt, s.error) for key, s in known.items() if key.startswith("ol_")}
    assert ours == {
        "ol_p_success": (RunStatus.SUCCESS, 0, None),
        "ol_p_skip": (RunStatus.SKIPPED, 0, None),
        "ol_p_flaky": (RunStatus.SUCCESS, 0, None),
        "ol_p_fail": (RunStatus.FAILED, 1, "source table orders is missing column amount"),
        "ol_p_slow": (RunStatus.CANCELED, 0, "Dag Run's state was manually set to `failed`."),
    }


def test_a_cleared_run_starts_over() -> None:
    cleared = states(events("airflow"))["ol_p_fail"]
    assert cleared.started_at is not None and cleared.end is not None
    assert cleared.started_at.isoformat().startswith("2026-11-23T11:59:28")
    assert cleared.end.at.isoformat().startswith("2026-11-23T11:59:34")


def test_dbt_runs_fail_with_the_message_of_the_model() -> None:
    known = states(events("dbt"))
    assert {s.status for s in known.values()} == {RunStatus.FAILED}
    by_start = sorted(known.values(), key=lambda s: s.seen)
    assert by_start[0].error is None, "dbt's artifact mode sends no message at all"
    assert "Binder Error" in (by_start[1].error or "")


@pytest.mark.parametrize("producer", ["airflow", "dbt"])
def test_three_hundred_shuffled_and_repeated_deliveries_give_the_same_state(producer: str) -> None:
    sent_events = events(producer)
    wanted = states(sent_events)
    for seed in range(300):
        chance = random.Random(seed)
        delivered = sent_events + chance.choices(sent_events, k=len(sent_events) * 2)
        chance.shuffle(delivered)
        assert states(delivered) == wanted


times = st.integers(0, 9).map(lambda second: f"2026-11-23T12:00:0{second}Z")
texts = st.sampled_from(["disk full", "no table", None])
anything = st.lists(
    st.one_of(
        st.builds(
            lambda kind, at, clear, error, rows, task: sent(
                kind,
                at,
                outputs=[] if rows is None else [{"outputFacets": {"outputStatistics": {"rowCount": rows}}}],
                facets={
                    "airflowDagRun": {"dagRun": {"run_id": "r", "clear_number": clear}},
                    "airflowState": {"tasksState": {"load": task}},
                    **({"errorMessage": {"message": error}} if error else {}),
                },
            ),
            st.sampled_from(["START", "RUNNING", "COMPLETE", "FAIL", "ABORT"]),
            times,
            st.integers(0, 2),
            texts,
            st.sampled_from([None, 0, 7]),
            st.sampled_from(["success", "skipped"]),
        ),
        st.builds(
            lambda kind, at, error: of_task(kind, at, error=error), st.sampled_from(["START", "FAIL"]), times, texts
        ),
    ),
    min_size=1,
    max_size=8,
)


@given(anything, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_joining_ignores_order_and_repetition(sent_events: list[dict[str, Any]], chance: Any) -> None:
    known = [LineageState.of(read(event)) for event in sent_events]
    wanted = reduce(LineageState.join, known)
    again = known + chance.choices(known, k=3)
    chance.shuffle(again)
    assert reduce(LineageState.join, again) == wanted
    assert LineageState.from_json(wanted.as_json()) == wanted


def test_a_late_start_does_not_reopen_a_run() -> None:
    known = states([sent("COMPLETE", "2026-11-23T12:00:00Z"), sent("START", "2026-11-23T12:00:05Z")])
    assert known["u1"].status is RunStatus.SUCCESS


def test_a_task_event_before_its_run_means_that_the_run_is_running() -> None:
    known = states([of_task("FAIL", error="no disk")])
    assert known["u1"].status is RunStatus.RUNNING
    assert known["u1"].error is None
    known = states([of_task("FAIL", error="no disk"), sent("FAIL", "2026-11-23T12:00:09Z")])
    assert known["u1"].error == "no disk"


def test_a_success_does_not_show_the_error_of_an_earlier_attempt() -> None:
    known = states([of_task("FAIL", error="no disk"), sent("COMPLETE", "2026-11-23T12:00:09Z")])
    assert (known["u1"].status, known["u1"].error) == (RunStatus.SUCCESS, None)


@pytest.mark.parametrize(
    "more",
    [
        {"outputs": [{"outputFacets": {"outputStatistics": {"rowCount": 7}}}]},
        {"facets": {"airflowState": {"tasksState": {"load": "skipped"}}}},
    ],
)
def test_two_ends_at_the_same_time_give_the_same_result_in_either_order(more: dict[str, Any]) -> None:
    one, other = sent("COMPLETE"), sent("COMPLETE", **more)
    assert states([one, other]) == states([other, one])


def test_rows_are_summed_over_outputs() -> None:
    outputs = [{"outputFacets": {"outputStatistics": {"rowCount": n}}} for n in (3, 4)] + [{}]
    end = states([sent("COMPLETE", outputs=outputs)])["u1"].end
    assert end is not None and end.rows == 7


def test_secrets_in_an_error_are_masked() -> None:
    state = states([sent("FAIL", facets={"errorMessage": {"message": "password=hunter2 refused"}})])["u1"]
    assert "hunter2" not in str(state)


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({"eventTime": "2026-11-23T12:00:00Z", "job": {"namespace": "a", "name": "b"}}, "not about a run"),
        (sent("OTHER"), "nothing about a status"),
        (sent(None), "nothing about a status"),
        ({**sent(), "eventType": ["START"]}, "nothing about a status"),
        (sent(job_facets={"jobType": {"processingType": "STREAMING"}}), "a stream"),
        (sent(facets={"parent": {"run": {}, "job": {}}}), "does not name its run"),
    ],
)
def test_an_event_without_a_run_is_ignored_with_a_reason(event: dict[str, Any], why: str) -> None:
    said = read_event(event, LATEST)
    assert isinstance(said, Ignored) and why in said.reason


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ([], "body"),
        ("x", "body"),
        ({**sent(), "eventTime": None}, "eventTime"),
        ({**sent(), "eventTime": "2026-11-23T12:00:00"}, "eventTime"),
        ({**sent(), "job": None}, "job"),
        ({**sent(), "job": {"namespace": "a", "name": ""}}, "job.name"),
        ({**sent(), "run": {"runId": None}}, "run.runId"),
        ({**sent(), "run": "u1"}, "run"),
    ],
)
def test_an_event_that_violates_the_specification_is_rejected_by_field(event: Any, field: str) -> None:
    with pytest.raises(InputError) as refused:
        read_event(event, LATEST)
    assert refused.value.field == field


NAMES = [
    "run",
    "runId",
    "job",
    "namespace",
    "name",
    "dagRun",
    "run_id",
    "clear_number",
    "start_date",
    "root",
    "message",
    "tasksState",
    "load",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=True),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["run", "dagRun", "root", "message"]), inner)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from(["airflowDagRun", "airflow", "errorMessage", "parent", "airflowState"]),
    json_values,
    st.sampled_from(["START", "FAIL", "COMPLETE"]),
)
@settings(max_examples=100)
def test_any_facet_content_is_read_or_ignored(facet: str, value: Any, kind: str) -> None:
    assert isinstance(read_event(sent(kind, facets={facet: value}), LATEST), LineageEvent | Ignored)


@given(json_values)
def test_any_job_type_is_read(value: Any) -> None:
    facets = {"jobType": {"jobType": value, "processingType": value}}
    assert isinstance(read_event(sent(job_facets=facets), LATEST), LineageEvent)
