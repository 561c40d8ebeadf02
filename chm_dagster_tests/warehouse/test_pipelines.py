"""Pipelines: valid fields, names, filters and disabling."""

from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Environment, Pipeline, PipelineType, Platform
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows
from chm_dagster_tests.warehouse.conftest import at_once

FIELDS = {"name": "Orders", "platform": "airflow", "pipeline_type": "ingestion"}
WHOLE = {
    **FIELDS,
    "slug": "orders-eu",
    "connection": "airflow-eu",
    "external_id": "orders_dag",
    "environment": "staging",
    "description": "All orders,\nevery night.",
    "schedule_cron": "0  6 * * MON-FRI",
    "schedule_timezone": "Europe/Berlin",
    "grace_minutes": 30,
    "max_runtime_minutes": 90,
}


@pytest.fixture
def acme(warehouse: Warehouse) -> Warehouse:
    warehouse.clients.create("Acme")
    return warehouse


def test_a_pipeline_needs_a_name_a_platform_and_a_type(acme: Warehouse) -> None:
    made = acme.pipelines.create("acme", FIELDS)
    assert (made.key, made.client_name, made.platform) == ("acme/orders", "Acme", Platform.AIRFLOW)
    assert (made.pipeline_type, made.environment) == (PipelineType.INGESTION, Environment.PROD)
    assert made.is_active
    assert made.synced_through is None
    with pytest.raises(InputError) as error:
        acme.pipelines.create("acme", {})
    assert [field for field, _ in error.value.details] == ["name", "platform", "pipeline_type"]


def test_every_field_of_a_pipeline_is_stored(acme: Warehouse) -> None:
    made = acme.pipelines.create(acme.clients.get("acme").id, WHOLE)
    for name, value in WHOLE.items():
        expected = "0 6 * * MON-FRI" if name == "schedule_cron" else value
        assert getattr(made, name) == expected, name
    for ref in (made.id, str(made.id), "acme/orders-eu"):
        assert acme.pipelines.get(ref) == made


@pytest.mark.parametrize("ref", ["orders", "acme/", "/orders", "acme/x", "acme/orders/x", "x\0/y", "", "\ud800/a"])
def test_an_unknown_pipeline_is_named_in_the_error_with_its_key(acme: Warehouse, ref: str) -> None:
    acme.pipelines.create("acme", FIELDS)
    with pytest.raises(NotFound, match="client-slug/pipeline-slug") as error:
        acme.pipelines.get(ref)
    assert str(error.value).isprintable()


def test_nothing_is_created_for_an_unknown_client(acme: Warehouse) -> None:
    with pytest.raises(NotFound, match="'nobody'"):
        acme.pipelines.create("nobody", FIELDS)
    assert acme.pipelines.list(active=None).items == []


@pytest.mark.parametrize(
    ("field", "value", "issue"),
    [
        ("name", " ", "empty"),
        ("name", 2024, "must be text, not a number"),
        ("platform", "airlfow", "must be one of airflow"),
        ("platform", "AIRFLOW", "must be one of airflow"),
        ("platform", ["airflow"], "a list"),
        ("pipeline_type", "magic", "must be one of ingestion"),
        ("environment", "production", "must be one of dev, staging, prod"),
        ("connection", "", "empty"),
        ("connection", "a\0", "control character"),
        ("external_id", "  ", "empty"),
        ("external_id", "x" * 513, "at most 512 characters"),
        ("external_id", 1.5, "must be "),
        ("external_id", True, "must be "),
        ("external_id", "a\0", "NUL"),
        ("description", "x" * 4001, "at most 4000 characters"),
        ("description", "a\0b", "NUL"),
        ("description", "\udfff", "surrogate"),
        ("is_active", 1, "true or false"),
        ("schedule_cron", "* * *", "this has 3"),
        ("schedule_cron", "* * * * * *", "this has 6"),
        ("schedule_cron", "@daily", "this has 1"),
        ("schedule_cron", "61 * * * *", "must be a cron expression"),
        ("schedule_cron", "R * * * *", "must be a cron expression"),
        ("schedule_cron", "H H * * *", "must be a cron expression"),
        ("schedule_cron", "R(1-5) * * * *", "must be a cron expression"),
        ("schedule_cron", "*/0 * * * *", "must be a cron expression"),
        ("schedule_cron", "0 0 30 2 *", "never comes true"),
        ("schedule_cron", "0-59," * 100 + "1 * * * *", "at most 200 characters"),
        ("schedule_timezone", "Europe/Berln", "did you mean Europe/Berlin?"),
        ("schedule_timezone", "../../etc/passwd", "must be the name of an IANA time zone"),
        ("schedule_timezone", "localtime", "must be the name of an IANA time zone"),
        ("schedule_timezone", "+01:00", "must be the name of an IANA time zone"),
        ("grace_minutes", -1, "must be at least"),
        ("grace_minutes", True, "a boolean"),
        ("grace_minutes", 2**31, "must be at most 5256000"),
        ("grace_minutes", 5.5, "must be a whole number"),
        ("grace_minutes", "5", "not text"),
        ("max_runtime_minutes", 0, "must be at least"),
        ("max_runtime_minutes", float("nan"), "must be a whole number"),
        ("slug", "a/b", "must be a slug"),
        ("synced_through", "2026-01-01T00:00:00Z", "unknown field"),
        ("client_id", "acme", "unknown field"),
    ],
)
def test_an_invalid_field_is_rejected_on_create_and_on_change(
    acme: Warehouse, field: str, value: object, issue: str
) -> None:
    given = {**FIELDS, "schedule_cron": "0 6 * * *", field: value}
    with pytest.raises(InputError) as error:
        acme.pipelines.create("acme", given)
    assert error.value.field == field
    assert issue in error.value.issue
    made = acme.pipelines.create("acme", {**FIELDS, "schedule_cron": "0 6 * * *"})
    with pytest.raises(InputError) as error:
        acme.pipelines.update(made.id, {field: value})
    assert (error.value.field, issue in error.value.issue) == (field, True)
    assert acme.pipelines.get(made.id) == made


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("external_id", 9_007_199_254_740_993, "9007199254740993"),
        ("external_id", " spaced ", " spaced "),
        ("description", "  \n ", None),
        ("connection", " airflow-eu ", "airflow-eu"),
        ("schedule_cron", "  */5\t* * *  * ", "*/5 * * * *"),
        ("schedule_cron", "0 0 29 2 *", "0 0 29 2 *"),
        ("schedule_cron", "0 0 L * *", "0 0 L * *"),
        ("platform", Platform.DBT, Platform.DBT),
        ("grace_minutes", 0, 0),
    ],
)
def test_a_field_is_normalized_before_it_is_stored(acme: Warehouse, field: str, value: object, stored: object) -> None:
    made = acme.pipelines.create("acme", {**FIELDS, field: value})
    assert getattr(made, field) == stored


def test_names_slugs_and_external_ids_are_unique_within_the_client(acme: Warehouse) -> None:
    acme.pipelines.create("acme", {**FIELDS, "external_id": "dag"})
    for changes, field in (
        ({}, "name"),
        ({"name": "Other", "slug": "orders"}, "slug"),
        ({"name": "Other", "external_id": "dag"}, "external_id"),
    ):
        with pytest.raises(Conflict) as error:
            acme.pipelines.create("acme", {**FIELDS, **changes})
        assert error.value.field == field
    assert acme.pipelines.create("acme", {**FIELDS, "name": "ORDERS"}).slug == "orders-2"
    assert acme.pipelines.create("acme", {**FIELDS, "name": "Other", "platform": "dbt", "external_id": "dag"})
    acme.clients.create("Beta")
    assert acme.pipelines.create("beta", {**FIELDS, "external_id": "dag"}).key == "beta/orders"


def test_a_race_for_one_name_gives_one_success_and_conflicts(acme: Warehouse) -> None:
    answers = at_once([partial(acme.pipelines.create, "acme", FIELDS)] * 6)
    assert [type(a) for a in answers].count(Pipeline) == 1
    assert {a.field for a in answers if isinstance(a, Conflict)} == {"name"}
    assert len([a for a in answers if isinstance(a, Conflict)]) == 5


def test_a_race_for_one_slug_gives_everybody_a_different_one(acme: Warehouse) -> None:
    calls = [partial(acme.pipelines.create, "acme", {**FIELDS, "name": "Orders" + "." * n}) for n in range(6)]
    assert sorted(p.slug for p in at_once(calls)) == ["orders", *(f"orders-{n}" for n in range(2, 7))]


def test_a_change_keeps_unnamed_fields_and_none_clears(acme: Warehouse) -> None:
    made = acme.pipelines.create("acme", WHOLE)
    changed = acme.pipelines.update("acme/orders-eu", {"name": "Orders EU", "connection": None, "description": None})
    assert (changed.name, changed.slug, changed.connection, changed.description) == (
        "Orders EU",
        "orders-eu",
        None,
        None,
    )
    assert (changed.external_id, changed.schedule_cron) == (made.external_id, made.schedule_cron)
    assert changed.updated_at > made.updated_at
    for field in ("name", "platform", "pipeline_type", "environment", "is_active"):
        with pytest.raises(InputError, match="cannot be cleared") as error:
            acme.pipelines.update("acme/orders-eu", {field: None})
        assert error.value.field == field
    with pytest.raises(InputError, match="cannot change"):
        acme.pipelines.update("acme/orders-eu", {"slug": "orders-us"})


def test_a_change_that_changes_nothing_writes_nothing(acme: Warehouse) -> None:
    made = acme.pipelines.create("acme", WHOLE)
    physical = rows(acme.engine, "SELECT ctid::text, xmin::text FROM pipelines")
    assert acme.pipelines.update(made.id, WHOLE) == made
    assert rows(acme.engine, "SELECT ctid::text, xmin::text FROM pipelines") == physical


def test_a_time_zone_needs_a_cron_expression_whichever_of_them_changes(acme: Warehouse) -> None:
    with pytest.raises(InputError, match="without schedule_cron") as error:
        acme.pipelines.create("acme", {**FIELDS, "schedule_timezone": "UTC"})
    assert error.value.field == "schedule_timezone"
    acme.pipelines.create("acme", WHOLE)
    with pytest.raises(InputError, match="without schedule_cron"):
        acme.pipelines.update("acme/orders-eu", {"schedule_cron": None})
    cleared = acme.pipelines.update("acme/orders-eu", {"schedule_cron": None, "schedule_timezone": None})
    assert (cleared.schedule_cron, cleared.schedule_timezone) == (None, None)
    assert acme.pipelines.update("acme/orders-eu", {"schedule_cron": "* * * * *", "schedule_timezone": "UTC"})


def test_two_changes_that_only_together_break_a_rule_do_not_slip_through(acme: Warehouse) -> None:
    for n in range(10):
        made = acme.pipelines.create("acme", {**FIELDS, "name": f"P{n}", "schedule_cron": "* * * * *"})
        answers = at_once(
            [
                partial(acme.pipelines.update, made.id, {"schedule_timezone": "UTC"}),
                partial(acme.pipelines.update, made.id, {"schedule_cron": None}),
            ]
        )
        refused = [a for a in answers if not isinstance(a, Pipeline)]
        assert len(refused) == 1
        assert isinstance(refused[0], InputError)
        assert refused[0].field == "schedule_timezone"


def test_disabled_pipelines_and_those_of_disabled_clients_are_not_listed_but_still_exist(acme: Warehouse) -> None:
    acme.clients.create("Beta")
    for client in ("acme", "beta"):
        for name in ("a", "b"):
            acme.pipelines.create(client, {**FIELDS, "name": name, "external_id": f"{client}-{name}"})
    acme.pipelines.disable("acme/a")
    acme.clients.disable("beta")
    keys = {active: [p.key for p in acme.pipelines.list(active=active).items] for active in (True, False, None)}
    assert keys == {
        True: ["acme/b"],
        False: ["acme/a", "beta/a", "beta/b"],
        None: ["acme/a", "acme/b", "beta/a", "beta/b"],
    }
    assert [p.key for p in ingested_pipelines(acme.engine)] == keys[True]
    assert acme.pipelines.get("beta/a").is_active
    assert acme.pipelines.list(client="beta").items == []
    assert acme.pipelines.update("acme/a", {"is_active": True}).is_active


def test_the_list_combines_all_filters(acme: Warehouse) -> None:
    acme.clients.create("Beta")
    variants: list[tuple[str, dict[str, Any]]] = [
        ("acme", {"name": "a"}),
        ("acme", {"name": "b", "platform": "dbt", "connection": "dbt-eu"}),
        ("acme", {"name": "c", "platform": "dbt", "pipeline_type": "transform"}),
        ("beta", {"name": "d", "platform": "dbt", "pipeline_type": "transform", "environment": "dev"}),
    ]
    for client, changes in variants:
        acme.pipelines.create(client, {**FIELDS, **changes})
    listed: Any = acme.pipelines.list
    filters: list[tuple[dict[str, Any], str]] = [
        ({"client": "acme"}, "abc"),
        ({"client": acme.clients.get("beta").id}, "d"),
        ({"platform": "dbt"}, "bcd"),
        ({"platform": Platform.DBT, "pipeline_type": "transform"}, "cd"),
        ({"environment": "dev"}, "d"),
        ({"connection": "dbt-eu"}, "b"),
        ({"client": "acme", "platform": "dbt", "pipeline_type": "transform", "environment": "prod"}, "c"),
        ({"client": "beta", "platform": "airflow"}, ""),
    ]
    for wanted, names in filters:
        assert "".join(p.name for p in listed(**wanted).items) == names, wanted
    for field in ("platform", "pipeline_type", "environment", "connection"):
        with pytest.raises(InputError) as error:
            listed(**{field: "\0"})
        assert error.value.field == field
    with pytest.raises(NotFound, match="'nobody'"):
        listed(client="nobody")


@settings(max_examples=25)
@given(limit=st.integers(1, 8), active=st.sampled_from([True, False, None]))
def test_pages_add_up_to_the_list(filled: Warehouse, limit: int, active: bool | None) -> None:
    everything = filled.pipelines.list(active=active).items
    found, cursor = [], None
    while True:
        page = filled.pipelines.list(active=active, limit=limit, cursor=cursor)
        assert 1 <= len(page.items) <= limit
        found += page.items
        assert len(found) <= len(everything), "the pages go round in a circle"
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == everything


@pytest.fixture
def filled(acme: Warehouse) -> Warehouse:
    acme.clients.create("Acme 2")
    for client in ("acme", "acme-2"):
        for name in ("a", "a b", "ab", "b-1", "b1"):
            acme.pipelines.create(client, {**FIELDS, "name": name})
    for key in ("acme/a", "acme-2/ab", "acme-2/b1"):
        acme.pipelines.disable(key)
    return acme


JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=150)
@given(
    fields=st.fixed_dictionaries(
        {
            "name": st.text(min_size=1, max_size=8),
            "platform": st.sampled_from(Platform),
            "pipeline_type": st.just("export"),
        },
        optional={
            "slug": JUNK,
            "connection": JUNK,
            "external_id": JUNK,
            "environment": JUNK | st.sampled_from(Environment),
            "description": JUNK,
            "is_active": JUNK,
            "schedule_cron": JUNK | st.from_regex(r"[0-9*/,LWR#-]{1,3}( [0-9*/,LWR#-]{1,3}){4}", fullmatch=True),
            "schedule_timezone": JUNK | st.sampled_from(["UTC", "Asia/Kathmandu", "utc"]),
            "grace_minutes": JUNK,
            "max_runtime_minutes": JUNK,
            "rubbish": JUNK,
        },
    )
)
def test_any_input_becomes_a_pipeline_or_a_chm_error(acme: Warehouse, fields: dict[str, object]) -> None:
    try:
        made = acme.pipelines.create("acme", fields)
    except (InputError, Conflict) as error:
        assert all(field in fields or field == "slug" for field, _ in error.details)
        return
    assert acme.pipelines.get(made.id) == made
    with acme.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM pipelines"))
