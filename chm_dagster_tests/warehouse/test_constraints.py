"""The database has the last word, and its errors name the field."""

from collections.abc import Callable
from uuid import UUID

import pytest
import sqlalchemy as sa

from chm_dagster.domain.clients import Client
from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.errors import Conflict, DatabaseUnavailable, InputError, NotFound
from chm_dagster.warehouse.constraints import BROKEN, writing
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.tables import metadata
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows

TABLES = ("clients", "pipelines", "runs", "alert_rules")
SOMEBODY = "01890a5d-ac96-774b-bcce-b302099a8057"


def live_constraints(engine: sa.Engine) -> dict[str, str]:
    """The constraints of the live schema: CHECKs, keys, foreign keys and unique indexes, with their tables."""
    query = """
        SELECT conname AS name, conrelid::regclass::text AS of_table FROM pg_constraint
        WHERE contype IN ('c', 'p', 'u', 'f') AND connamespace = 'public'::regnamespace
        UNION
        SELECT i.indexrelid::regclass::text, i.indrelid::regclass::text FROM pg_index AS i
        JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indisunique AND c.relnamespace = 'public'::regnamespace
    """
    return {row["name"]: row["of_table"] for row in rows(engine, query) if row["of_table"] in TABLES}


def test_every_constraint_of_the_live_schema_has_a_message(engine: sa.Engine) -> None:
    live = live_constraints(engine)
    assert len(live) > 50
    assert set(live) == set(BROKEN)


def test_every_message_names_a_column_of_its_table_and_the_problem(engine: sa.Engine) -> None:
    for name, table in live_constraints(engine).items():
        meaning = BROKEN[name]
        error = meaning.error()
        assert meaning.issue in str(error), name
        if meaning.kind is NotFound:
            assert name.startswith("fk_")
        else:
            assert meaning.field in metadata.tables[table].columns, name
        if name.startswith(("uq_", "pk_")):
            assert isinstance(error, Conflict), name


CHANGES: list[tuple[str, type[Exception], str]] = [
    ("UPDATE clients SET name = ' padded '", InputError, "name"),
    ("UPDATE clients SET slug = 'Not A Slug'", InputError, "slug"),
    ("UPDATE clients SET name = NULL", InputError, "name"),
    ("INSERT INTO clients (name, slug) VALUES ('Acme', 'other')", Conflict, "name"),
    ("INSERT INTO clients (name, slug) VALUES ('Other', 'acme')", Conflict, "slug"),
    ("INSERT INTO clients (id, name, slug) SELECT id, 'Other', 'other' FROM clients", Conflict, "id"),
    (f"UPDATE pipelines SET client_id = '{SOMEBODY}'", NotFound, "client"),
    ("UPDATE pipelines SET schedule_timezone = 'UTC'", InputError, "schedule_timezone"),
    ("UPDATE pipelines SET platform = 'abacus'", InputError, "platform"),
    (
        f"INSERT INTO runs (pipeline_id, external_run_id, status) VALUES ('{SOMEBODY}', 'r', 'failed')",
        NotFound,
        "pipeline",
    ),
    (
        "INSERT INTO runs (pipeline_id, external_run_id, status) SELECT id, 'r', 'lost' FROM pipelines",
        InputError,
        "status",
    ),
    ("INSERT INTO runs (pipeline_id, external_run_id) SELECT id, 'r' FROM pipelines", InputError, "status"),
]


@pytest.mark.parametrize(("statement", "kind", "field"), CHANGES)
def test_a_violated_constraint_becomes_a_chm_error_and_nothing_is_written(
    warehouse: Warehouse, orders: Pipeline, statement: str, kind: type[Exception], field: str
) -> None:
    with pytest.raises(kind) as error, writing(warehouse.engine) as connection:
        connection.execute(sa.text("UPDATE clients SET is_active = false"))
        connection.execute(sa.text(statement))
    assert field in str(error.value)
    if kind is not NotFound:
        assert getattr(error.value, "field", None) == field
    # Postgres quotes the row in its error; this must not be passed on.
    assert error.value.__cause__ is None
    assert "DETAIL" not in str(error.value)
    assert warehouse.clients.get("acme").is_active


@pytest.mark.alone
def test_a_constraint_without_a_message_is_not_hidden(warehouse: Warehouse, orders: Pipeline) -> None:
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE clients ADD CONSTRAINT ck_new CHECK (name <> 'X')"))
    with pytest.raises(sa.exc.IntegrityError, match="ck_new"):
        warehouse.clients.update("acme", {"name": "X"})


LOOKALIKE = Client.model_construct(id=SOMEBODY, name="Acme")
METHODS: list[tuple[str, Callable[[Warehouse], object]]] = [
    ("clients.create", lambda w: w.clients.create("Acme")),
    ("clients.get", lambda w: w.clients.get("acme")),
    ("clients.update", lambda w: w.clients.update("acme", {"name": "x"})),
    ("clients.disable", lambda w: w.clients.disable("acme")),
    ("clients.list", lambda w: w.clients.list()),
    ("clients.lookalikes", lambda w: w.clients.lookalikes(LOOKALIKE)),
    (
        "pipelines.create",
        lambda w: w.pipelines.create("a", {"name": "x", "platform": "dbt", "pipeline_type": "export"}),
    ),
    ("pipelines.get", lambda w: w.pipelines.get("a/b")),
    ("pipelines.update", lambda w: w.pipelines.update("a/b", {})),
    ("pipelines.disable", lambda w: w.pipelines.disable("a/b")),
    ("pipelines.list", lambda w: w.pipelines.list(client="a")),
    ("runs.record", lambda w: w.runs.record("a/b", {"status": "success"})),
    ("runs.get", lambda w: w.runs.get("a/b", "r1")),
    ("runs.list", lambda w: w.runs.list("a/b")),
    ("runs.latest", lambda w: w.runs.latest("a/b")),
    ("runs.summary", lambda w: w.runs.summary("a")),
    (
        "rules.create",
        lambda w: w.rules.create(
            {"client_id": "a", "rule_type": "on_failure", "channel": "slack", "destination": "#x"}
        ),
    ),
    ("rules.get", lambda w: w.rules.get(SOMEBODY)),
    ("rules.update", lambda w: w.rules.update(SOMEBODY, {})),
    ("rules.delete", lambda w: w.rules.delete(SOMEBODY)),
    ("rules.disable", lambda w: w.rules.disable(SOMEBODY)),
    ("rules.list", lambda w: w.rules.list()),
    ("rules.count", lambda w: w.rules.count()),
    ("rules.scopes", lambda w: w.rules.scopes([UUID(SOMEBODY)])),
    ("ask", lambda w: w.ask("failing_now")),
]


def test_every_method_is_in_the_list_below() -> None:
    warehouse = Warehouse(make_engine("postgresql://127.0.0.1:1/nowhere"))
    parts = {name: getattr(warehouse, name) for name in ("clients", "pipelines", "runs", "rules")}
    public = {f"{name}.{m}" for name, part in parts.items() for m in dir(part) if not m.startswith("_")}
    assert public | {"ask"} == {name for name, _ in METHODS}


@pytest.mark.parametrize("call", [call for _, call in METHODS], ids=[name for name, _ in METHODS])
def test_an_unreachable_server_is_reported_as_unavailable(call: Callable[[Warehouse], object]) -> None:
    # Port 1 refuses connections at once.
    with pytest.raises(DatabaseUnavailable, match="does not answer") as error:
        call(Warehouse(make_engine("postgresql://someone:hunter2@127.0.0.1:1/nowhere")))
    assert "hunter2" not in str(error.value)


def test_an_exhausted_pool_is_reported_as_unavailable(database_url: str) -> None:
    engine = sa.create_engine(make_engine(database_url).url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with engine.connect(), pytest.raises(DatabaseUnavailable, match="in use"):
        Warehouse(engine).clients.list()
    engine.dispose()


def test_a_session_ended_by_the_server_is_reported_as_unavailable(warehouse: Warehouse) -> None:
    with pytest.raises(DatabaseUnavailable), writing(warehouse.engine) as connection:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        with warehouse.engine.connect() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(sa.text("INSERT INTO clients (name, slug) VALUES ('Acme', 'acme')"))
    assert warehouse.clients.list(active=None).items == []


def test_a_closed_warehouse_holds_no_connection(warehouse: Warehouse) -> None:
    warehouse.clients.list()
    warehouse.close()
    assert warehouse.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
