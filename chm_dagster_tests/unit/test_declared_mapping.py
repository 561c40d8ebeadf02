"""A configured mapping: every value from its selector, every hostile value with a defined result."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.runs import Observation, Rejection, RunKind, RunStatus
from chm_dagster.partners.engine.mapping import DETAILS, RecordMapper
from chm_dagster.partners.engine.model import Runs
from chm_dagster.partners.platforms import shipped

PIPELINE = UUID(int=1)
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BASE: dict[str, Any] = {
    "pipeline": ["job"],
    "id": "id",
    "status": {
        "selector": "${state}/${result}",
        "map": {
            "done/*": "success",
            "done/broken": "failed",
            "done/stopped": {"status": "canceled", "reason": "somebody stopped it"},
            "busy/*": "running",
            "planned/*": "drop",
        },
    },
    "started": ["start", "began"],
    "queued": ["created", "due"],
    "finished": ["end"],
    "version": ["start", "end", "changed"],
    "rows": ["stats.rows"],
    "error": ["problem.text", "note"],
    "reason": ["why"],
}


def mapping(reopens: bool = True, **changes: Any) -> RecordMapper:
    return RecordMapper(Runs.model_validate({**BASE, **changes}), reopens=reopens, links={"ui": "https://ui.example"})


def record(**changes: Any) -> dict[str, Any]:
    fields = {
        "id": "r1",
        "job": "j",
        "state": "done",
        "result": "well",
        "start": "2026-03-01T10:00:00Z",
        "end": "2026-03-01T10:10:00Z",
    }
    return {**fields, **changes}


def run(raw: Any, reopens: bool = True, **changes: Any) -> Observation:
    found = mapping(reopens, **changes)(PIPELINE, raw, NOW)
    assert isinstance(found, Observation), found
    return found


def reason(raw: Any, **changes: Any) -> str:
    found = mapping(**changes)(PIPELINE, raw, NOW)
    assert isinstance(found, Rejection)
    return found.reason


def test_an_exact_word_wins_over_the_longest_prefix() -> None:
    assert run(record()).status is RunStatus.SUCCESS
    assert run(record(result="broken")).status is RunStatus.FAILED
    assert run(record(state="Done", result="BROKEN")).status is RunStatus.FAILED
    assert run(record(result="broken-ish")).status is RunStatus.SUCCESS
    assert run(record(result=None)).status is RunStatus.SUCCESS


def test_a_word_that_says_more_than_the_status_is_shown() -> None:
    assert run(record()).status_reason == "done/well"
    assert run(record(result="stopped")).status_reason == "somebody stopped it"
    assert run(record(why="out of quota")).status_reason == "out of quota"
    status = {"selector": "state", "map": {"success": "success", "odd": "success"}}
    assert run(record(state="success"), status=status).status_reason is None
    assert run(record(state="odd"), status=status).status_reason == "odd"
    assert run(record(state="odd"), status={**status, "label": ["result"]}).status_reason == "well"


def test_an_unknown_word_counts_as_running_whatever_else_the_record_says() -> None:
    found = run(record(state="levitating", why="not this"))
    assert (found.status, found.unknown_status) == (RunStatus.RUNNING, True)
    assert (found.finished_at, found.duration_seconds) == (None, None)
    assert found.status_reason == "levitating/well"


@pytest.mark.parametrize("word", [None, True, 1.5, [], {}])
def test_a_record_without_a_status_word_is_rejected(word: Any) -> None:
    assert "status" in reason(record(state=word), status={"selector": "state", "map": {"a": "success"}})


def test_a_number_can_be_a_status_word() -> None:
    assert run(record(state=10), status={"selector": "state", "map": {10: "success"}}).status is RunStatus.SUCCESS


def test_a_run_that_is_not_finished_has_no_end() -> None:
    found = run(record(state="busy"))
    assert (found.finished_at, found.duration_seconds, found.error_message) == (None, None, None)


def test_progress_counts_only_where_a_finished_run_stays_finished() -> None:
    assert run(record(), reopens=True).progress == 0
    assert run(record(), reopens=False).progress == 1
    assert run(record(state="busy"), reopens=False).progress == 0


def test_the_newest_time_is_the_version() -> None:
    assert run(record(changed="2026-03-01T11:00:00Z")).source_version == datetime(2026, 3, 1, 11, tzinfo=UTC)
    assert run(record(changed=None)).source_version == datetime(2026, 3, 1, 10, 10, tzinfo=UTC)
    assert run(record(), version=[]).source_version is None


def test_the_newest_waiting_time_is_never_a_start_and_never_in_the_future() -> None:
    waiting = record(state="busy", start=None, created="2026-03-01T09:00:00Z", due="2026-03-01T09:30:00Z")
    assert (run(waiting).started_at, run(waiting).queued_at) == (None, datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    assert run({**waiting, "due": "2026-03-01T12:00:59Z"}).queued_at is not None
    assert run({**waiting, "due": "2026-03-01T12:02:00Z"}).queued_at is None
    assert run({**waiting, "due": "2031-01-01T00:00:00Z"}).queued_at is None
    assert run(record(start=None, created="2026-03-01T09:00:00Z")).duration_seconds is None
    assert run(record(created="nonsense")).queued_at is None
    assert "created" in reason(record(state="busy", start=None, created="nonsense"))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"type": "nightly"}, RunKind.SCHEDULED),
        ({"type": "by hand"}, None),
        ({"tags": [{"key": "who", "value": "anna"}]}, RunKind.MANUAL),
        ({"tags": [{"key": "who"}, {"key": "x/backfill", "value": "b1"}]}, RunKind.BACKFILL),
        ({}, None),
    ],
)
def test_the_first_kind_with_a_match_says_why_a_run_was_started(fields: Any, kind: RunKind | None) -> None:
    kinds = {
        "backfill": {"tags.?key=x/backfill": []},
        "manual": {"tags.?key=who": []},
        "scheduled": {"type": ["nightly"]},
    }
    assert run(record(**fields), kinds=kinds).kind is kind


def test_only_a_failed_run_is_about_to_be_tried_again() -> None:
    again = {"will_retry": {"tags.?key=retry.value": ["true"]}}
    tags = [{"key": "retry", "value": "true"}]
    assert run(record(result="broken", tags=tags), **again).will_retry
    assert not run(record(tags=tags), **again).will_retry
    assert not run(record(result="broken", tags=[{"key": "retry", "value": "false"}]), **again).will_retry


def test_a_second_selector_is_used_if_the_first_finds_nothing() -> None:
    assert run(record(start=None, began="2026-03-01T08:00:00Z")).started_at == datetime(2026, 3, 1, 8, tzinfo=UTC)


def test_the_partners_null_values_are_not_times() -> None:
    zero = {"nulls": [0, "", "0001-01-01T00:00:00Z"]}
    for null in ("", "0001-01-01T00:00:00Z"):
        assert run(record(end=null), **zero).finished_at is None
    numbers = record(start=1_772_359_200_000, end=0)
    assert run(numbers, times="epoch_ms", **zero).finished_at is None
    assert run(numbers, times="epoch_ms", **zero).started_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
    # False is not zero.
    assert "end" in reason(record(start=1_772_359_200_000, end=False), times="epoch_ms", **zero)


@pytest.mark.parametrize(
    ("unit", "value", "seconds"),
    [
        ("seconds", 90, 90.0),
        ("seconds", -1, None),
        ("seconds", "90", None),
        ("seconds", True, None),
        ("seconds", 1e300, None),
        ("seconds", float("nan"), None),
        ("milliseconds", 1500, 1.5),
        ("clock", "01:02:03", 3723.0),
        ("clock", "02:03.5", 123.5),
        ("clock", "nonsense", None),
        ("iso8601", "PT1H2M3.5S", 3723.5),
        ("iso8601", "P1DT1S", 86_401.0),
        ("iso8601", "P", None),
        ("iso8601", "PT", None),
        ("iso8601", 5, None),
    ],
)
def test_durations_are_read_in_the_partners_unit(unit: str, value: Any, seconds: float | None) -> None:
    duration = {"selector": "took", "unit": unit}
    assert run(record(end=None, took=value), duration=duration).duration_seconds == seconds


def test_a_missing_end_is_computed_from_the_duration() -> None:
    duration = {"selector": "took", "gives_finish": True}
    found = run(record(end=None, took=90), duration=duration)
    assert found.finished_at == datetime(2026, 3, 1, 10, 1, 30, tzinfo=UTC)
    assert run(record(state="busy", end=None, took=90), duration=duration).finished_at is None
    assert run(record(end=None, took=1e300), duration=duration).finished_at is None


def test_an_error_belongs_to_a_failure_and_explains_a_cancellation() -> None:
    failed = run(record(result="broken", problem={"text": "password=hunter2 is wrong"}))
    assert failed.error_message == "password=*** is wrong"
    assert run(record(note="all fine")).error_message is None
    status = {"selector": "state", "map": {"stopped": "canceled"}}
    stopped = run(record(state="stopped", note="by an operator"), status=status)
    assert (stopped.error_message, stopped.status_reason) == (None, "by an operator")


def test_looked_up_details_win_and_are_not_part_of_the_payload() -> None:
    added = {"error": "ValueError: x", "rows": 12, "reason": "said the log"}
    found = run(record(result="broken", note="generic", stats={"rows": 5}, **{DETAILS: added}))
    assert (found.error_message, found.rows_processed, found.status_reason) == ("ValueError: x", 12, "said the log")
    assert DETAILS not in found.payload
    plain = run(record(result="broken", note="generic", stats={"rows": 5}))
    assert found.payload == plain.payload
    assert run(record(**{DETAILS: "nonsense"})).status is RunStatus.SUCCESS


def test_volatile_fields_are_not_kept() -> None:
    assert "clock" not in run(record(clock=1), volatile=["clock"]).payload


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": None}, "id: missing"),
        ({"id": ""}, "id: empty"),
        ({"id": 1.5}, "id: a number"),
        ({"start": "yesterday"}, "start: not a time"),
        ({"start": "2026-03-01T10:00:00"}, "start: has no time zone"),
        ({"end": "2031-01-01T00:00:00Z"}, "end: more than a day in the future"),
        ({"start": None, "end": None}, "start: missing"),
        ({"tries": -1}, "attempt"),
    ],
)
def test_fields_that_identify_and_order_a_run_must_be_valid(changes: dict[str, Any], words: str) -> None:
    assert words in reason(record(**changes), attempt="tries")


def test_an_attempt_can_be_the_length_of_a_list() -> None:
    assert run(record(repairs=[1, 2]), attempt="repairs.#").attempt == 2
    assert run(record(), attempt="repairs.#").attempt == 0


def test_an_id_can_consist_of_several_fields() -> None:
    assert run(record(job="j", number=3), id="${job}:${number}").external_run_id == "j:3"
    assert "missing" in reason(record(), id="${job}:${number}")


HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [10**400, "\x00", "\ud800", "2026-03-01T10:00:00Z", "9999-12-31T23:59:59Z", "success", "x" * 9_000]
    )
    | st.integers(min_value=4_400, max_value=4_500).map(lambda digits: 10**digits)
    | st.text(max_size=10),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=5), child, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("api", sorted(shipped()))
@given(data=st.data())
def test_no_record_makes_a_mapping_fail_and_the_same_record_means_the_same(api: str, data: st.DataObject) -> None:
    runs = shipped()[api].runs
    places = [
        *runs.id,
        *runs.started,
        *runs.finished,
        *runs.queued,
        *runs.error,
        *runs.version,
        "status",
        "state",
        "state_type",
    ]
    names = sorted({place.partition(".")[0].strip("${}") for place in places})
    raw = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(names, HOSTILE)) | HOSTILE)
    chosen = RecordMapper(runs, reopens=shipped()[api].reopens)
    found = chosen(PIPELINE, raw, NOW)
    assert isinstance(found, Observation | Rejection)
    if isinstance(found, Observation):
        assert found == chosen(PIPELINE, raw, NOW)
        assert found.started_at is None or found.started_at <= NOW + timedelta(days=1)
        assert found.status.finished or (found.finished_at is None and found.duration_seconds is None)
