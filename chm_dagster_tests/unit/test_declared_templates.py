"""Templates keep types and leave out unknown values; selectors find values at any depth."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.partners.engine.selectors import (
    ABSENT,
    as_id,
    find,
    first,
    format_time,
    link_of,
    names,
    overlay,
    render,
    status_word,
    text_of,
)


@pytest.mark.parametrize(
    ("template", "values", "rendered"),
    [
        ("${n}", {"n": 5}, 5),
        ("${ n }", {"n": [1, 2]}, [1, 2]),
        ("${n}", {"n": None}, None),
        ("${n}", {}, ABSENT),
        ("a ${n} b ${m}", {"n": 5, "m": True}, "a 5 b true"),
        ("a ${n}", {}, ABSENT),
        ("plain", {}, "plain"),
        (7, {}, 7),
        ({"a": "${n}", "b": "${m}"}, {"n": 1}, {"a": 1}),
        ({"a": {"b": {"c": "${n}"}}, "d": 1}, {}, {"d": 1}),
        ({"a": {"b": "${n}"}}, {}, ABSENT),
        ({"a": {}}, {}, {"a": {}}),
        (["${n}", "x", {"y": "${n}"}], {}, ["x"]),
        ({"filter": {"any_": "${ids}", "is_null_": False}}, {}, {"filter": {"is_null_": False}}),
    ],
)
def test_a_template_is_filled_in_and_leaves_out_unknown_values(template: Any, values: Any, rendered: Any) -> None:
    assert render(template, values) == rendered
    if rendered is not ABSENT:
        assert type(render(template, values)) is type(rendered)


def test_every_name_in_a_template_is_found() -> None:
    template = {"a ${x}": ["${y}", {"b": "${options.z} and ${x}"}], "query": "query($f: Filter) { runs }"}
    assert sorted(names(template)) == ["options.z", "x", "x", "y"]


def test_a_body_is_merged_over_another_field_by_field() -> None:
    base = {"filter": {"ids": [1], "limit": 5}, "sort": "A"}
    assert overlay(base, {"filter": {"limit": 9, "more": 1}}) == {
        "filter": {"ids": [1], "limit": 9, "more": 1},
        "sort": "A",
    }
    assert overlay({"a": [1]}, {"a": [2]}) == {"a": [2]}
    assert overlay({"a": {"b": 1}}, {"a": 5}) == {"a": 5}


def test_times_are_formatted_as_the_partner_expects() -> None:
    moment = datetime(2026, 3, 1, 13, 30, 5, 999_999, timezone(timedelta(hours=1)))
    assert format_time(moment, "iso") == "2026-03-01T12:30:05Z"
    assert format_time(moment, "epoch") == datetime(2026, 3, 1, 12, 30, 5, 999_999, UTC).timestamp()
    assert format_time(moment, "epoch_ms") == 1_772_368_205_999
    assert format_time(moment, "date") == "2026-03-01"


RECORD: dict[str, Any] = {
    "id": 7,
    "state": {"name": "Failed", "message": None},
    "nodes": [{"jobs": [{"name": "a"}, {"name": "b"}]}, {"jobs": []}, {"jobs": [{"name": "c"}]}],
    "repairs": [1, 2, 3],
    "flag": False,
    "empty": "",
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", [RECORD]),
        ("id", [7]),
        ("state.message", [None]),
        ("state.none", []),
        ("nodes.*.jobs.*.name", ["a", "b", "c"]),
        ("nodes.0.jobs.1.name", ["b"]),
        ("nodes.9", []),
        ("nodes.-1", []),
        ("repairs.#", [3]),
        ("id.deeper", []),
        ("repairs.name", []),
    ],
)
def test_a_selector_finds_its_value(path: str, found: list[Any]) -> None:
    assert find(RECORD, path) == found


def test_the_first_selector_that_finds_a_value_is_used() -> None:
    assert first(RECORD, ["state.message", "state.none", "state.name"]) == "Failed"
    assert first(RECORD, ["flag", "id"]) is False
    assert first(RECORD, ["nothing", "${state.name}-${id}"]) == "Failed-7"
    assert first(RECORD, ["${state.name}-${nothing}", "id"]) == 7
    assert first(None, ["id"]) is None


def test_a_text_needs_all_its_parts_and_a_word_only_one() -> None:
    assert text_of(RECORD, "${id}:${state.message}") is None
    assert status_word(RECORD, "${state.name}/${state.message}") == "Failed/"
    assert status_word(RECORD, "${nothing}/${state.message}") is None
    assert status_word(RECORD, "state.name") == "Failed"


def test_a_link_is_built_from_encoded_ids_or_used_unchanged() -> None:
    record = {"id": "a/b?c", "href": "https://x.example/r/1?q=2", "n": 5}
    assert link_of(record, "${ui}/runs/${id}", {"ui": "https://ui.example"}) == "https://ui.example/runs/a%2Fb%3Fc"
    assert link_of(record, "${href}", {"ui": ""}) == "https://x.example/r/1?q=2"
    assert link_of(record, "${n}", {"ui": ""}) is None
    assert link_of(record, "${ui}/${nothing}", {"ui": "https://ui.example"}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (5, "5"), (0, "0"), ("", None), (True, None), (1.5, None), (None, None), ([], None)],
)
def test_an_id_is_a_text_or_an_integer(value: Any, text: str | None) -> None:
    assert as_id(value) == text


def test_an_integer_that_is_too_long_to_print_is_not_an_id() -> None:
    huge = {"n": 10**5000}
    assert as_id(huge["n"]) is None
    assert text_of(huge, "a ${n}") is None
    assert status_word(huge, "${n}/${n}") is None
    assert link_of(huge, "${ui}/${n}", {}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=5), child, max_size=3),
    max_leaves=8,
)


@given(JSON, st.text(alphabet="ab.*#0${}", max_size=12))
def test_no_value_or_selector_makes_a_lookup_raise(value: Any, path: str) -> None:
    find(value, path)
    first(value, [path])
    status_word(value, path)
    link_of(value, path, {"ui": "ui"})


@given(JSON)
def test_a_template_without_names_stays_as_it_is(value: Any) -> None:
    if not list(names(value)):
        assert render(value, {}) == value
