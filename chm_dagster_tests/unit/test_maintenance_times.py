"""When stored maintenance windows are open."""

from datetime import UTC, datetime
from typing import Any

import pytest

from chm_dagster.domain.maintenance import times_of


def at(day: int, hour: float = 0, month: int = 11) -> datetime:
    whole = int(hour)
    return datetime(2026, month, day, whole, round((hour - whole) * 60), tzinfo=UTC)


ONCE = {"start": "2026-11-17T02:00:00Z", "end": "2026-11-17T06:00:00Z"}
NIGHTLY = {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "minutes": 60}


@pytest.mark.parametrize(
    ("windows", "since", "until", "times"),
    [
        pytest.param([], at(16), at(23), (), id="none"),
        pytest.param([ONCE], at(16), at(23), ((at(17, 2), at(17, 6)),), id="one-off"),
        pytest.param([ONCE], at(17, 5), at(23), ((at(17, 2), at(17, 6)),), id="begun before"),
        pytest.param([ONCE], at(17, 6), at(23), (), id="over"),
        pytest.param([ONCE], at(16), at(17, 2), (), id="later"),
        pytest.param([NIGHTLY], at(16), at(18), ((at(16, 1), at(16, 2)), (at(17, 1), at(17, 2))), id="recurring"),
        pytest.param([NIGHTLY], at(16, 1.5), at(17), ((at(16, 1), at(16, 2)),), id="open at the start"),
        pytest.param([ONCE, NIGHTLY], at(17), at(18), ((at(17, 1), at(17, 6)),), id="windows that touch are one"),
        pytest.param(
            [{"cron": "0 2 * * *", "timezone": "Europe/Berlin", "minutes": 60}],
            at(24, month=10),
            at(26, month=10),
            ((at(24, 0, 10), at(24, 1, 10)), (at(25, 0, 10), at(25, 1, 10))),
            id="clocks set back",
        ),
    ],
)
def test_a_window_is_open(windows: list[Any], since: datetime, until: datetime, times: tuple[Any, ...]) -> None:
    assert times_of(windows, since, until) == times
