"""How Alembic reaches the database: one migration at a time, and never waiting long for a lock.

A caller that has a connection passes it as `config.attributes["connection"]`; from the shell, `CHM_DATABASE_URL` is read.
"""

import os

import sqlalchemy as sa
from alembic import context

from chm_dagster.settings import Settings
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.tables import metadata

# One number for all CHM migrations on a server: two deployments at once must not interleave.
MIGRATION_LOCK = 0x43484D01
LOCK_TIMEOUT = "5s"


def run(connection: sa.Connection) -> None:
    """Migrate on this connection, in one transaction."""
    with connection.begin():
        # A migration that waits for a lock makes everybody behind it wait too: give up early, try again later.
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.configure(connection=connection, target_metadata=metadata, compare_type=True)
        with context.begin_transaction():
            context.run_migrations()


def main() -> None:
    """Use the caller's connection, or make one from the environment."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    url = Settings.from_env(os.environ).database_url
    if url is None:
        raise SystemExit("CHM_DATABASE_URL is not set; `chm migrate` finds the embedded database by itself")
    engine = make_engine(url)
    with engine.connect() as connection:
        run(connection)
    engine.dispose()


main()
