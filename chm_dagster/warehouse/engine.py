"""Connections to CHM's database, and the translation of its errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url

from chm_dagster.errors import ConfigError, DatabaseUnavailable

__all__ = ["Engine", "database_errors", "is_lock_timeout", "is_passing", "make_engine"]

# A peer that vanished silently is noticed after about a minute, not after two hours.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
# The server or the network is at fault, not the statement; trying again later can help. SQLSTATE classes and codes.
_PASSING = ("08", "25006", "40", "53", "55P03", "57")


def make_engine(url: str, *, pool_size: int = 5, statement_seconds: int = 0) -> Engine:
    """An engine on psycopg 3 for any spelling of a Postgres URL. Sessions speak UTC. Raises ConfigError.

    The server ends a statement that takes longer than `statement_seconds`; 0 leaves that to the server's own settings.
    """
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # The error may quote a part of the URL, and so a part of the password.
        raise ConfigError("CHM_DATABASE_URL cannot be read as a database URL") from None
    return sa.create_engine(
        _with_psycopg(parsed),
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "application_name": "chm",
            "options": "-c timezone=UTC" + (f" -c statement_timeout={statement_seconds}s" if statement_seconds else ""),
            "connect_timeout": 10,
            **_KEEPALIVES,
        },
    )


def _with_psycopg(url: URL) -> URL:
    if not url.drivername.startswith("postgres"):
        raise ConfigError("CHM_DATABASE_URL must start with postgresql://")
    return url.set(drivername="postgresql+psycopg")


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a failure of the server or the network into `DatabaseUnavailable`; leave errors of a statement alone."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if is_passing(error.orig):
            raise DatabaseUnavailable(_first_line(error.orig)) from error
        raise
    except psycopg.Error as error:
        if is_passing(error):
            raise DatabaseUnavailable(_first_line(error)) from error
        raise
    except sa.exc.TimeoutError as error:
        raise DatabaseUnavailable("all of this process's database connections are in use; try again") from error


def is_passing(error: BaseException | None) -> bool:
    """Whether trying the same thing later can help. "Too many clients" comes without an SQLSTATE."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return str(state).startswith(_PASSING)


def is_lock_timeout(error: BaseException | None) -> bool:
    """Whether a statement timed out waiting for a lock."""
    driver_error = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return isinstance(driver_error, psycopg.errors.LockNotAvailable)


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return f"the database does not answer: {lines[0] if lines else type(error).__name__}"
