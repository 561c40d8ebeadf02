"""The watermark never passes what was not read, and failing pipelines are tried again less and less often."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.sync import (
    StreamFacts,
    SyncErrorCode,
    clock_skew,
    error_code,
    next_attempt,
    partner_error,
    watermark,
)
from chm_dagster.errors import ConfigError

T0 = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
OVERLAP = timedelta(minutes=5)
minutes = st.integers(-300, 300).map(lambda n: timedelta(minutes=n))


def facts(**changes: object) -> StreamFacts:
    known: dict[str, object] = {"server_time": T0, "first_request": T0, "last_request": T0, "newest_version": T0}
    return StreamFacts(**{**known, **changes})  # type: ignore[arg-type]


@given(
    header=st.none() | minutes,
    ours=minutes,
    records=minutes,
    took=st.integers(0, 60).map(lambda n: timedelta(minutes=n)),
    ages=st.lists(st.integers(0, 120).map(lambda n: timedelta(minutes=n)), max_size=5),
    earlier=st.none() | st.integers(0, 600).map(lambda n: timedelta(minutes=n)),
    late=st.integers(0, 59).map(lambda n: timedelta(minutes=n)),
    delay=st.integers(0, 5).map(lambda n: timedelta(minutes=n)),
)
def test_no_record_that_was_stamped_before_the_watermark_can_have_been_missed(
    header: timedelta | None,
    ours: timedelta,
    records: timedelta,
    took: timedelta,
    ages: list[timedelta],
    earlier: timedelta | None,
    late: timedelta,
    delay: timedelta,
) -> None:
    """Three clocks that disagree as they like: the Date header's, CHM's, and the one that stamps records.

    The stream is read from T0 until T0 + took. Whatever is stamped while it is read, or before and shown up to `OVERLAP`
    later, may be missed: the earliest such stamp is the records' clock at T0, minus the overlap.
    """
    stamped = [T0 + records + took - age for age in ages if age >= late]
    seen = [stamp for stamp in stamped if stamp <= T0 + ours]
    reached = watermark(
        StreamFacts(
            server_time=None if header is None else T0 + header,
            first_request=T0 + ours,
            last_request=T0 + ours + took,
            newest_version=max(seen, default=None),
        ),
        OVERLAP,
        # What an earlier sync reached: the records' clock had been past it by the overlap.
        None if earlier is None else T0 + records - OVERLAP - earlier,
    )
    missed_at_the_earliest = T0 + records - delay
    assert (reached is not None) is bool(seen or earlier is not None)
    if reached is not None:
        assert reached <= missed_at_the_earliest
        assert reached <= T0 + ours - OVERLAP
        assert header is None or reached <= T0 + header - OVERLAP


def test_right_clocks_and_a_fresh_record_give_the_time_of_the_first_request_minus_the_overlap() -> None:
    assert watermark(facts(), OVERLAP, None) == T0 - OVERLAP


def test_a_date_header_ahead_of_the_records_does_not_count() -> None:
    ahead = facts(server_time=T0 + timedelta(hours=2), newest_version=T0 - timedelta(minutes=7))
    assert watermark(ahead, OVERLAP, None) == T0 - timedelta(minutes=12)


@pytest.mark.parametrize("earliest", ["server_time", "first_request", "newest_version"])
def test_of_the_three_clocks_the_earliest_counts(earliest: str) -> None:
    later = T0 + timedelta(hours=1)
    clocks = dict.fromkeys(("server_time", "first_request", "last_request", "newest_version"), later)
    clocks[earliest] = T0
    # The stream was read in no time: how long reading took is taken off the records' clock.
    clocks["last_request"] = clocks["first_request"]
    assert watermark(facts(**clocks), OVERLAP, None) == T0 - OVERLAP


def test_without_any_record_nothing_is_known_about_the_clock_that_stamps_them() -> None:
    assert watermark(facts(newest_version=None), OVERLAP, None) is None


def test_a_quiet_stream_keeps_what_an_earlier_sync_proved() -> None:
    earlier = T0 - timedelta(days=2)
    assert watermark(facts(newest_version=None), OVERLAP, earlier) == earlier


def test_records_without_a_time_leave_the_clocks_of_the_two_servers() -> None:
    assert watermark(facts(newest_version=None, has_untimed=True), OVERLAP, None) == T0 - OVERLAP


def test_back_off_doubles_up_to_a_quarter_of_an_hour() -> None:
    since = attempt = T0
    waits = []
    for _ in range(7):
        due = next_attempt(since, attempt)
        waits.append((due - attempt) / timedelta(minutes=1))
        attempt = due
    assert waits == [1, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("code", [code for code in SyncErrorCode if code is not SyncErrorCode.CLOCK_SKEW])
def test_the_kind_of_an_error_survives_being_kept(code: SyncErrorCode) -> None:
    if code is not SyncErrorCode.CONFIGURATION:
        assert error_code(partner_error(code, "no")) is code
    assert error_code(ConfigError("no")) is SyncErrorCode.CONFIGURATION


def test_clocks_that_differ_by_less_than_a_slow_request_are_the_same() -> None:
    assert clock_skew(T0 + timedelta(seconds=100), T0) is None
    assert clock_skew(None, T0) is None
    assert clock_skew(T0 + timedelta(minutes=6), T0) == timedelta(minutes=6)
    assert clock_skew(T0 - timedelta(minutes=6), T0) == timedelta(minutes=-6)
