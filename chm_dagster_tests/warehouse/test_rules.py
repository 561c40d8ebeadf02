"""Alert rules: scope, parameters, uniqueness, deletion."""

from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.domain.rules import AlertRule, Channel, RuleType
from chm_dagster.errors import Conflict, InputError, NotFound
from chm_dagster.warehouse.constraints import writing
from chm_dagster.warehouse.inventory.rules import Rules
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import T0, rows
from chm_dagster_tests.warehouse.conftest import at_once, once_it_waits

RULE = {"client_id": "acme", "rule_type": "on_failure", "channel": "slack", "destination": "#ops"}


@pytest.fixture(autouse=True)
def inventory(warehouse: Warehouse, orders: Pipeline) -> None:
    warehouse.clients.create("Beta")
    warehouse.pipelines.create("beta", {"name": "Stock", "platform": "dbt", "pipeline_type": "transform"})


def test_a_rule_is_created_read_changed_disabled_and_deleted(warehouse: Warehouse) -> None:
    made = warehouse.rules.create(RULE)
    assert (made.client_id, made.pipeline_id) == (warehouse.clients.get("acme").id, None)
    assert (made.rule_type, made.channel, made.is_enabled) == (RuleType.ON_FAILURE, Channel.SLACK, True)
    assert warehouse.rules.get(made.id) == warehouse.rules.get(str(made.id)) == made
    changed = warehouse.rules.update(made.id, {"destination": "#data", "muted_until": "2026-12-01T00:00:00+01:00"})
    assert changed.destination == "#data"
    assert changed.muted_until is not None
    assert changed.muted_until.isoformat() == "2026-11-30T23:00:00+00:00"
    assert warehouse.rules.update(made.id, {"muted_until": None}).muted_until is None
    assert warehouse.rules.disable(made.id).is_enabled is False
    warehouse.rules.delete(made.id)
    with pytest.raises(NotFound, match=str(made.id)):
        warehouse.rules.get(made.id)
    with pytest.raises(NotFound):
        warehouse.rules.delete(made.id)
    with pytest.raises(NotFound):
        warehouse.rules.update(made.id, {})


@pytest.mark.parametrize("rule_id", ["", "x", "acme", "01a2068f-8a00-7580-ba57-3233e089b522", "\0" * 36, "\ud800"])
def test_an_unknown_rule_is_not_found(warehouse: Warehouse, rule_id: str) -> None:
    with pytest.raises(NotFound) as error:
        warehouse.rules.get(rule_id)
    assert str(error.value).isprintable()


def test_the_scope_is_named_by_ids_or_slugs(warehouse: Warehouse, orders: Pipeline) -> None:
    by_id = warehouse.rules.create({**RULE, "client_id": None, "pipeline_id": orders.id})
    by_slug = warehouse.rules.create({**RULE, "client_id": "acme", "pipeline_id": "acme/orders"})
    assert (by_id.client_id, by_id.pipeline_id) == (None, orders.id)
    assert (by_slug.client_id, by_slug.pipeline_id) == (orders.client_id, orders.id)
    for field, ref in (("client_id", "nobody"), ("pipeline_id", "acme/nothing"), ("client_id", uuid4())):
        with pytest.raises(NotFound, match=str(ref)):
            warehouse.rules.create({**RULE, field: ref})
    with pytest.raises(InputError, match="another client") as error:
        warehouse.rules.create({**RULE, "client_id": "acme", "pipeline_id": "beta/stock"})
    assert error.value.field == "pipeline_id"
    with pytest.raises(InputError, match="another client"):
        warehouse.rules.update(by_slug.id, {"client_id": "beta"})
    with pytest.raises(InputError, match="needs one of the two") as error:
        warehouse.rules.update(by_id.id, {"pipeline_id": None})
    assert error.value.field == "client_id"


@pytest.mark.parametrize(
    ("changes", "field", "issue"),
    [
        ({"client_id": None}, "client_id", "needs one of the two"),
        ({"client_id": 5}, "client_id", "a number"),
        ({"rule_type": "full_moon"}, "rule_type", "must be one of on_failure"),
        ({"channel": "pigeon"}, "channel", "must be one of slack, email, webhook, apprise, inbox"),
        ({"destination": " "}, "destination", "empty"),
        ({"destination": "x" * 501}, "destination", "at most 500 characters"),
        ({"destination": "#a\nb"}, "destination", "control character"),
        ({"destination": "https://hooks.slack.com/services/T0/B0/abcdefgh"}, "destination", "holds a secret"),
        ({"destination": "https://user:pw@example.com/hook"}, "destination", "holds a secret"),
        ({"channel": "email"}, "destination", "must be an email address"),
        ({"channel": "email", "destination": "Ops@"}, "destination", "must be an email address"),
        ({"channel": "email", "destination": "@example.com"}, "destination", "must be an email address"),
        ({"channel": "email", "destination": "Ops <ops@example.com"}, "destination", "must be an email address"),
        ({"channel": "email", "destination": "a@example.com, b@example.com"}, "destination", "must be an email"),
        ({"threshold": 1}, "threshold", "has no meaning for a rule of type on_failure"),
        ({"window_minutes": 1}, "window_minutes", "has no meaning"),
        ({"rule_type": "failures_in_window", "threshold": 3}, "window_minutes", "is required"),
        ({"rule_type": "failures_in_window", "window_minutes": 3}, "threshold", "is required"),
        ({"rule_type": "failures_in_window", "window_minutes": 60, "threshold": 0}, "threshold", "must be at least 1"),
        ({"rule_type": "consecutive_failures"}, "threshold", "is required"),
        ({"rule_type": "consecutive_failures", "threshold": True}, "threshold", "a boolean"),
        ({"rule_type": "no_success_in_window"}, "window_minutes", "is required"),
        ({"rule_type": "no_success_in_window", "window_minutes": 2**31}, "window_minutes", "must be at most"),
        ({"rule_type": "missed_run", "threshold": 1}, "threshold", "has no meaning"),
        ({"muted_until": "soon"}, "muted_until", "must be a time such as"),
        ({"muted_until": "2026-12-01T00:00:00"}, "muted_until", "no time zone"),
        ({"muted_until": T0.replace(tzinfo=None)}, "muted_until", "no time zone"),
        ({"muted_until": "9999-12-31T23:59:59Z"}, "muted_until", ""),
        ({"is_enabled": "true"}, "is_enabled", "true or false"),
        ({"severity": "high"}, "severity", "unknown field"),
    ],
)
def test_an_invalid_rule_is_rejected_by_field(
    warehouse: Warehouse, changes: dict[str, object], field: str, issue: str
) -> None:
    with pytest.raises(InputError) as error:
        warehouse.rules.create({**RULE, **changes})
    assert error.value.field == field
    assert issue in error.value.issue
    assert warehouse.rules.list().items == []


@pytest.mark.parametrize("address", ["ops@example.com", "o.p+s@localhost", "Ops Team <ops@mail.example.com>"])
def test_an_address_may_have_a_name(warehouse: Warehouse, address: str) -> None:
    made = warehouse.rules.create({**RULE, "channel": "email", "destination": address})
    assert made.destination == address


def test_a_change_is_validated_together_with_what_stays(warehouse: Warehouse) -> None:
    made = warehouse.rules.create({**RULE, "rule_type": "consecutive_failures", "threshold": 3})
    with pytest.raises(InputError) as error:
        warehouse.rules.update(made.id, {"rule_type": "failures_in_window"})
    assert error.value.field == "window_minutes"
    with pytest.raises(InputError) as error:
        warehouse.rules.update(made.id, {"rule_type": "on_failure"})
    assert error.value.field == "threshold"
    changed = warehouse.rules.update(made.id, {"rule_type": "failures_in_window", "window_minutes": 60})
    assert (changed.threshold, changed.window_minutes) == (3, 60)


def test_enabled_rules_cannot_be_duplicated(warehouse: Warehouse, orders: Pipeline) -> None:
    made = warehouse.rules.create(RULE)
    with pytest.raises(Conflict) as error:
        warehouse.rules.create(RULE)
    assert error.value.field == "destination"
    warehouse.rules.disable(made.id)
    again = warehouse.rules.create(RULE)
    with pytest.raises(Conflict):
        warehouse.rules.update(made.id, {"is_enabled": True})
    assert warehouse.rules.create({**RULE, "pipeline_id": orders.id}).id != again.id


def test_a_race_for_one_rule_has_one_winner(warehouse: Warehouse) -> None:
    answers = at_once([partial(warehouse.rules.create, RULE)] * 6)
    assert sorted(type(a).__name__ for a in answers) == ["AlertRule", *["Conflict"] * 5]


def test_a_rule_that_many_delete_at_once_is_deleted_once(warehouse: Warehouse) -> None:
    made = warehouse.rules.create(RULE)
    answers = at_once([partial(warehouse.rules.delete, made.id)] * 4)
    assert sorted(type(a).__name__ for a in answers) == ["NoneType", *["NotFound"] * 3]


def test_a_scope_that_changes_while_it_is_changed_still_fits_together(warehouse: Warehouse) -> None:
    made = warehouse.rules.create(RULE)
    change = partial(warehouse.rules.update, made.id, {"pipeline_id": "acme/orders"})
    with writing(warehouse.engine) as connection:
        Rules(connection).update(made.id, {"client_id": "beta"})
        answer = once_it_waits(warehouse.engine, change, connection.commit)
    assert isinstance(answer, InputError)
    assert answer.field == "pipeline_id"


def test_a_change_that_changes_nothing_writes_nothing(warehouse: Warehouse) -> None:
    made = warehouse.rules.create(RULE)
    physical = rows(warehouse.engine, "SELECT ctid::text, xmin::text FROM alert_rules")
    assert warehouse.rules.update(made.id, RULE) == made
    assert rows(warehouse.engine, "SELECT ctid::text, xmin::text FROM alert_rules") == physical


def test_the_list_is_filtered_and_paged(warehouse: Warehouse) -> None:
    made: list[AlertRule] = []
    scopes: list[dict[str, Any]] = [
        {"client_id": "acme"},
        {"client_id": None, "pipeline_id": "acme/orders"},
        {"client_id": "beta"},
    ]
    for scope in scopes:
        made += [warehouse.rules.create({**RULE, **scope, "destination": d}) for d in ("#a", "#b")]
    made.append(warehouse.rules.create({**RULE, "rule_type": "missed_run", "client_id": "beta"}))
    warehouse.rules.disable(made[0].id)
    listed: Any = warehouse.rules.list
    wanted: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"client": "acme"}, [0, 1, 2, 3]),
        ({"pipeline": "acme/orders"}, [2, 3]),
        ({"client": "beta", "rule_type": RuleType.MISSED_RUN}, [6]),
        ({"rule_type": "on_failure", "enabled": True}, [1, 2, 3, 4, 5]),
        ({"enabled": False}, [0]),
        ({"client": "beta", "pipeline": "acme/orders"}, []),
    ]
    for filters, numbers in wanted:
        assert [r.id for r in listed(**filters).items] == [made[n].id for n in numbers], filters
    for limit in (1, 2, 3, 7):
        found, cursor = [], None
        while True:
            page = listed(limit=limit, cursor=cursor)
            found += [rule.id for rule in page.items]
            assert len(found) <= len(made), "the pages go round in a circle"
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == [rule.id for rule in made]
    for filters in ({"client": "nobody"}, {"pipeline": "acme/nothing"}):
        with pytest.raises(NotFound):
            listed(**filters)
    with pytest.raises(InputError):
        listed(rule_type="full_moon")


NUMBERS = st.none() | st.integers(-2, 5) | st.just(2**40)


@settings(max_examples=100)
@given(
    rule_type=st.sampled_from(RuleType),
    threshold=NUMBERS,
    window=NUMBERS,
    channel=st.sampled_from(Channel),
    destination=st.text(max_size=6) | st.just("ops@example.com"),
)
def test_any_input_becomes_a_rule_or_a_chm_error(
    warehouse: Warehouse,
    rule_type: RuleType,
    threshold: int | None,
    window: int | None,
    channel: Channel,
    destination: str,
) -> None:
    fields = {"rule_type": rule_type, "threshold": threshold, "window_minutes": window, "channel": channel}
    try:
        made = warehouse.rules.create({**fields, "client_id": "acme", "destination": destination})
    except InputError as error:
        assert {field for field, _ in error.details} <= {"threshold", "window_minutes", "destination"}
    else:
        warehouse.rules.delete(made.id)
