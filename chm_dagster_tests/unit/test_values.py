import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain import redaction, values
from chm_dagster.domain.limits import BIGINT_MAX, INT_MAX, MAX_ERROR_BYTES, MAX_PAYLOAD_BYTES
from chm_dagster.domain.redaction import may_hold_secret
from chm_dagster.errors import InputError

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LATEST = NOW + values.SLACK
any_text = st.text(st.characters(exclude_categories=()), max_size=30)


def kind_of(value: object) -> str:
    """A test id: pytest would print integers of 5,000 digits, which Python rejects."""
    return type(value).__name__


def jsonb_takes(value: object) -> bool:
    """What Postgres requires of jsonb: valid JSON, no NUL, no lone surrogates, no NaN."""
    encoded = orjson.dumps(value)
    return orjson.loads(encoded) == value and b"\\u0000" not in encoded.replace(b"\\\\", b"")


# text


def test_nul_and_lone_surrogates_become_replacement_characters() -> None:
    assert values.clean_text("a\0b\ud800c\udfff") == "a�b�c�"
    assert values.clean_text("plain") == "plain"
    assert values.clean_text("naïve 😀 \x1b[31m <b>") == "naïve 😀 \x1b[31m <b>"


@given(any_text)
@settings(deadline=None)
def test_clean_text_can_always_be_encoded(text: str) -> None:
    assert b"\0" not in values.clean_text(text).encode()


def test_the_exception_of_a_long_error_is_kept() -> None:
    frames = '  File "a.py", line 1, in f\n    f()\n' * 1_000
    kept = values.error_text(f"Traceback (most recent call last):\n{frames}ValueError: no disk\n")
    assert kept is not None and len(kept.encode()) <= MAX_ERROR_BYTES
    assert kept.startswith("Traceback") and kept.endswith("ValueError: no disk\n")


# ids


@pytest.mark.parametrize(
    "run_id", ["17", " 17 ", "Run", "run", "é", "e\u0301", "a\u200bb", "'; DROP TABLE runs", "x" * 512]
)
def test_a_text_id_stays_byte_for_byte(run_id: str) -> None:
    assert values.run_id(run_id) == run_id


@pytest.mark.parametrize("number", [0, 17, -3, 2**70, 10**511])
def test_an_integer_id_becomes_its_digits(number: int) -> None:
    assert values.run_id(number) == str(number)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "id: missing; every run needs one"),
        ("", "id: empty; every run needs one"),
        (" \t\n", "id: empty; every run needs one"),
        (True, "id: a boolean; send a string or an integer"),
        (1.0, "id: a number; send a string or an integer"),
        (9007199254740993.0, "id: a number; send a string or an integer"),
        ({}, "id: an object; send a string or an integer"),
        ([], "id: a list; send a string or an integer"),
        ("x" * 513, "id: longer than 512 characters; send a shorter one"),
        ("x" * 9_000, "id: longer than 512 characters; send a shorter one"),
        (10**512, "id: longer than 512 digits; send a shorter one"),
        (10**5_000, "id: longer than 512 digits; send a shorter one"),
        ("a\0", "id: holds a NUL or half a surrogate pair; send plain text"),
        ("a\ud800", "id: holds a NUL or half a surrogate pair; send plain text"),
    ],
    ids=kind_of,
)
def test_an_id_that_cannot_be_a_key_is_refused(value: object, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        values.run_id(value)
    assert str(refused.value) == reason


# times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-31T08:00:00Z", datetime(2026, 5, 31, 8, tzinfo=UTC)),
        ("2026-05-31t08:00:00z", datetime(2026, 5, 31, 8, tzinfo=UTC)),
        ("2026-05-31 08:00Z", datetime(2026, 5, 31, 8, tzinfo=UTC)),
        ("2026-05-31T08:00:00+00:00", datetime(2026, 5, 31, 8, tzinfo=UTC)),
        ("2026-05-31T08:00:00+02:00", datetime(2026, 5, 31, 6, tzinfo=UTC)),
        ("2026-05-31T08:00:00-0530", datetime(2026, 5, 31, 13, 30, tzinfo=UTC)),
        ("2026-05-31T08:00:00+02", datetime(2026, 5, 31, 6, tzinfo=UTC)),
        ("2026-05-31T08:00:00.5Z", datetime(2026, 5, 31, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-05-31T08:00:00,123456789Z", datetime(2026, 5, 31, 8, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-05-31T08:00:00.9999999Z", datetime(2026, 5, 31, 8, 0, 0, 999_999, tzinfo=UTC)),
        ("2026-05-31T08:00:00.5-00:00", datetime(2026, 5, 31, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2000-01-01T00:00:00Z", datetime(2000, 1, 1, tzinfo=UTC)),
        ("2026-06-02T12:00:00Z", LATEST),
        (None, None),
    ],
)
def test_a_time_with_a_zone_is_converted_to_utc(text: str | None, expected: datetime | None) -> None:
    moment = values.parse_time(text, "started_at", LATEST)
    assert moment == expected
    assert moment is None or moment.tzinfo is UTC


def outcome(read: Callable[[str, str], datetime], text: str) -> datetime | str:
    try:
        return read(text, "started_at")
    except InputError as refused:
        return str(refused)


@given(
    st.from_regex(
        r"(19|20|99)\d\d-[01]\d-[0-3]\d[Tt ][0-2]\d:[0-6]\d(:[0-6]\d([.,]\d{1,12})?)?([Zz]|[+-][0-2]\d(:?\d\d)?)?",
        fullmatch=True,
    )
)
@settings(max_examples=300, deadline=None)
def test_the_quick_and_the_careful_time_parser_agree(text: str) -> None:
    assert outcome(values.iso_time, text) == outcome(values._careful_time, text)


NAIVE = "has no time zone; "
UNREADABLE = "not a time; "


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2026-05-31T08:00:00", NAIVE),
        ("2026-05-31 08:00:00.123", NAIVE),
        ("2026-05-31", NAIVE),
        ("2026-W22-1", UNREADABLE),
        ("2026-W22-1T08:00:00Z", UNREADABLE),
        ("20260531T080000Z", UNREADABLE),
        ("2026-05-31T08Z", UNREADABLE),
        ("\ud800", UNREADABLE),
        ("2026-05-31T08:00:00Z\ud800", UNREADABLE),
        ("2026-05-31T24:00:00Z", UNREADABLE),
        ("2016-12-31T23:59:60Z", UNREADABLE),
        ("2026-05-31T08:00:00+25:00", UNREADABLE),
        ("2026-05-31T08:00:00+00:00:30", UNREADABLE),
        ("2026-05-31 08:00:00 UTC", UNREADABLE),
        ("2026-02-30T08:00:00Z", UNREADABLE),
        ("٢٠٢٦-05-31T08:00:00Z", UNREADABLE),
        (" 2026-05-31T08:00:00Z", UNREADABLE),
        ("2026-05-31T08:00:00Z\n", UNREADABLE),
        ("yesterday", UNREADABLE),
        ("", UNREADABLE),
        ("0001-01-01T00:00:00+14:00", UNREADABLE),
        ("9999-12-31T23:59:59-12:00", UNREADABLE),
        ("0001-01-01T00:00:00Z", "before the year 2000; "),
        ("1970-01-01T00:00:00Z", "before the year 2000; "),
        ("1999-12-31T23:59:59Z", "before the year 2000; "),
        ("2026-06-02T12:00:01Z", "more than a day in the future; "),
        ("9999-12-31T00:00:00Z", "more than a day in the future; "),
        (1_780_000_000, "a number; "),
        (1.5, "a number; "),
        (True, "a boolean; "),
        ([], "a list; "),
        ({}, "an object; "),
    ],
)
def test_an_ambiguous_time_is_rejected(value: object, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        values.parse_time(value, "started_at", LATEST)
    assert str(refused.value).startswith(f"started_at: {reason}")


@given(
    any_text | st.datetimes().map(lambda moment: moment.isoformat()) | st.datetimes().map(lambda m: f"{m.isoformat()}Z")
)
@settings(deadline=None)
def test_any_text_is_a_time_in_range_or_rejected(text: str) -> None:
    try:
        moment = values.parse_time(text, "started_at", LATEST)
    except InputError:
        return
    assert moment is not None
    assert values.EARLIEST <= moment <= LATEST


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (1_780_000_000, "s"),
        (1_780_000_000.0, "s"),
        (1_780_000_000_000, "ms"),
        ("1780000000000", "ms"),
        (1_780_000_000 * 10**6, "us"),
    ],
)
def test_an_epoch_in_its_unit_is_a_time(value: object, unit: Any) -> None:
    assert values.parse_epoch(value, unit, "start", LATEST) == datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC)


def test_a_missing_epoch_is_no_time() -> None:
    assert values.parse_epoch(None, "s", "start", LATEST) is None


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (True, "s"),
        (0, "s"),
        (-1, "s"),
        (1_780_000_000, "ms"),
        (1_780_000_000_000, "s"),
        (10**5_000, "s"),
        (1e308, "s"),
        (math.nan, "s"),
        (math.inf, "ms"),
        ("soon", "s"),
        ("٣", "s"),
        ("9" * 5_000, "s"),
        ([], "s"),
    ],
    ids=kind_of,
)
def test_an_epoch_of_the_wrong_unit_or_type_is_rejected(value: object, unit: Any) -> None:
    with pytest.raises(InputError):
        values.parse_epoch(value, unit, "start", LATEST)


# numbers


@pytest.mark.parametrize(("value", "expected"), [(None, 0), (0, 0), (3, 3), (INT_MAX, INT_MAX)])
def test_attempts_count_from_zero(value: object, expected: int) -> None:
    assert values.attempt(value) == expected


@pytest.mark.parametrize("value", [True, -1, INT_MAX + 1, 1.0, "1", [], 10**5_000], ids=kind_of)
def test_an_attempt_that_is_not_a_count_is_rejected(value: object) -> None:
    with pytest.raises(InputError, match=r"^attempt: not an integer from 0 to 2147483647"):
        values.attempt(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), (BIGINT_MAX, BIGINT_MAX), ("42", 42), (str(BIGINT_MAX), BIGINT_MAX)]
    + [
        (bad, None)
        for bad in (
            None,
            True,
            -1,
            1.0,
            math.nan,
            BIGINT_MAX + 1,
            10**5_000,
            str(BIGINT_MAX + 1),
            "9" * 5_000,
            "٣",
            "",
            [],
        )
    ],
    ids=kind_of,
)
def test_a_row_count_is_a_bigint_or_unknown(value: object, expected: int | None) -> None:
    assert values.row_count(value) == expected


def test_the_duration_is_computed_if_start_and_finish_are_known() -> None:
    assert values.duration(NOW, NOW + timedelta(seconds=90), 5) == 90.0
    assert values.duration(NOW, NOW, 5) == 0.0


def test_a_run_that_finished_before_it_started_has_no_duration() -> None:
    assert values.duration(NOW, NOW - timedelta(seconds=1), 5) is None


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [(5, 5.0), (0, 0.0), (1.5, 1.5)]
    + [(bad, None) for bad in (None, True, -1, math.nan, math.inf, 1e10, 10**5_000, "5", [])],
    ids=kind_of,
)
def test_a_reported_duration_is_used_if_it_is_plausible(claimed: object, expected: float | None) -> None:
    assert values.duration(NOW, None, claimed) == expected


# texts for people


@pytest.mark.parametrize("value", [None, "", "  \n", {}, [], False])
def test_no_error_is_no_message(value: object) -> None:
    assert values.error_text(value) is None


def test_an_error_message_is_cleaned_masked_and_truncated() -> None:
    message = values.error_text("boom\0 password=hunter2 " + "é" * 100_000)
    assert message is not None
    assert message.startswith("boom� password=*** é")
    assert len(message.encode()) <= MAX_ERROR_BYTES


def test_an_error_that_is_not_text_is_written_as_json() -> None:
    assert values.error_text({"code": 7, "token": "hunter2", "x": math.nan}) == '{"code":7,"token":"***","x":null}'


def test_a_reason_is_one_short_clean_line() -> None:
    assert values.reason_text("waiting\nfor\0 token=hunter2") == "waiting for� token=***"
    assert len(values.reason_text("x" * 1_000) or "") == 200
    assert values.reason_text(" ") is None
    assert values.reason_text(7) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://p.example/runs/17?tab=log#L5", "https://p.example/runs/17?tab=log#L5"),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("https://p.example/runs/17?token=hunter2", "https://p.example/runs/17"),
        ("https://p.example/runs/17#access_token=hunter2", "https://p.example/runs/17"),
        ("https://p.example/" + "x" * 1_982, "https://p.example/" + "x" * 1_982),
    ]
    + [
        (bad, None)
        for bad in (
            None,
            7,
            "",
            "ftp://p.example/x",
            "javascript:alert(1)",
            "//p.example/x",
            "https://",
            "https://u:pw@p.example/x",
            "https://tok@p.example/x",
            "https://p.example/a b",
            'https://p.example/"onclick="x',
            "https://p.example/\0",
            "https://p.example/\ud800",
            "https://p.example/\n",
            "https://p.example/" + "x" * 1_983,
            "https://hooks.slack.com/services/" + "T00/B00/xyz",
        )
    ],
)
def test_a_link_must_be_a_safe_web_address(value: object, expected: str | None) -> None:
    assert values.link(value) == expected


# records


def test_hostile_values_are_replaced_in_names_and_values() -> None:
    assert values.clean_record(
        {"a\0": "b\ud800", "n": math.nan, "i": math.inf, "m": -math.inf, "ok": [1.5, None, True]}
    ) == {
        "a�": "b�",
        "n": None,
        "i": None,
        "m": None,
        "ok": [1.5, None, True],
    }


def test_integers_beyond_64_bits_become_text() -> None:
    assert values.clean_record([2**63 - 1, -(2**63), 2**63, 10**5_000]) == [
        2**63 - 1,
        -(2**63),
        str(2**63),
        "(an integer of 16610 bits)",
    ]


def test_deeply_nested_values_are_cut() -> None:
    deep: Any = "bottom"
    for _ in range(100_000):
        deep = {"in": deep}
    cleaned = values.clean_record({"conf": deep})
    depth = 0
    while isinstance(cleaned, dict):
        (cleaned,) = cleaned.values()
        depth += 1
    assert (depth, cleaned) == (32, "(nested deeper than 32 levels)")
    while isinstance(deep, dict):  # unpacked by hand: the interpreter would recurse
        deep = deep.popitem()[1]


def test_secrets_are_masked_by_name_in_any_spelling() -> None:
    cleaned = values.clean_record(
        {
            "conf": {
                "DB-Password": "x",
                "apiKey": ["x"],
                "auth": {"user": "x"},
                "token": None,
                "use_token": True,
                "tokens": 5,
                "pin_password": 5,
            }
        }
    )
    assert cleaned["conf"] == {
        "DB-Password": "***",
        "apiKey": "***",
        "auth": "***",
        "token": None,
        "use_token": True,
        "tokens": 5,
        "pin_password": "***",
    }


def test_secrets_are_masked_in_lists_of_names_and_values() -> None:
    assert values.clean_record({"env": [{"name": "DB_PASSWORD", "value": "x"}, {"name": "REGION", "value": "x"}]}) == {
        "env": [{"name": "DB_PASSWORD", "value": "***"}, {"name": "REGION", "value": "x"}]
    }
    assert values.clean_record({"key": "dsn", "value": "x"}) == {"key": "dsn", "value": "***"}


def test_secrets_are_masked_inside_texts_and_names() -> None:
    assert values.clean_record({"log": "Bearer abcdef123456", "password=x": 1}) == {
        "log": "Bearer ***",
        "password=***": "***",
    }


def test_a_record_of_exactly_the_limit_stays() -> None:
    record = {"id": "1", "text": "x" * (MAX_PAYLOAD_BYTES - len('{"id":"1","text":""}'))}
    assert values.clean_record(record) == record


@pytest.mark.parametrize("filler", ["x", "é", '"', "\n", "\ud800", "token=a "])
def test_a_record_that_is_too_large_keeps_its_small_fields(filler: str) -> None:
    record = {"huge": filler * 100_000, "nested": {"a": 1}, "status": "failed", "id": 7, "truncated": "mine"}
    kept = values.clean_record(record)
    assert (kept["truncated"], kept["id"], kept["status"]) == (True, 7, "failed")
    assert set(kept) == {"truncated", "bytes", "sha256", "id", "status"}
    assert kept["bytes"] > MAX_PAYLOAD_BYTES
    assert values.clean_record(dict(reversed(record.items()))) == kept


def test_a_record_with_many_fields_is_kept_up_to_the_limit() -> None:
    kept = values.clean_record({f"field_{n}": "x" * 100 for n in range(10_000)} | {"id": "1"})
    assert kept["id"] == "1"
    assert 60_000 < len(orjson.dumps(kept)) <= MAX_PAYLOAD_BYTES


def test_a_large_list_is_summarized_too() -> None:
    assert set(values.clean_record(["x" * 100_000])) == {"truncated", "bytes", "sha256"}


hostile_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**66)
    | st.floats()
    | any_text
    # Created by map: Hypothesis prints the values it samples from, and Python refuses to print this number.
    | st.just(5_000).map(lambda digits: 10**digits)
    | st.sampled_from(["token=hunter2", "https://u:pw@h/", "\0", "\ud800", "x" * 70_000]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            any_text | st.sampled_from(["password", "token", "name", "value", "dsn", "note"]), inner, max_size=5
        )
    ),
    max_leaves=20,
)


@given(hostile_json)
@settings(max_examples=300, deadline=None)
def test_any_input_becomes_valid_jsonb(value: object) -> None:
    cleaned = values.clean_record(value)
    assert jsonb_takes(cleaned)
    assert len(orjson.dumps(cleaned)) <= MAX_PAYLOAD_BYTES


ordinary_records = st.dictionaries(
    st.sampled_from(["id", "status", "name", "value", "note", "dsn", "auth", "key", "tokens", "pass"]),
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | st.sampled_from(["a", "dsn", "key", "ann@x", "http://x", "pwd"]),
)


@given(
    ordinary_records | st.dictionaries(st.sampled_from(["id", "conf"]), ordinary_records | st.lists(ordinary_records))
)
@settings(max_examples=400, deadline=None)
def test_the_fast_path_and_the_full_path_agree(record: dict[str, Any]) -> None:
    assert orjson.dumps(values.clean_record(record)) == orjson.dumps(values.clean_json(record))


FRAGMENTS = [
    *"kwczxybgpt-_=:@. 0139a",
    "pass",
    "sk_",
    "rk-",
    "za",
    "api",
    "dapi",
    "token",
    "ASIA",
    "://",
    "0" * 16,
    "7f" * 8,
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
@settings(max_examples=500, deadline=None)
def test_digits_in_a_text_do_not_affect_masking(text: str) -> None:
    assert may_hold_secret(text) == may_hold_secret(re.sub("[1-9]", "0", text))


def test_a_secret_is_masked_however_many_similar_records_came_before() -> None:
    for n in range(20):
        assert values.clean_record({"id": f"run-{n}", "note": "ok"}) == {"id": f"run-{n}", "note": "ok"}
        assert values.clean_record({"id": f"run-{n}", "note": f"pwd={n}"}) == {"id": f"run-{n}", "note": "pwd=***"}
        assert values.clean_record({"id": f"run-{n}", "note": "\0"}) == {"id": f"run-{n}", "note": "\ufffd"}


def test_the_cache_of_harmless_records_is_bounded() -> None:
    for n in range(redaction.MAX_SHAPES + 10):
        values.clean_record({"note": "".join("abcdefhijl"[int(digit)] for digit in str(n))})
    values.clean_record({"note": "n" * 100_000})
    assert 0 < len(redaction._harmless_shapes) <= redaction.MAX_SHAPES
    assert max(map(len, redaction._harmless_shapes)) <= redaction.MAX_SHAPE_CHARS


def test_an_ordinary_record_is_not_copied() -> None:
    record = {
        "id": "1",
        "url": "https://p.example/runs/1",
        "rows": 5,
        "share": 0.5,
        "conf": {"tags": ["a"]},
        "name": "Café",
    }
    assert values.clean_record(record) is record
