"""What CHM relies on below psycopg's public API: a statement runs on the server while Python continues."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest

from chm_dagster.warehouse.ledger.staging import BackgroundStatement, buffered_copy

HOLD = 7


@pytest.fixture
def session(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql")) as connection:
        yield connection


@pytest.fixture
def holder(database_url: str) -> Iterator[psycopg.Connection]:
    """A session that holds a lock, so that a statement runs exactly as long as a test wants."""
    with psycopg.connect(database_url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [HOLD])
        yield connection


def test_a_statement_runs_while_its_caller_continues(session: psycopg.Connection, holder: psycopg.Connection) -> None:
    statement = BackgroundStatement(session)
    assert not statement.is_running()
    session.execute("SELECT 1")
    statement.start(f"SELECT pg_advisory_lock({HOLD}), 'ä', NULL, generate_series(1, 2); SELECT 'another'")
    assert statement.is_running()
    assert session.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE
    holder.execute("SELECT pg_advisory_unlock(%s)", [HOLD])
    assert statement.fetch() == [("", "ä", "", "1"), ("", "ä", "", "2")]
    assert not statement.is_running()
    assert statement.fetch() == []
    assert session.execute("SELECT 2").fetchone() == (2,)


@pytest.mark.parametrize("sql", ["SELECT 1 / 0", "SELECT 1; SELECT 1 / 0"])
def test_an_error_is_raised_by_the_fetch_and_leaves_the_session_usable(session: psycopg.Connection, sql: str) -> None:
    statement = BackgroundStatement(session)
    statement.start(sql)
    with pytest.raises(psycopg.errors.DivisionByZero):
        statement.fetch()
    session.rollback()
    assert session.execute("SELECT 2").fetchone() == (2,)


def test_a_session_that_ends_in_between_is_an_operational_error(
    session: psycopg.Connection, holder: psycopg.Connection
) -> None:
    statement = BackgroundStatement(session)
    statement.start(f"SELECT pg_advisory_lock({HOLD})")
    holder.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        statement.fetch()


def test_copied_rows_arrive_in_order_under_backpressure(session: psycopg.Connection) -> None:
    cursor = session.cursor()
    cursor.execute("CREATE TEMP TABLE numbers (place bigint GENERATED ALWAYS AS IDENTITY, n integer)")
    with buffered_copy(cursor, "COPY numbers (n) FROM STDIN") as copy:
        for first in range(0, 1_000_000, 100_000):
            copy.write("".join(f"{n}\n" for n in range(first, first + 100_000)).encode())
    found = cursor.execute("SELECT count(*), bool_and(place = n + 1) FROM numbers").fetchone()
    assert found == (1_000_000, True)


def test_the_version_of_psycopg_is_bounded_because_these_calls_are_not_public() -> None:
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"psycopg[binary]>=3.2,<3.4"' in project
    assert version("psycopg") < "3.4"
