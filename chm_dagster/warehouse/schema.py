"""Migrates the database, and checks its revision."""

import functools
import re
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa

from chm_dagster.errors import ConfigError, DatabaseUnavailable
from chm_dagster.shipped import shipped
from chm_dagster.warehouse.engine import database_errors
from chm_dagster.warehouse.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = shipped("migrations")
_LINK = re.compile(r"^(down_revision|revision)(?:: [^=\n]+)? = [\"'](\w+)[\"']$", re.MULTILINE)


@functools.cache
def _links() -> dict[str, str | None]:
    """Each revision of this release, and the one before it. Read without Alembic, which is slow to import."""
    texts = (path.read_text(encoding="utf-8") for path in (MIGRATIONS / "versions").glob("*.py"))
    found: list[dict[str, str]] = [dict(_LINK.findall(text)) for text in texts]
    return {link["revision"]: link.get("down_revision") for link in found}


def head() -> str:
    """The newest revision that this release knows: the one that no other migration follows."""
    (newest,) = _links().keys() - set(_links().values())
    return newest


def current(engine: sa.Engine) -> str | None:
    """The database's revision; None if it was never migrated. Raises DatabaseUnavailable."""
    try:
        with database_errors(), engine.connect() as connection:
            revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision
    except sa.exc.ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            return None
        raise


def read_tables(engine: sa.Engine) -> None:
    """Raises DatabaseUnavailable if one of the four tables cannot be read right now."""
    counts = (sa.select(sa.func.count()).select_from(sa.select(t).limit(1).subquery()) for t in metadata.sorted_tables)
    with database_errors(), engine.connect() as connection:
        connection.execute(sa.select(*(count.scalar_subquery() for count in counts)))


def require_current(engine: sa.Engine) -> None:
    """Raises DatabaseUnavailable, naming the fix, unless the database is at this release's revision."""
    revision = current(engine)
    if revision is None:
        raise DatabaseUnavailable(
            "there is no CHM in this database yet: run `make up` or `chm migrate`; or check CHM_HOME, CHM_DATABASE_URL"
        )
    _require_known(revision)
    if revision != head():
        raise DatabaseUnavailable(
            f"the database is at revision {revision}, this release needs {head()}: run `chm migrate`"
        )


def _require_known(revision: str) -> None:
    if revision not in _links():
        raise DatabaseUnavailable(
            f"the database is at revision {revision}, which this release ({head()}) does not know: "
            "a newer CHM has migrated it. Upgrade CHM, or restore the backup from before"
        )


def migrate(engine: sa.Engine, revision: str = "head") -> None:
    """Upgrade to `revision` in one transaction; nothing happens if it is there already.

    Raises DatabaseUnavailable if a lock is not available within five seconds, or if a newer release was here, and
    ConfigError if the role may not change the schema; then nothing has changed.
    """
    from alembic import command

    before = current(engine)
    if before is not None:
        _require_known(before)
    with database_errors(), engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except sa.exc.ProgrammingError as error:
            if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise
            role = engine.url.username
            raise ConfigError(f"{role} may not change the schema: migrate as the owner of the database") from None


def downgrade(engine: sa.Engine, revision: str) -> None:
    """Go back to `revision` ("base" empties the schema) in one transaction."""
    from alembic import command

    with database_errors(), engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
