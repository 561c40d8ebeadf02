"""Input validation: each field is accepted or rejected by name, with messages that are safe to print."""

import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from chm_dagster.domain.clients import Client, ClientChanges, NewClient
from chm_dagster.domain.fields import Minutes, Name, bound, free_slug, is_slug, read_time, slugify
from chm_dagster.domain.nouns import Changes, Input, New, Noun, ReadOnly, changes_to, creation_of
from chm_dagster.domain.pipelines import NewPipeline, NewPipelineOfClient, Pipeline, PipelineChanges
from chm_dagster.domain.rules import AlertRuleChanges, NewAlertRule
from chm_dagster.domain.runs import NewRun
from chm_dagster.domain.validation import refuse, shown
from chm_dagster.errors import Conflict, InputError

SHAPES: dict[str, type[Input]] = {
    shape.__name__: shape
    for shape in (
        *(NewClient, ClientChanges, NewPipeline, PipelineChanges, NewAlertRule, AlertRuleChanges),
        NewRun,
    )
}
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**4096, 2**4097)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.uuids()
)
JUNK = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@given(data=st.data())
def test_any_input_is_accepted_or_rejected_by_name(shape: type[Input], data: st.DataObject) -> None:
    names = st.sampled_from(sorted(shape.model_fields)) | st.text(max_size=20) | st.integers()
    given_: dict[Any, Any] = data.draw(st.dictionaries(names, JUNK, max_size=4))
    required = {name for name, field in shape.model_fields.items() if field.is_required()}
    try:
        clean = shape.read(given_, now=NOW).given()
    except InputError as error:
        assert {field for field, _ in error.details} <= {shown(name) for name in given_} | required
        assert str(error).isprintable()
        assert all(len(issue) < 400 for _, issue in error.details)
    else:
        sent = {name for name, value in given_.items() if value is not None or issubclass(shape, Changes)}
        assert set(clean) == sent


@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if issubclass(s, New)], ids=lambda s: s.__name__)
def test_every_required_field_is_reported_as_missing_and_no_other(shape: type[Input]) -> None:
    with pytest.raises(InputError) as error:
        shape.read(dict.fromkeys(shape.model_fields))
    required = {name for name, field in shape.model_fields.items() if field.is_required()}
    assert dict(error.value.details) == dict.fromkeys(required, "is required")


@pytest.mark.parametrize(("noun", "changes"), [(Client, ClientChanges), (Pipeline, PipelineChanges)])
def test_inputs_describe_the_fields_of_their_noun_alike(noun: type[Noun], changes: type[Input]) -> None:
    """A field is described once: its type, its limits and its words are the same wherever it is sent or returned."""
    new = {Client: NewClient, Pipeline: NewPipelineOfClient}[noun]
    whole = noun.model_json_schema(mode="serialization")["properties"]
    for shape in (new, changes):
        described = shape.model_json_schema()["properties"]
        assert set(described) <= set(whole)
        for name, schema in described.items():
            assert schema.get("description") == whole[name].get("description"), name
    assert set(changes.model_json_schema()["properties"]) == set(new.model_json_schema()["properties"]) - {"slug"}


def test_inputs_gain_the_fields_of_their_noun() -> None:
    class Dog(Noun):
        id: ReadOnly[int]
        name: Name
        age: Minutes | None = Field(None, description="In years.")

    @creation_of(Dog)
    class NewDog(New):
        """A dog to create."""

    @changes_to(Dog)
    class DogChanges(Changes):
        """What of a dog is to change."""

    assert NewDog.read({"name": " Rex ", "age": 3}).given() == {"name": "Rex", "age": 3}
    assert DogChanges.read({"age": None}).given() == {"age": None}
    with pytest.raises(InputError) as error:
        DogChanges.read({"id": 1, "nam": "Rex", "age": -1, "name": None})
    assert error.value.details == (
        ("id", "unknown field; known fields are name, age"),
        ("nam", "unknown field; did you mean name?"),
        ("age", "must be at least 0"),
        ("name", "cannot be cleared; leave it out to keep its value"),
    )


def test_an_input_is_validated_once() -> None:
    read = NewClient.read({"name": "Acme"})
    assert NewClient.read(read) is read


def test_one_problem_reads_as_before_and_several_name_the_others() -> None:
    alone = InputError("name", "must not be empty")
    assert (str(alone), alone.details) == ("name: must not be empty", (("name", "must not be empty"),))
    with pytest.raises(InputError) as error:
        refuse([("a", "x"), ("b", "y"), ("c", "z")])
    assert (error.value.field, error.value.issue, error.value.details[2]) == ("a", "x", ("c", "z"))
    assert str(error.value) == "a: x (and 2 more: b, c)"
    assert Conflict("name", "taken").details == (("name", "taken"),)
    refuse([])


@given(text=st.text())
def test_excerpts_of_a_text_are_short_and_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text)) <= 1_000
    assert shown("plain text") == "plain text"


@given(value=st.datetimes(min_value=datetime(2000, 1, 2), max_value=datetime(9999, 12, 28), timezones=st.timezones()))
def test_a_time_is_the_same_whether_it_comes_as_an_object_or_as_text(value: datetime) -> None:
    # Historic zones have offsets with seconds, which ISO 8601 has no word for.
    offset = value.utcoffset()
    assert offset is not None
    if offset.seconds % 60:
        return
    assert read_time(value, "at", NOW) == read_time(value.isoformat(), "at", NOW) == value.astimezone(UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", "2026-02-28T00:00:00+00:00"),
        ("90m", "2026-02-28T22:30:00+00:00"),
        ("7 d", "2026-02-22T00:00:00+00:00"),
        ("2w", "2026-02-15T00:00:00+00:00"),
        ("now", "2026-03-01T00:00:00+00:00"),
        ("today", "2026-03-01T00:00:00+00:00"),
        ("yesterday", "2026-02-28T00:00:00+00:00"),
        ("2026-02-28T12:00:00+02:00", "2026-02-28T10:00:00+00:00"),
    ],
)
def test_a_time_may_be_relative(text: str, expected: str) -> None:
    assert read_time(text, "since", NOW).isoformat() == expected


def test_days_begin_at_midnight_in_the_zone_also_across_a_clock_change() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    noon = datetime(2026, 3, 30, 12, tzinfo=UTC)
    assert read_time("yesterday", "since", noon, zone=berlin).isoformat() == "2026-03-28T23:00:00+00:00"
    assert read_time("today", "since", noon, zone=berlin).isoformat() == "2026-03-29T22:00:00+00:00"
    assert read_time("2026-03-30", "since", noon, zone=berlin).isoformat() == "2026-03-29T22:00:00+00:00"
    late = datetime(2026, 3, 30, 23, tzinfo=UTC)
    assert read_time("today", "since", late, zone=berlin).isoformat() == "2026-03-30T22:00:00+00:00"


def test_a_span_may_count_from_now_on() -> None:
    assert read_time("4h", "muted_until", NOW, ahead=True) == NOW + timedelta(hours=4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "24",
        "24x",
        "-1h",
        "9999999h",
        "999999w",
        "2026-03-01",
        "0001-01-02T00:00:00Z",
        "100000w",
        5,
        None,
        True,
    ],
)
def test_other_texts_are_not_times(text: object) -> None:
    with pytest.raises(InputError) as error:
        read_time(text, "since", NOW)
    assert error.value.field == "since"


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    ],
)
def test_a_limit_beyond_the_range_of_times_is_rejected(value: datetime) -> None:
    with pytest.raises(InputError) as error:
        bound(value, "since")
    assert error.value.field == "since"


@given(name=st.text(), taken=st.sets(st.sampled_from(["a", "a-2", "a-3", "a-4", "b"])))
def test_a_free_slug_is_not_taken(name: str, taken: set[str]) -> None:
    base = slugify(name)[:100].strip("-")
    for start in filter(None, (base, "a", "a" * 120)):
        slug = free_slug(start, taken)
        assert is_slug(slug)
        assert slug not in taken
