"""Cursors: a valid position is accepted, anything else is rejected."""

import base64
from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.errors import InputError
from chm_dagster.warehouse import paging

RUN_PARTS = [paging.time, paging.optional_time, paging.uuid]
TIMES = st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC))


@given(effective=TIMES, finished=st.none() | TIMES, run=st.uuids())
def test_a_cursor_gives_its_position_back(effective: datetime, finished: datetime | None, run: UUID) -> None:
    cursor = paging.encode([effective, finished, run])
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert paging.decode(cursor, RUN_PARTS) == (effective, finished, run)


def crafted(position: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "ü",
        "\ud800",
        "a" * 2_000,
        "[]",
        crafted({}),
        crafted([]),
        crafted("text"),
        crafted([None, None]),
        crafted([None, None, None]),
        crafted(["2026-01-01T00:00:00Z", None, 5]),
        crafted(["2026-01-01T00:00:00Z", None, "x"]),
        crafted(["2026-01-01T00:00:00Z", 1, "01890a5d-ac96-774b-bcce-b302099a8057"]),
        crafted([None, None, "01890a5d-ac96-774b-bcce-b302099a8057"]),
        crafted([1, None, "01890a5d-ac96-774b-bcce-b302099a8057"]),
        crafted(["2026-01-01T00:00:00", None, "01890a5d-ac96-774b-bcce-b302099a8057"]),
        crafted(["yesterday", None, "01890a5d-ac96-774b-bcce-b302099a8057"]),
        crafted(["2026-01-01T00:00:00Z", None, "01890a5d-ac96-774b-bcce-b302099a8057", 1]),
        crafted(["2026-01-01T00:00:00Z", None, "01890a5d-ac96-774b-bcce-b302099a8057"]) + "!",
    ],
)
def test_an_invalid_cursor_is_rejected(cursor: str) -> None:
    with pytest.raises(InputError, match="next_cursor") as error:
        paging.decode(cursor, RUN_PARTS)
    assert error.value.field == "cursor"


@pytest.mark.parametrize("slug", ["a\0", "Not", "", 5, None, "x" * 101])
def test_a_slug_in_a_cursor_must_be_valid(slug: object) -> None:
    with pytest.raises(InputError):
        paging.decode(crafted([slug]), [paging.slug])
    assert paging.decode(crafted(["acme"]), [paging.slug]) == ("acme",)


@given(cursor=st.text() | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_random_cursors_are_never_accepted(cursor: str) -> None:
    with pytest.raises(InputError):
        paging.decode(cursor, RUN_PARTS)


@given(count=st.integers(0, 9), limit=st.integers(1, 9))
def test_a_page_has_a_cursor_only_if_there_is_more(count: int, limit: int) -> None:
    items = list(range(count))[: limit + 1]
    page = paging.page(items, limit, lambda n: [n])
    assert page.items == items[:limit]
    assert (page.next_cursor is None) == (count <= limit)
    if page.next_cursor is not None:
        assert page.next_cursor == paging.encode([page.items[-1]])
