"""The inventory as a file: its meaning, its mistakes by line, and all-or-nothing application."""

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Environment, Pipeline, Platform
from chm_dagster.errors import Conflict, InputError
from chm_dagster.ingestion.inventory_apply import ApplyReport, apply, export
from chm_dagster.ingestion.inventory_file import dump, parse
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows

FILE = """\
clients:
  acme:
    name: Acme GmbH
    rules:
      - {rule_type: on_failure, channel: slack, destination: "#acme"}
    pipelines:
      orders:
        name: Daily orders
        platform: airflow
        pipeline_type: ingestion
        external_id: orders_daily
        schedule_cron: 0 6 * * 1-5
        schedule_timezone: Europe/Berlin
        grace_minutes: 15
        rules:
          - rule_type: failures_in_window
            threshold: 3
            window_minutes: 60
            channel: email
            destination: ops@acme.example
      invoices: {name: Invoices, platform: dbt, pipeline_type: transform}
  cafe-nord:
    name: Café Nord
"""


def problems(text: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        parse(text)
    return [f"{field}: {issue}" for field, issue in refused.value.details]


def fields(text: str, key: str) -> dict[str, Any]:
    return dict(next(wanted.fields for wanted in parse(text) if wanted.key == key))


def pipeline(text: str) -> dict[str, Any]:
    indented = "\n".join(f"        {line}" for line in text.splitlines())
    return fields(f"clients:\n  acme:\n    pipelines:\n      orders:\n{indented}\n", "acme/orders")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_contains_clients_pipelines_and_their_rules() -> None:
    found = [(wanted.kind, wanted.key, wanted.line) for wanted in parse(FILE)]
    assert found == [
        ("client", "acme", 2),
        ("rule", "acme", 5),
        ("pipeline", "acme/orders", 7),
        ("rule", "acme/orders", 16),
        ("pipeline", "acme/invoices", 21),
        ("client", "cafe-nord", 22),
    ]
    assert fields(FILE, "acme/orders")["grace_minutes"] == 15
    assert fields(FILE, "cafe-nord") == {"name": "Café Nord"}


@pytest.mark.parametrize("text", ["no", "007", "1.50", "2026-01-31", "1:30", "0x10", "1e3", "null-ish", "on", "~x"])
def test_a_text_is_read_as_written_and_not_as_yaml_interprets_it(text: str) -> None:
    assert pipeline(f"name: {text}\nexternal_id: {text}") == {"name": text, "external_id": text}


def test_numbers_booleans_and_null_keep_their_type() -> None:
    found = pipeline("grace_minutes: 010\nmax_runtime_minutes: null\ndescription: ~\nexternal_id:\nis_active: no")
    assert found["grace_minutes"] == 10
    assert found["is_active"] is False
    assert [found[name] for name in ("max_runtime_minutes", "description", "external_id")] == [None, None, None]
    # A quoted value is a text, and so is rejected later where a number is expected.
    assert pipeline("grace_minutes: '10'\nis_active: 'no'") == {"grace_minutes": "10", "is_active": "no"}


def test_anchors_can_be_merged_and_explicit_keys_win() -> None:
    text = """
x-airflow: &airflow {platform: airflow, pipeline_type: ingestion, environment: dev}
x-late: &late {<<: *airflow, grace_minutes: 60}
clients:
  acme:
    pipelines:
      orders: {<<: [*late, {name: Orders}], environment: prod}
"""
    assert fields(text, "acme/orders") == {
        "name": "Orders",
        "platform": "airflow",
        "pipeline_type": "ingestion",
        "environment": "prod",
        "grace_minutes": 60,
    }


def merges(levels: int) -> str:
    lines = ["x-0: &x0 {name: n}"]
    lines += [f"x-{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join([*lines, f"clients: {{acme: {{<<: *x{levels - 1}}}}}"])


def test_aliases_that_expand_the_file_to_many_times_its_size_are_refused() -> None:
    assert fields(merges(3), "acme") == {"name": "n"}
    said = "line 5: the aliases expand the file to many times its size; write fewer of them"
    assert problems(merges(30)) == [said]


def test_an_anchor_that_merges_itself_is_refused() -> None:
    said = "line 1: an alias that refers to itself; write out what is meant"
    assert problems("clients: {acme: &a {name: x, <<: *a}}") == [said]


def test_all_mistakes_are_reported_by_line_in_order() -> None:
    text = """\
clients:
  acme:
    nam: X
    slug: y
    pipelines:
      Orders 2: {name: x}
      orders: {name: [a, b]}
      orders: {grace_minute: 5}
    rules: {rule_type: on_failure}
  acme: {}
"""
    assert problems(text) == [
        "line 3: acme: nam: unknown field; did you mean name?",
        "line 4: acme: slug: unknown field; the slug is the key that this is listed under",
        "line 6: acme: pipelines: Orders 2: not a slug; use a-z, 0-9 and single dashes between them, such as cafe-nord",
        "line 7: acme/orders: name: must be a single value",
        "line 8: acme: pipelines: orders: stands here again, after line 7; merge the two",
        "line 9: acme: rules: must be a list; write each rule after a dash",
        "line 10: clients: acme: stands here again, after line 2; merge the two",
    ]


def test_a_channel_that_yaml_reads_as_a_comment_is_noticed() -> None:
    text = "clients:\n  acme:\n    rules:\n      - rule_type: on_failure\n        channel: slack\n        destination: #acme\n"
    assert problems(text) == ['line 6: acme: destination: empty; one that begins with # needs quotes: "#alerts"']


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: clients: missing; a file begins with it: see `chm inventory export`"),
        ("client: {}", "line 1: client: unknown field; did you mean clients?"),
        ("- a", "line 1: file: must be a map; write names followed by a colon"),
        ("clients: [a]", "line 1: clients: must be a map; write names followed by a colon"),
        ("clients: {acme: 3}", "line 1: acme: must be a map; write names followed by a colon"),
        ("clients:\n  acme: {rules: [3]}", "line 2: acme rule: must be a map; write names followed by a colon"),
        ("clients: {[a]: 3}", "line 1: clients: has a name that is not text"),
        ("clients:\n\tacme: {}", "line 2: not YAML: found character that cannot start any token; indent with spaces"),
        ("clients: {acme: {name: *x}}", "line 1: not YAML: found undefined alias; indent with spaces, and quote texts"),
        ("clients: {}\n---\nclients: {}", "line 2: not YAML: but found another document"),
        ("clients: \x01", "line 1: not YAML: unacceptable character #x0001"),
        ("[" * 100_000 + "]" * 100_000, "line 1: nested too deeply; at most 32 levels are accepted"),
        ("clients: " + "{a: " * 5_000, "line 1: nested too deeply"),
    ],
)
def test_a_file_that_is_not_an_inventory_is_rejected_with_the_reason(text: str, problem: str) -> None:
    assert problems(text)[0].startswith(problem)


TEXTS = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t#:'\"*&!%@`{}[]|>-?, "), min_size=1
)


@given(name=TEXTS, external_id=TEXTS, description=TEXTS)
def test_any_text_survives_being_written_and_read(name: str, external_id: str, description: str) -> None:
    written = {"name": name, "external_id": external_id, "description": description}
    text = dump({"clients": {"acme": {"name": "Acme", "pipelines": {"orders": written}}}})
    assert fields(text, "acme/orders") == written


# --- applying -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def warehouse(engine: sa.Engine) -> Warehouse:
    return Warehouse(engine)


def take(warehouse: Warehouse, text: str, *, dry_run: bool = False) -> ApplyReport:
    return apply(warehouse, parse(text), dry_run=dry_run)


def counts(report: ApplyReport) -> tuple[int, int, int]:
    """Created, updated, unchanged."""
    return report.count("create"), report.count("update"), report.unchanged


def everything(engine: sa.Engine) -> dict[str, list[Any]]:
    return {
        name: rows(engine, f"SELECT xmin::text, * FROM {name} ORDER BY id")
        for name in ("clients", "pipelines", "alert_rules")
    }


def refused(warehouse: Warehouse, text: str) -> list[str]:
    before = everything(warehouse.engine)
    with pytest.raises((InputError, Conflict)) as error:
        take(warehouse, text)
    assert everything(warehouse.engine) == before
    return [f"{field}: {issue}" for field, issue in error.value.details]


def test_applying_a_file_twice_changes_nothing_the_second_time(warehouse: Warehouse, engine: sa.Engine) -> None:
    assert counts(take(warehouse, FILE)) == (6, 0, 0)
    orders = warehouse.pipelines.get("acme/orders")
    assert (orders.name, orders.platform, orders.grace_minutes) == ("Daily orders", Platform.AIRFLOW, 15)
    before = everything(engine)
    assert counts(take(warehouse, FILE)) == (0, 0, 6)
    assert everything(engine) == before


def test_omitted_fields_stay_and_null_clears(warehouse: Warehouse) -> None:
    take(warehouse, FILE)
    report = take(warehouse, "clients: {acme: {pipelines: {orders: {grace_minutes: null, environment: dev}}}}")
    assert counts(report) == (0, 1, 1)
    assert report.changes[0].fields == {
        "grace_minutes": (15, None),
        "environment": (Environment.PROD, Environment.DEV),
    }
    orders = warehouse.pipelines.get("acme/orders")
    assert (orders.grace_minutes, orders.external_id, orders.name) == (None, "orders_daily", "Daily orders")
    assert len(warehouse.clients.list().items) == 2


def test_a_dry_run_reports_everything_and_writes_nothing(warehouse: Warehouse, engine: sa.Engine) -> None:
    before = everything(engine)
    plan = take(warehouse, FILE, dry_run=True)
    assert everything(engine) == before
    assert plan == take(warehouse, FILE)


def test_a_dry_run_finds_conflicts_that_only_the_database_knows(warehouse: Warehouse) -> None:
    warehouse.clients.create("Acme GmbH", "other")
    with pytest.raises(Conflict, match="line 3: acme: name: another client has this name"):
        take(warehouse, FILE, dry_run=True)


def test_disabling_and_enabling_are_explicit_in_the_file(warehouse: Warehouse) -> None:
    take(warehouse, FILE)
    off = "clients: {acme: {is_active: false, pipelines: {orders: {is_active: false}}}}"
    assert counts(take(warehouse, off)) == (0, 2, 0)
    assert warehouse.clients.list().items == [warehouse.clients.get("cafe-nord")]
    assert counts(take(warehouse, FILE)) == (0, 0, 6)
    assert counts(take(warehouse, off.replace("false", "true"))) == (0, 2, 0)
    new = "clients: {new: {name: New, is_active: false, pipelines: {p: {name: P, platform: cron, pipeline_type: export, is_active: false}}}}"
    assert counts(take(warehouse, new)) == (2, 0, 0)
    assert not warehouse.clients.get("new").is_active
    assert not warehouse.pipelines.get("new/p").is_active


def test_any_error_writes_nothing(warehouse: Warehouse, engine: sa.Engine) -> None:
    take(warehouse, FILE)
    assert refused(
        warehouse,
        """\
clients:
  acme:
    name: Acme AG
    pipelines:
      orders:
        grace_minutes: -5
        platform: airflo
        schedule_cron: null
      new: {name: New}
    rules:
      - {rule_type: on_failure, channel: slack, destination: x, threshold: 3}
  other: {}
""",
    ) == [
        "line 11: acme rule: threshold: has no meaning for a rule of type on_failure; leave it out",
        "line 7: acme/orders: platform: must be one of " + ", ".join(Platform) + "; did you mean airflow?",
        "line 6: acme/orders: grace_minutes: must be at least 0",
        "line 9: acme/new: platform: is required",
        "line 9: acme/new: pipeline_type: is required",
        "line 12: other: name: is required",
    ]
    assert refused(
        warehouse,
        """\
clients:
  acme:
    name: Acme AG
    pipelines:
      copy: {name: Copy, platform: airflow, pipeline_type: export}
      orders2:
        name: Orders 2
        platform: airflow
        pipeline_type: export
        external_id: orders_daily
""",
    )[0].startswith(
        "line 10: acme/orders2: external_id: another pipeline of this client has this id on this connection"
    )
    assert refused(warehouse, "clients: {acme: {pipelines: {invoices: {schedule_timezone: UTC}}}}")[0].startswith(
        "line 1: acme/invoices: schedule_timezone: has no meaning without schedule_cron"
    )


def test_a_rule_is_identified_by_scope_type_and_destination(warehouse: Warehouse) -> None:
    take(warehouse, FILE)
    rule = FILE.replace("threshold: 3", "threshold: 5")
    report = take(warehouse, rule)
    assert counts(report) == (0, 1, 5)
    assert report.changes[0].fields == {"threshold": (3, 5)}
    # Another destination is another rule; the one before stays, because nothing is ever deleted.
    assert counts(take(warehouse, rule.replace("ops@", "night@"))) == (1, 0, 5)
    assert len(warehouse.rules.list().items) == 3


def test_a_rule_in_a_file_matches_the_enabled_one(warehouse: Warehouse) -> None:
    take(warehouse, FILE)
    old = next(rule for rule in warehouse.rules.list().items if rule.threshold == 3)
    warehouse.rules.disable(old.id)
    new = warehouse.rules.create(
        {
            "pipeline_id": "acme/orders",
            "rule_type": "failures_in_window",
            "threshold": 4,
            "window_minutes": 60,
            "channel": "email",
            "destination": "ops@acme.example",
        }
    )
    take(warehouse, FILE.replace("threshold: 3", "threshold: 9"))
    assert [warehouse.rules.get(rule.id).threshold for rule in (old, new)] == [3, 9]


def test_a_duplicate_rule_in_a_file_is_an_error(warehouse: Warehouse) -> None:
    twice = (
        "clients:\n  acme:\n    name: Acme\n    rules:\n"
        + "      - {rule_type: on_failure, channel: slack, destination: x}\n" * 2
    )
    assert refused(warehouse, twice)[0].startswith("line 6: acme rule: destination: an enabled rule of this scope")


def full_inventory(warehouse: Warehouse) -> None:
    """One of everything, with everything disabled at least once."""
    take(warehouse, FILE)
    take(
        warehouse,
        "clients: {cafe-nord: {is_active: false, pipelines: {feed: {name: 'no', platform: custom, pipeline_type: export, is_active: false, description: \"two\\nlines: # no\\n\", connection: eu}}}}",
    )
    rule = {"client_id": "acme", "rule_type": "on_failure", "channel": "slack", "destination": "#acme"}
    for _ in range(2):
        enabled = warehouse.rules.list(client="acme", enabled=True).items
        warehouse.rules.disable(next(rule.id for rule in enabled if rule.pipeline_id is None))
        warehouse.rules.create(rule)
    warehouse.rules.create(
        {**rule, "pipeline_id": "acme/invoices", "muted_until": datetime(2027, 1, 1, tzinfo=UTC), "is_enabled": False}
    )


@pytest.mark.parametrize("full", [False, True])
def test_applying_an_export_changes_nothing(warehouse: Warehouse, engine: sa.Engine, full: bool) -> None:
    full_inventory(warehouse)
    before = everything(engine)
    text = dump(export(warehouse, full=full))
    report = take(warehouse, text)
    assert report.changes == []
    assert report.unchanged == sum(len(found) for found in before.values())
    assert everything(engine) == before


def test_an_export_recreates_the_same_inventory_elsewhere(warehouse: Warehouse, empty_database_url: str) -> None:
    full_inventory(warehouse)
    text = dump(export(warehouse))
    elsewhere = Warehouse(make_engine(empty_database_url))
    schema.migrate(elsewhere.engine)
    assert counts(take(elsewhere, text))[1:] == (0, 0)
    assert dump(export(elsewhere)) == text
    elsewhere.close()


def test_a_full_export_contains_every_field(warehouse: Warehouse) -> None:
    take(warehouse, FILE)
    brief, full = dump(export(warehouse)), dump(export(warehouse, full=True))
    warehouse.pipelines.update("acme/invoices", {"description": "changed", "is_active": False})
    assert counts(take(warehouse, brief)) == (0, 0, 6)
    assert counts(take(warehouse, full)) == (0, 1, 5)
    assert warehouse.pipelines.get("acme/invoices").description is None


def test_an_empty_inventory_exports_a_template(warehouse: Warehouse) -> None:
    text = dump(export(warehouse))
    assert text.startswith("# The inventory of CHM")
    assert counts(take(warehouse, text)) == (0, 0, 0)


def test_every_field_of_the_api_can_be_written_in_a_file(warehouse: Warehouse) -> None:
    take(warehouse, FILE)
    known = set(Pipeline.model_fields)
    exported = set(export(warehouse, full=True)["clients"]["acme"]["pipelines"]["orders"])
    assert known - exported == {
        *("id", "client_id", "client_slug", "client_name", "slug", "synced_through", "created_at", "updated_at"),
        *("observed_through", "sync_failing_since", "sync_error", "sync_error_code", "due_at"),
    }


def test_a_client_whose_name_differs_from_another_by_case_only_is_warned_of(warehouse: Warehouse) -> None:
    warehouse.clients.create("ACME", "big")
    report = take(warehouse, "clients:\n  acme:\n    name: Acme\n")
    assert report.warnings == ["line 3: acme: name: client big has the same name in another case"]
    assert take(warehouse, "clients:\n  acme:\n    name: Acme\n").warnings == []
