"""Clients: unique names and slugs under races, disabling, pages."""

from functools import partial

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.clients import Client
from chm_dagster.domain.fields import is_slug
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows
from chm_dagster_tests.warehouse.conftest import at_once, once_it_waits


def test_a_client_is_found_by_id_by_id_as_text_and_by_slug(warehouse: Warehouse) -> None:
    made = warehouse.clients.create("  Café Nord GmbH ")
    assert (made.name, made.slug, made.is_active) == ("Café Nord GmbH", "cafe-nord-gmbh", True)
    for ref in (made.id, str(made.id), str(made.id).upper(), "cafe-nord-gmbh"):
        assert warehouse.clients.get(ref) == made


@pytest.mark.parametrize(
    "ref", ["nobody", "Acme", "", "a/b", "x\0", "\ud800", "a" * 10_000, "'; DROP TABLE clients; --"]
)
def test_an_unknown_client_is_named_in_the_error(warehouse: Warehouse, ref: str) -> None:
    warehouse.clients.create("Acme")
    with pytest.raises(NotFound) as error:
        warehouse.clients.get(ref)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 200
    if ref == "nobody":
        assert "'nobody'" in str(error.value)


def test_a_slug_in_the_form_of_an_id_is_found_unless_it_is_the_id_of_another(warehouse: Warehouse) -> None:
    first = warehouse.clients.create("First")
    odd = warehouse.clients.create("Odd", slug="01890a5d-ac96-774b-bcce-b302099a8057")
    assert warehouse.clients.get(odd.slug) == odd
    impostor = warehouse.clients.create("Impostor", slug=str(first.id))
    # Updated, so that it comes after the impostor in the table.
    renamed = warehouse.clients.update(first.id, {"name": "First of all"})
    assert renamed.id == first.id
    assert warehouse.clients.get(str(first.id)) == renamed
    assert warehouse.runs.summary(str(first.id)).client_id == first.id
    assert warehouse.clients.get(impostor.id) == impostor


def test_names_that_make_the_same_slug_are_numbered(warehouse: Warehouse) -> None:
    slugs = [warehouse.clients.create(name).slug for name in ("Acme", "ACME", "Acme!", "acme 3", "acme-2", "ACME?")]
    assert slugs == ["acme", "acme-2", "acme-3", "acme-3-2", "acme-2-2", "acme-4"]


def test_the_longest_names_make_slugs_that_fit_and_differ(warehouse: Warehouse) -> None:
    slugs = [warehouse.clients.create("x" * 150 + end).slug for end in "abcdefghijkl"]
    assert slugs[0] == "x" * 100
    assert slugs[1] == "x" * 98 + "-2"
    assert slugs[11] == "x" * 97 + "-12"
    assert len(set(slugs)) == 12


def test_a_name_that_gives_no_slug_needs_an_explicit_one(warehouse: Warehouse) -> None:
    with pytest.raises(InputError, match="none can be made") as error:
        warehouse.clients.create("日本")
    assert error.value.field == "slug"
    assert warehouse.clients.create("日本", slug="nihon").slug == "nihon"


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "a\0b", "a\ud800", "two\nlines", None, 5, ["Acme"], True])
def test_an_invalid_name_is_rejected_by_field(warehouse: Warehouse, name: object) -> None:
    with pytest.raises(InputError) as error:
        warehouse.clients.create(name)  # type: ignore[arg-type]
    assert error.value.field == "name"
    assert warehouse.clients.list(active=None).items == []


@pytest.mark.parametrize("slug", ["", "Acme", "a b", "-a", "a-", "a--b", "ä", "x" * 101, 7])
def test_an_invalid_slug_is_rejected_by_field(warehouse: Warehouse, slug: object) -> None:
    with pytest.raises(InputError) as error:
        warehouse.clients.create("Acme", slug=slug)  # type: ignore[arg-type]
    assert error.value.field == "slug"


def test_a_second_client_of_the_same_name_or_slug_is_a_conflict_that_says_which(warehouse: Warehouse) -> None:
    warehouse.clients.create("Acme")
    with pytest.raises(Conflict) as error:
        warehouse.clients.create("Acme")
    assert error.value.field == "name"
    with pytest.raises(Conflict) as error:
        warehouse.clients.create("Other", slug="acme")
    assert error.value.field == "slug"
    other = warehouse.clients.create("Other")
    with pytest.raises(Conflict) as error:
        warehouse.clients.update(other.id, {"name": "Acme"})
    assert error.value.details == (("name", error.value.issue),)


def test_a_race_for_one_name_gives_one_success_and_conflicts(warehouse: Warehouse) -> None:
    answers = at_once([partial(warehouse.clients.create, "Acme")] * 8)
    assert [type(a) for a in answers].count(Client) == 1
    lost = [a for a in answers if not isinstance(a, Client)]
    assert all(isinstance(a, Conflict) and a.field == "name" for a in lost), lost


def test_a_race_for_one_slug_gives_everybody_a_different_one(warehouse: Warehouse) -> None:
    answers = at_once([partial(warehouse.clients.create, "Acme" + "!" * n) for n in range(8)])
    assert sorted(client.slug for client in answers) == ["acme", *(f"acme-{n}" for n in range(2, 9))]


def test_a_name_taken_during_the_request_is_a_conflict(warehouse: Warehouse) -> None:
    # The worst race: the name is free when it is looked up and taken when it is written.
    with warehouse.engine.connect() as rival:
        rival.execute(sa.text("INSERT INTO clients (name, slug) VALUES ('Acme', 'rival')"))
        answer = once_it_waits(warehouse.engine, partial(warehouse.clients.create, "Acme"), rival.commit)
    assert isinstance(answer, Conflict)
    assert answer.field == "name"


def test_a_slug_taken_during_the_request_is_numbered(warehouse: Warehouse) -> None:
    with warehouse.engine.connect() as rival:
        rival.execute(sa.text("INSERT INTO clients (name, slug) VALUES ('Rival', 'acme')"))
        answer = once_it_waits(warehouse.engine, partial(warehouse.clients.create, "Acme"), rival.commit)
    assert isinstance(answer, Client)
    assert answer.slug == "acme-2"


def test_a_new_name_keeps_the_slug(warehouse: Warehouse) -> None:
    made = warehouse.clients.create("Acme")
    renamed = warehouse.clients.update("acme", {"name": "Apex", "slug": "acme"})
    assert (renamed.id, renamed.slug, renamed.name) == (made.id, "acme", "Apex")
    assert renamed.updated_at > made.updated_at
    with pytest.raises(InputError, match="cannot change") as error:
        warehouse.clients.update("acme", {"slug": "apex"})
    assert error.value.field == "slug"


def test_a_change_that_changes_nothing_writes_nothing(warehouse: Warehouse) -> None:
    made = warehouse.clients.create("Acme")
    physical = rows(warehouse.engine, "SELECT ctid::text, xmin::text FROM clients")
    assert warehouse.clients.update("acme", {"name": "Acme", "is_active": True}) == made
    assert warehouse.clients.update("acme", {}) == made
    assert rows(warehouse.engine, "SELECT ctid::text, xmin::text FROM clients") == physical


@pytest.mark.parametrize(
    ("changes", "field", "issue"),
    [
        ({"nmae": "x"}, "nmae", "did you mean name?"),
        ({"id": "x"}, "id", "known fields are"),
        ({5: "x"}, "5", "unknown field"),
        ({"name": None}, "name", "cannot be cleared"),
        ({"is_active": "yes"}, "is_active", "true or false"),
        ({"is_active": None}, "is_active", "cannot be cleared"),
    ],
)
def test_an_invalid_change_is_rejected_by_field(
    warehouse: Warehouse, changes: dict[str, object], field: str, issue: str
) -> None:
    warehouse.clients.create("Acme")
    with pytest.raises(InputError, match=issue.replace("?", r"\?")) as error:
        warehouse.clients.update("acme", changes)
    assert error.value.field == field


def test_all_problems_are_reported_at_once_the_misspelt_field_first(warehouse: Warehouse) -> None:
    warehouse.clients.create("Acme")
    with pytest.raises(InputError) as error:
        warehouse.clients.update("acme", {"nam": "x", "is_active": 1, "name": ""})
    assert [field for field, _ in error.value.details] == ["nam", "is_active", "name"]
    assert error.value.details[0] == (error.value.field, error.value.issue)
    assert str(error.value).endswith("(and 2 more: is_active, name)")


def test_a_disabled_client_is_not_listed_but_still_exists(warehouse: Warehouse) -> None:
    warehouse.clients.create("Acme")
    warehouse.clients.create("Beta")
    assert warehouse.clients.disable("acme").is_active is False
    assert warehouse.clients.disable("acme").is_active is False
    slugs = {active: [c.slug for c in warehouse.clients.list(active=active).items] for active in (True, False, None)}
    assert slugs == {True: ["beta"], False: ["acme"], None: ["acme", "beta"]}
    assert warehouse.clients.get("acme").name == "Acme"
    assert warehouse.clients.update("acme", {"is_active": True}).is_active


@pytest.mark.parametrize("limit", [0, -1, 1_001, True, "5", 2.0, None])
def test_an_invalid_limit_is_rejected(warehouse: Warehouse, limit: object) -> None:
    with pytest.raises(InputError) as error:
        warehouse.clients.list(limit=limit)  # type: ignore[arg-type]
    assert error.value.field == "limit"


def test_pages_add_up_to_the_list_despite_inserts_between_them(warehouse: Warehouse) -> None:
    for name in "badce":
        warehouse.clients.create(name)
    first = warehouse.clients.list(limit=2)
    warehouse.clients.create("aa")
    warehouse.clients.create("dd")
    second = warehouse.clients.list(limit=2, cursor=first.next_cursor)
    third = warehouse.clients.list(limit=2, cursor=second.next_cursor)
    slugs = [[c.slug for c in page.items] for page in (first, second, third)]
    assert slugs == [["a", "b"], ["c", "d"], ["dd", "e"]]
    assert third.next_cursor is None


@settings(max_examples=60)
@given(name=st.text(max_size=210), slug=st.none() | st.text(max_size=12))
def test_any_input_becomes_a_client_or_a_chm_error(warehouse: Warehouse, name: str, slug: str | None) -> None:
    try:
        made = warehouse.clients.create(name, slug)
    except (InputError, Conflict) as error:
        assert error.field in ("name", "slug")
    else:
        assert made.name == name.strip()
        assert is_slug(made.slug)
