import math
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.limits import BIGINT_MAX, INT_MAX, MAX_PAYLOAD_BYTES
from chm_dagster.domain.runs import Observation, Rejection, RunKind, RunStatus
from chm_dagster.partners.platforms.generic import DEFAULT_STATUS_MAP, GenericMapper
from chm_dagster.partners.port import MapRecord

PIPELINE = UUID("018f0000-0000-7000-8000-000000000001")
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
START = "2026-06-01T10:00:00Z"
FINISH = "2026-06-01T10:01:30Z"
RECORD: dict[str, Any] = {
    "id": "r1",
    "status": "success",
    "started_at": START,
    "finished_at": FINISH,
    "updated_at": FINISH,
}


def kind_of(value: object) -> str:
    """A test id: pytest would print integers of 5,000 digits, which Python rejects."""
    return type(value).__name__


MAPPING = GenericMapper()


def observe(_mapping: MapRecord = MAPPING, /, **changes: Any) -> Observation:
    seen = _mapping(PIPELINE, RECORD | changes, NOW)
    assert isinstance(seen, Observation), seen
    return seen


def reason(**changes: Any) -> str:
    seen = GenericMapper()(PIPELINE, RECORD | changes, NOW)
    assert isinstance(seen, Rejection), seen
    assert seen.pipeline_id == PIPELINE
    return seen.reason


@pytest.mark.parametrize(
    ("conclusion", "status"),
    [("failure", RunStatus.FAILED), ("success", RunStatus.SUCCESS), ("cancelled", RunStatus.CANCELED)],
)
@pytest.mark.parametrize("word", ["completed", "done"])
@pytest.mark.parametrize("field", ["conclusion", "result"])
def test_a_completed_run_ended_as_its_conclusion_says(
    field: str, word: str, conclusion: str, status: RunStatus
) -> None:
    assert observe(status=word, **{field: conclusion}).status is status
    assert observe(status=word, **{field: None}).status is RunStatus.SUCCESS
    assert observe(status="failed", **{field: "success"}).status is RunStatus.FAILED


def test_a_conclusion_that_is_unknown_is_no_success() -> None:
    assert observe(status="completed", conclusion="levitated").unknown_status


def test_a_full_record_becomes_an_observation() -> None:
    record = RECORD | {
        "duration_seconds": 1,
        "rows_processed": 1200,
        "url": "https://p.example/runs/r1",
        "attempt": 2,
        "status_reason": "backfill",
        "error_message": "not for a success",
        "region": "eu",
    }
    start = datetime(2026, 6, 1, 10, tzinfo=UTC)
    assert GenericMapper()(PIPELINE, record, NOW) == Observation(
        pipeline_id=PIPELINE,
        external_run_id="r1",
        status=RunStatus.SUCCESS,
        started_at=start,
        finished_at=start + timedelta(seconds=90),
        duration_seconds=90.0,
        rows_processed=1200,
        error_message=None,
        status_reason="backfill",
        source_url="https://p.example/runs/r1",
        payload=record,
        attempt=2,
        progress=1,
        source_version=start + timedelta(seconds=90),
        observed_at=NOW,
        unknown_status=False,
    )


@pytest.mark.parametrize("record", [None, "r1", 7, 1.5, True, [], [RECORD]])
def test_a_record_that_is_not_an_object_is_rejected(record: object) -> None:
    assert GenericMapper()(PIPELINE, record, NOW) == Rejection(
        PIPELINE, "record: not an object; send one JSON object for each run", record
    )


def test_a_record_without_an_id_or_a_status_is_rejected() -> None:
    without_id = {name: value for name, value in RECORD.items() if name != "id"}
    rejected = GenericMapper()(PIPELINE, without_id, NOW)
    assert rejected == Rejection(PIPELINE, "id: missing; every run needs one", without_id)
    assert reason(status=None) == "status: missing; every run needs one"


@pytest.mark.parametrize("bad", [None, "", " ", True, 1.0, [], {}, "x" * 513, "a\0b", "\ud800", 10**5_000], ids=kind_of)
def test_an_id_that_cannot_be_a_key_is_rejected(bad: object) -> None:
    assert reason(id=bad).startswith("id: ")


def test_ids_are_never_folded_or_masked() -> None:
    ids = ["a", "A", "a ", " a", "é", "e\u0301", "a\u200b", "token=abc", "ghp_" + "a" * 20, "password"]
    assert [observe(id=run_id).external_run_id for run_id in ids] == ids
    assert observe(id=7).external_run_id == observe(id="7").external_run_id == "7"


# status


@pytest.mark.parametrize(("word", "status"), sorted(DEFAULT_STATUS_MAP.items()))
def test_common_status_words_are_known_in_any_spelling(word: str, status: RunStatus) -> None:
    for spelled in (word, word.upper(), f" {word.title()}\n", word.replace("_", "-"), word.replace("_", " ")):
        seen = observe(status=spelled)
        assert (seen.status, seen.unknown_status) == (status, False)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("success", None),
        ("SUCCEEDED", None),
        ("in progress", None),
        ("cancelled", None),
        ("timed_out", "timed_out"),
        ("Timed Out", "Timed Out"),
        ("queued", "queued"),
        ("upstream-skipped", "upstream-skipped"),
    ],
)
def test_the_word_is_kept_if_it_says_more_than_the_status(word: str, expected: str | None) -> None:
    assert observe(status=word).status_reason == expected


@pytest.mark.parametrize("word", ["success", "queued"])
def test_the_records_own_reason_wins_over_the_word(word: str) -> None:
    assert observe(status=word, status_reason=" no\0 slot, token=hunter2 ").status_reason == "no� slot, token=***"
    assert observe(status="queued", status_reason=7).status_reason == "queued"


@pytest.mark.parametrize("word", ["zombie", "finished", "Ünknown\0", "x" * 1_000])
def test_an_unknown_word_is_running_and_never_an_outcome(word: str) -> None:
    seen = observe(status=word, status_reason="hidden", error_message="boom")
    assert (seen.status, seen.unknown_status, seen.progress) == (RunStatus.RUNNING, True, 0)
    assert seen.finished_at is seen.duration_seconds is seen.error_message is None
    assert (seen.status_reason or "")[:6] == word.replace("\0", "�")[:6]
    assert len(seen.status_reason or "") <= 200


@pytest.mark.parametrize("bad", [None, 0, 1, True, 1.5, [], {}, "", "  "])
def test_a_status_that_is_not_a_word_is_rejected(bad: object) -> None:
    assert reason(status=bad).startswith("status: ")


def test_a_partner_can_have_its_own_status_words() -> None:
    mapping = GenericMapper(status_map={**DEFAULT_STATUS_MAP, "Half-Done": RunStatus.FAILED})
    seen = observe(mapping, status="half done")
    assert (seen.status, seen.status_reason, seen.unknown_status) == (RunStatus.FAILED, "half done", False)
    assert observe(GenericMapper(status_map={}), status="success").unknown_status


# times


def test_created_at_is_when_a_run_was_queued_and_never_its_start() -> None:
    seen = observe(started_at=None, created_at="2026-06-01T09:00:00Z", duration_seconds=12)
    assert (seen.started_at, seen.queued_at) == (None, datetime(2026, 6, 1, 9, tzinfo=UTC))
    assert seen.duration_seconds == 12.0
    assert observe(created_at=START).queued_at == datetime(2026, 6, 1, 10, tzinfo=UTC)
    assert observe(started_at=None, created_at=START).duration_seconds is None


def test_a_bad_created_at_is_ignored_if_there_is_a_start() -> None:
    seen = observe(created_at="nonsense")
    assert (seen.started_at, seen.queued_at) == (datetime(2026, 6, 1, 10, tzinfo=UTC), None)


@pytest.mark.parametrize(
    ("word", "kind"), [("backfill", RunKind.BACKFILL), ("odd", None), (7, None), ([], None), (None, None)]
)
def test_the_kind_of_a_run_is_one_of_four_words(word: object, kind: RunKind | None) -> None:
    assert observe(kind=word).kind is kind


def test_a_failed_run_may_be_about_to_be_tried_again() -> None:
    assert observe(status="failed", will_retry=True).will_retry
    assert not observe(status="failed", will_retry="yes").will_retry
    assert not observe(will_retry=True).will_retry


def test_a_queued_run_needs_no_time() -> None:
    seen = observe(status="queued", started_at=None, finished_at=None, updated_at=None)
    assert (seen.started_at, seen.source_version) == (None, None)


def test_a_planned_start_within_a_day_is_fine() -> None:
    assert observe(status="scheduled", started_at="2026-06-02T11:00:00Z").started_at == NOW + timedelta(hours=23)


def test_a_finished_run_needs_some_time() -> None:
    assert reason(started_at=None, finished_at=None).startswith(
        "started_at: missing, as are finished_at and created_at"
    )
    assert observe(started_at=None).finished_at == datetime(2026, 6, 1, 10, 1, 30, tzinfo=UTC)
    assert observe(finished_at=None).finished_at is None


@pytest.mark.parametrize("field", ["started_at", "finished_at", "updated_at"])
@pytest.mark.parametrize(
    "bad",
    ["2026-06-01T10:00:00", "2026-06-01", "", 1_780_000_000, True, [], "0001-01-01T00:00:00Z", "2030-01-01T00:00:00Z"],
)
def test_an_ambiguous_time_rejects_the_record(field: str, bad: object) -> None:
    assert reason(**{field: bad}).startswith(f"{field}: ")


def test_the_reason_names_the_field_and_the_fix() -> None:
    assert reason(started_at="2026-06-01T10:00:00") == (
        "started_at: has no time zone; send ISO 8601 with an offset, such as 2026-01-31T08:00:00Z"
    )


def test_a_created_at_that_is_needed_must_be_readable() -> None:
    assert reason(started_at=None, created_at="nonsense").startswith("created_at: ")


@pytest.mark.parametrize("finished_at", [FINISH, "0001-01-01T00:00:00Z"])
def test_a_running_run_has_no_finish_no_duration_and_no_error(finished_at: str) -> None:
    seen = observe(status="running", finished_at=finished_at, duration_seconds=5, error_message="of the last try")
    assert seen.finished_at is seen.duration_seconds is seen.error_message is None
    assert seen.progress == 0


def test_the_version_is_read_whether_or_not_it_is_the_finish() -> None:
    finish = datetime(2026, 6, 1, 10, 1, 30, tzinfo=UTC)
    assert observe().source_version == finish
    assert observe(updated_at="2026-06-01T10:05:00Z").source_version == datetime(2026, 6, 1, 10, 5, tzinfo=UTC)
    # A reopened run may still show its old finish; it counts for the version in any case.
    assert observe(status="running").source_version == finish
    assert observe(finished_at=None, updated_at=None).source_version is None


def test_a_finish_before_the_start_is_kept_without_a_duration() -> None:
    seen = observe(started_at=FINISH, finished_at=START, duration_seconds=5)
    assert (seen.started_at, seen.finished_at) == (
        datetime(2026, 6, 1, 10, 1, 30, tzinfo=UTC),
        datetime(2026, 6, 1, 10, tzinfo=UTC),
    )
    assert seen.duration_seconds is None


def test_the_computed_duration_wins_over_the_reported_one() -> None:
    assert observe(duration_seconds=7).duration_seconds == 90.0
    assert observe(finished_at=None, duration_seconds=7).duration_seconds == 7.0
    assert observe(finished_at=None, duration_seconds=math.inf).duration_seconds is None


# the rest


@pytest.mark.parametrize("bad", [-1, 1.5, True, "many", 2**63, math.nan])
def test_an_invalid_row_count_does_not_reject_the_run(bad: object) -> None:
    assert observe(rows_processed=bad).rows_processed is None
    assert observe(rows_processed="42").rows_processed == 42


@pytest.mark.parametrize("bad", [-1, True, 1.0, "1", 2**31])
def test_an_invalid_attempt_is_rejected(bad: object) -> None:
    assert reason(attempt=bad).startswith("attempt: ")
    assert observe(attempt=None).attempt == observe().attempt == 0


@pytest.mark.parametrize(
    ("status", "kept"), [("failed", True), ("canceled", True), ("success", False), ("skipped", False)]
)
def test_only_a_failed_or_canceled_run_has_an_error(status: str, kept: bool) -> None:
    assert observe(status=status, error_message="boom").error_message == ("boom" if kept else None)


def test_an_error_is_masked_cleaned_and_truncated() -> None:
    message = observe(status="failed", error_message="a\0 password=hunter2 " + "x" * 1_000_000).error_message or ""
    assert message.startswith("a� password=*** x")
    assert " of 1,000,016 characters left out) ..." in message and message.endswith("xx")
    assert len(message.encode()) <= 8_000


def test_a_link_with_a_secret_is_not_kept() -> None:
    assert observe(url="https://u:pw@p.example/r").source_url is None
    assert observe(url="https://p.example/r?token=hunter2").source_url == "https://p.example/r"
    assert observe(url="javascript:alert(1)").source_url is None


def test_progress_says_finished_only_where_a_run_never_reopens() -> None:
    assert observe().progress == 1
    assert observe(GenericMapper(reopens=True)).progress == 0


def test_the_payload_is_the_record_with_its_secrets_masked() -> None:
    seen = observe(conf={"password": "hunter2", "n": math.nan, "a\0": 1}, note="token=hunter2")
    assert seen.payload == RECORD | {"conf": {"password": "***", "n": None, "a�": 1}, "note": "token=***"}


def test_the_record_of_a_rejection_is_masked_and_truncated_as_well() -> None:
    rejected = GenericMapper()(PIPELINE, {"password": "hunter2", "log": "x\0" * 100_000}, NOW)
    assert isinstance(rejected, Rejection)
    assert rejected.record["truncated"] is True
    assert rejected.record["password"] == "***"
    assert "hunter2" not in repr(rejected)


def test_a_reason_never_shows_the_value() -> None:
    for field in ("id", "status", "started_at", "attempt"):
        bad = {"password": "hunter2"} if field != "started_at" else "hunter2"
        assert "hunter2" not in reason(**{field: bad})


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "=1+1", "<!channel>", "\x1b[31m", "'; DROP TABLE runs; --", "\u202eabc"]
)
def test_texts_that_are_dangerous_only_elsewhere_are_kept_unchanged(text: str) -> None:
    seen = observe(id=text, status="failed", error_message=text, note=text)
    assert (seen.external_run_id, seen.error_message, seen.payload["note"]) == (text, text, text)


# whatever comes


def storable(seen: Observation) -> bool:
    """The constraints of the table runs."""
    times = [t for t in (seen.started_at, seen.finished_at, seen.source_version) if t is not None]
    texts = [
        t for t in (seen.external_run_id, seen.error_message, seen.status_reason, seen.source_url) if t is not None
    ]
    payload = orjson.dumps(seen.payload)
    return all(
        (
            1 <= len(seen.external_run_id) <= 512,
            all(b"\0" not in text.encode() for text in texts),
            all(t.tzinfo is UTC and 2000 <= t.year <= 2026 for t in times),
            seen.duration_seconds is None or 0 <= seen.duration_seconds < math.inf,
            seen.rows_processed is None or 0 <= seen.rows_processed <= BIGINT_MAX,
            len((seen.error_message or "").encode()) <= 8_000,
            len(seen.status_reason or "") <= 200,
            len(seen.source_url or "") <= 2_000,
            0 <= seen.attempt <= INT_MAX,
            seen.progress in (0, 1),
            seen.status.finished or (seen.finished_at is None and seen.duration_seconds is None),
            len(payload) <= MAX_PAYLOAD_BYTES,
            orjson.loads(payload) == seen.payload,
            b"\\u0000" not in payload.replace(b"\\\\", b""),
        )
    )


any_text = st.text(st.characters(exclude_categories=()), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | any_text
    # Created by map: Hypothesis prints the values it samples from, and Python refuses to print this number.
    | st.just(5_000).map(lambda digits: 10**digits)
    | st.sampled_from(
        [2**63, 2**31, "\0", "\ud800", "x" * 70_000, "é" * 9_000, START, FINISH, "9999-12-31T23:59:59-12:00"]
    )
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=8
)
FIELDS = "id status started_at finished_at created_at updated_at duration_seconds rows_processed error_message status_reason url attempt"


@given(anything)
@settings(max_examples=150, deadline=None)
def test_any_json_is_an_observation_or_a_rejection(record: object) -> None:
    assert isinstance(GenericMapper()(PIPELINE, record, NOW), Observation | Rejection)


@given(
    changes=st.dictionaries(st.sampled_from(FIELDS.split()) | any_text, anything, max_size=4),
    status=st.sampled_from(["success", "failed", "running", "queued", "zombie"]),
)
@settings(max_examples=400, deadline=None)
def test_every_observation_is_accepted_by_the_table(changes: dict[str, Any], status: str) -> None:
    seen = GenericMapper()(PIPELINE, RECORD | {"status": status} | changes, NOW)
    if isinstance(seen, Observation):
        assert storable(seen)
    else:
        orjson.dumps(seen.record)
        assert seen.reason.split(":")[0] in FIELDS.split()


def test_the_same_record_always_gives_the_same_observation() -> None:
    assert observe(conf={"b": 1, "a": 2}) == observe(conf={"a": 2, "b": 1})


def test_a_bad_record_does_not_affect_good_ones() -> None:
    mapping = GenericMapper()
    seen = [mapping(PIPELINE, record, NOW) for record in (RECORD, None, RECORD | {"id": "r2"})]
    assert [type(one) for one in seen] == [Observation, Rejection, Observation]
