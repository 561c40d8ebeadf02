"""How far the database is migrated. Told without Alembic, which takes longer to load than most answers do to give."""

import functools
import re
from pathlib import Path

import psycopg
import sqlalchemy as sa

from chm_dagster.errors import DatabaseUnavailable
from chm_dagster.warehouse.engine import database_errors

VERSIONS = Path(__file__).resolve().parents[2] / "migrations" / "versions"
_LINK = re.compile(r"^(down_revision|revision)(?:: [^=\n]+)? = [\"'](\w+)[\"']$", re.MULTILINE)


@functools.cache
def newest() -> str:
    """The revision that this release needs: the one that no other migration follows."""
    links: list[dict[str, str]] = [
        dict(_LINK.findall(path.read_text(encoding="utf-8"))) for path in VERSIONS.glob("*.py")
    ]
    followed = {link.get("down_revision") for link in links}
    (head,) = (link["revision"] for link in links if link["revision"] not in followed)
    return head


def found(engine: sa.Engine) -> str | None:
    """The database's revision; None if it was never migrated. Raises DatabaseUnavailable."""
    try:
        with database_errors(), engine.connect() as connection:
            revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return revision
    except sa.exc.ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            return None
        raise


def require_current(engine: sa.Engine) -> None:
    """Raises DatabaseUnavailable, naming the fix, unless the database is at this release's revision."""
    revision = found(engine)
    if revision is None:
        raise DatabaseUnavailable(
            "there is no CHM in this database yet: run `make up` or `chm migrate`; or check CHM_HOME, CHM_DATABASE_URL"
        )
    if revision != newest():
        raise DatabaseUnavailable(
            f"the database is at revision {revision}, this release needs {newest()}: run `chm migrate`"
        )
