"""Forms: whatever is sent, each field is read or refused by name, in words that anyone may print."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.fields import Form, bound, moment, read_changes, read_new, refuse, shown
from chm_dagster.domain.forms import CLIENT, PIPELINE, RULE
from chm_dagster.domain.inventory import free_slug, is_slug, slugify
from chm_dagster.domain.manual import run_form
from chm_dagster.errors import Conflict, InputError

FORMS = {"client": CLIENT, "pipeline": PIPELINE, "rule": RULE, "run": run_form(datetime(2026, 3, 2, tzinfo=UTC))}
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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(data=st.data())
def test_whatever_is_sent_is_read_or_refused_by_name(form: Form, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(form)) | st.text(max_size=20) | st.integers()
    given_: dict[Any, Any] = data.draw(st.dictionaries(names, JUNK, max_size=4))
    try:
        clean = read_changes(given_, form)
    except InputError as error:
        assert {field for field, _ in error.details} <= {shown(name) for name in given_}
        assert str(error).isprintable()
        assert len(error.issue) < 400
    else:
        assert set(clean) == set(given_)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_new_thing_lacks_all_that_is_required_and_nothing_else(form: Form) -> None:
    with pytest.raises(InputError) as error:
        read_new(dict.fromkeys(form), form)
    assert [field for field, _ in error.value.details] == [name for name, field in form.items() if field.required]


def test_one_problem_reads_as_before_and_several_name_the_others() -> None:
    alone = InputError("name", "empty; send a text")
    assert (str(alone), alone.details) == ("name: empty; send a text", (("name", "empty; send a text"),))
    with pytest.raises(InputError) as error:
        refuse([("a", "x"), ("b", "y"), ("c", "z")])
    assert (error.value.field, error.value.issue, error.value.details[2]) == ("a", "x", ("c", "z"))
    assert str(error.value) == "a: x (and 2 more: b, c)"
    assert Conflict("name", "taken").details == (("name", "taken"),)
    refuse([])


@given(text=st.text())
def test_what_is_shown_of_a_text_is_short_and_printable(text: str) -> None:
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
    assert moment()(value, "at") == moment()(value.isoformat(), "at") == value.astimezone(UTC)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    ],
)
def test_a_limit_that_has_no_place_in_time_is_refused(value: datetime) -> None:
    with pytest.raises(InputError) as error:
        bound(value, "since")
    assert error.value.field == "since"


@given(name=st.text(), taken=st.sets(st.sampled_from(["a", "a-2", "a-3", "a-4", "b"])))
def test_a_free_slug_is_a_slug_that_nobody_has(name: str, taken: set[str]) -> None:
    base = slugify(name)[:100].strip("-")
    for start in filter(None, (base, "a", "a" * 120)):
        slug = free_slug(start, taken)
        assert is_slug(slug)
        assert slug not in taken
