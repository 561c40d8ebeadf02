"""The roles of CHM's database: who may do what, from `deploy/roles.sql`."""

from collections.abc import Mapping

import psycopg
import sqlalchemy as sa
from psycopg import sql

from chm_dagster.errors import ConfigError
from chm_dagster.shipped import shipped
from chm_dagster.warehouse.engine import database_errors

APP, BI = "chm_app", "chm_bi"
ROLES = shipped("deploy/roles.sql")

# What `chm_bi` could still do if only the database's owner had run the file.
_LEFT_OPEN = """
SELECT DISTINCT p.proname AS name FROM pg_proc AS p
WHERE p.pronamespace = 'pg_catalog'::regnamespace
  AND p.proname ~ '^(pg_advisory|pg_try_advisory|pg_sleep|lo_|pg_notify$)'
  AND has_function_privilege('chm_bi', p.oid, 'EXECUTE')
ORDER BY 1
"""


def apply_roles(engine: sa.Engine, passwords: Mapping[str, str]) -> list[str]:
    """Create the roles, grant what each may do, and set the given passwords, all or nothing.

    The server gets a hash of a password, never the password itself. Returns the names of the functions that `chm_bi`
    may still call although it should not, because only a superuser can take that away. Raises ConfigError,
    DatabaseUnavailable.
    """
    with database_errors(), engine.begin() as connection:
        driver = connection.connection.driver_connection
        if not isinstance(driver, psycopg.Connection):  # pragma: no cover - make_engine knows no other driver
            raise ConfigError("roles need the driver psycopg")
        try:
            driver.execute(ROLES.read_bytes())
            for role, password in passwords.items():
                secret = driver.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
                driver.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(secret)))
        except psycopg.errors.InsufficientPrivilege as error:
            hint = error.diag.message_hint or "Run it as a superuser."
            raise ConfigError(f"{error.diag.message_primary}. {hint}") from None
        return [row.name for row in connection.execute(sa.text(_LEFT_OPEN))]
