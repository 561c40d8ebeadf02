"""Maintenance windows, owners, tags and report addresses in the inventory."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.errors import InputError, NotFound
from chm_dagster.ingestion.inventory_apply import apply, export
from chm_dagster.ingestion.inventory_file import dump, parse
from chm_dagster.warehouse.inventory.maintenance import add_window, remove_window
from chm_dagster.warehouse.ledger.calendars import refresh_calendars
from chm_dagster.warehouse.ledger.due_times import refresh_all
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows

FIELDS = {"name": "Orders", "platform": "custom", "pipeline_type": "export"}
ONE_OFF = {"start": "2026-12-01T20:00:00+01:00", "end": "2026-12-01T23:00:00Z", "reason": "Upgrade"}
WEEKLY = {"cron": "0 2 * * 0", "timezone": "Europe/Berlin", "minutes": 120}


@pytest.fixture
def acme(warehouse: Warehouse) -> Warehouse:
    warehouse.clients.create("Acme")
    warehouse.pipelines.create("acme", FIELDS)
    return warehouse


def test_windows_are_stored_in_utc_on_clients_and_pipelines(acme: Warehouse) -> None:
    acme.clients.update("acme", {"maintenance": [ONE_OFF, WEEKLY]})
    first, second = acme.clients.get("acme").maintenance
    assert first == {"start": "2026-12-01T19:00:00Z", "end": "2026-12-01T23:00:00Z", "reason": "Upgrade"}
    assert second == WEEKLY
    assert acme.pipelines.get("acme/orders").maintenance == []
    assert acme.pipelines.update("acme/orders", {"maintenance": [WEEKLY]}).maintenance == [WEEKLY]
    assert acme.pipelines.update("acme/orders", {"maintenance": None}).maintenance == []


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ([{}], "window 1: start: is required, with end; or cron and minutes, for a window that recurs"),
        ([WEEKLY, {"start": "2026-12-01T20:00:00Z"}], "window 2: end: is required beside start"),
        ([{"cron": "0 2 * * 0"}], "window 1: minutes: is required beside cron"),
        ([{"minutes": 5, "timezone": "UTC"}], "window 1: cron: is required beside minutes"),
        ([{**ONE_OFF, "minutes": 5}], "window 1: minutes: has no meaning beside start and end"),
        ([{**ONE_OFF, "end": ONE_OFF["start"]}], "window 1: end: must be after start"),
        ([{**ONE_OFF, "end": "tonight"}], "window 1: end: must be a time such as"),
        ([{**ONE_OFF, "end": "2026-12-01T23:00"}], "window 1: end: has no time zone"),
        ([{**WEEKLY, "cron": "* * *"}], "window 1: cron: must have five fields"),
        (
            [{**WEEKLY, "timezone": "Europe/Berln"}],
            "window 1: timezone: must be the name of an IANA time zone; did you",
        ),
        ([{**WEEKLY, "minutes": 0}], "window 1: minutes: must be at least 1"),
        ([{**WEEKLY, "minutes": 10_081}], "window 1: minutes: must be at most 10080"),
        ([{**WEEKLY, "until": 1}], "window 1: until: unknown field"),
        (["tonight"], "window 1: must be an object, not text"),
        ("tonight", "must be a list, not text"),
        ([WEEKLY] * 101, "must have at most 100 entries"),
    ],
)
def test_an_invalid_window_is_refused_with_its_place_and_the_fix(acme: Warehouse, windows: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        acme.clients.update("acme", {"maintenance": windows})
    assert refused.value.field == "maintenance"
    assert said in refused.value.issue
    assert acme.clients.get("acme").maintenance == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"report_email": "nobody"}, "report_email: must be an email address"),
        ({"report_period": "quarter"}, "report_period: must be one of week, month, both"),
        ({"timezone": "Berlin"}, "timezone: must be the name of an IANA time zone; did you mean Europe/Berlin?"),
    ],
)
def test_a_client_is_refused_an_address_a_period_or_a_zone_that_is_none(
    acme: Warehouse, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        acme.clients.update("acme", fields)


def test_tags_are_kept_once_each_and_within_limits(acme: Warehouse) -> None:
    tagged = acme.pipelines.update("acme/orders", {"tags": ["b", " a ", "b"], "owner": "Data team"})
    assert (tagged.tags, tagged.owner) == (["b", "a"], "Data team")
    for tags, said in ((["a,b"], "no comma"), (["x"] * 21, "at most 20 entries"), ("a", "must be a list")):
        with pytest.raises(InputError, match=said):
            acme.pipelines.update("acme/orders", {"tags": tags})


def test_the_inventory_file_has_them_and_an_export_changes_nothing(acme: Warehouse) -> None:
    text = """
clients:
  acme:
    timezone: Europe/Berlin
    report_email: data@acme.example
    report_period: month
    maintenance:
      - {start: "2026-12-01T20:00:00Z", end: 2026-12-01T23:00:00Z, reason: Upgrade}
    pipelines:
      orders:
        owner: Data team
        tags: [finance, 007]
        maintenance:
          - cron: 0 2 * * 0
            timezone: Europe/Berlin
            minutes: 120
"""
    assert apply(acme, parse(text)).count("update") == 2
    assert acme.clients.get("acme").maintenance[0]["end"] == "2026-12-01T23:00:00Z"
    assert acme.clients.get("acme").report_period == "month"
    assert acme.pipelines.get("acme/orders").tags == ["finance", "007"]
    assert acme.pipelines.get("acme/orders").maintenance == [WEEKLY]
    for full in (False, True):
        again = apply(acme, parse(dump(export(acme, full=full))))
        assert (again.changes, again.unchanged) == ([], 2)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("maintenance: {cron: 0 2 * * 0}", "line 1: acme: maintenance: must be a list"),
        ("maintenance: [{cron: [0]}]", "line 1: acme: maintenance: cron: must be a single value"),
        ("maintenance: [[a]]", "line 1: acme: maintenance: must be a map"),
        ("maintenance: [{cron: x, minutes: ten}]", "window 1: cron: must have five fields"),
        ("maintenance: 5", "must be a list, not text"),
    ],
)
def test_mistakes_in_the_file_are_named_by_line(acme: Warehouse, written: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        apply(acme, parse(f"clients: {{acme: {{{written}}}}}"))
    assert any(said in f"{field}: {issue}" for field, issue in refused.value.details)


# --- health and the calendar -----------------------------------------------------------------------------------------


def health(acme: Warehouse) -> tuple[str, str | None]:
    [row] = acme.ask("latest_status_by_pipeline")
    return row["health"], row["health_reason"]


@pytest.mark.parametrize("owner", ["client", "pipeline"])
def test_a_pipeline_in_maintenance_is_paused_with_the_reason(acme: Warehouse, owner: str) -> None:
    update = (
        partial(acme.clients.update, "acme") if owner == "client" else partial(acme.pipelines.update, "acme/orders")
    )
    assert health(acme)[0] == "unknown"
    update({"maintenance": [{"start": "2026-01-01T00:00:00Z", "end": "2999-01-01T12:00:00Z", "reason": "Upgrade"}]})
    assert health(acme) == ("paused", "maintenance until 2999-01-01 12:00 UTC: Upgrade")
    assert acme.ask("needs_attention") == []
    [client] = acme.ask("latest_status_by_client")
    assert (client["health"], client["pipelines"], client["in_maintenance"], client["paused"]) == ("paused", 1, 1, 0)
    update({"maintenance": [{"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}]})
    assert health(acme)[0] == "unknown"
    update({"maintenance": [{"cron": "* * * * *", "minutes": 5}]})
    assert health(acme)[0] == "paused"
    update({"maintenance": []})
    assert health(acme)[0] == "unknown"


def test_windows_of_a_new_client_and_a_new_pipeline_count_at_once(warehouse: Warehouse) -> None:
    always = {"maintenance": [{"cron": "* * * * *", "minutes": 5}]}
    warehouse.clients.create({"name": "Acme", **always})
    warehouse.pipelines.create("acme", FIELDS)
    assert health(warehouse)[0] == "paused"
    warehouse.clients.update("acme", {"maintenance": []})
    warehouse.pipelines.create("acme", {**FIELDS, "name": "Other", **always})
    found = {row["pipeline_slug"]: row["health"] for row in warehouse.ask("latest_status_by_pipeline")}
    assert found == {"orders": "unknown", "other": "paused"}


def test_a_disabled_pipeline_in_maintenance_is_disabled(acme: Warehouse) -> None:
    acme.pipelines.update("acme/orders", {"maintenance": [{"cron": "* * * * *", "minutes": 5}], "is_active": False})
    found = rows(acme.engine, "SELECT h.* FROM pipelines AS p, health_of(p.id, 'success', now()) AS h")
    assert [(row["health"], row["health_reason"], row["health_since"]) for row in found] == [
        ("paused", "disabled", None)
    ]


def test_calendars_that_run_out_are_written_again_and_no_others(acme: Warehouse) -> None:
    acme.clients.update("acme", {"maintenance": [WEEKLY]})
    acme.pipelines.update("acme/orders", {"maintenance": [ONE_OFF]})
    now = datetime.now(UTC)
    with acme.engine.begin() as connection:
        assert refresh_calendars(connection, now + timedelta(days=6)) == 0
        assert refresh_calendars(connection, now + timedelta(days=8)) == 1
        assert refresh_calendars(connection, now + timedelta(days=8)) == 0
    [calendar] = [row["maintenance_calendar"] for row in rows(acme.engine, "SELECT maintenance_calendar FROM clients")]
    assert datetime.fromisoformat(calendar["through"]) == now + timedelta(days=22)
    with acme.engine.begin() as connection:
        connection.execute(sa.text("UPDATE clients SET maintenance_calendar = NULL"))
    refresh_all(acme.engine)
    assert rows(acme.engine, "SELECT 1 FROM clients WHERE maintenance_calendar IS NULL") == []


def test_two_who_add_windows_at_once_lose_none(acme: Warehouse) -> None:
    stale = acme.clients.get("acme")
    add_window(acme.engine, stale, {"cron": "0 1 * * *", "minutes": 5})
    add_window(acme.engine, stale, {"cron": "0 2 * * *", "minutes": 5})
    assert [window["cron"] for window in acme.clients.get("acme").maintenance] == ["0 1 * * *", "0 2 * * *"]
    first = acme.clients.get("acme").maintenance[0]
    remove_window(acme.engine, stale, first)
    with pytest.raises(NotFound, match="not there any more"):
        remove_window(acme.engine, stale, first)
    assert len(acme.clients.get("acme").maintenance) == 1
