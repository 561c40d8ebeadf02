"""Slugs for the shell's Tab key. Whatever is wrong, there is just nothing to complete."""

from chm_dagster.cli.stack import load_settings, open_warehouse
from chm_dagster.errors import ChmError
from chm_dagster.local.postgres import EmbeddedPostgres


def clients(incomplete: str) -> list[str]:
    """Slugs of clients that begin like this."""
    return _slugs("clients", "slug", incomplete)


def pipelines(incomplete: str) -> list[str]:
    """`client/pipeline` of pipelines that begin like this."""
    return _slugs("pipelines", "key", incomplete)


def _slugs(noun: str, attribute: str, incomplete: str) -> list[str]:
    from chm_dagster.warehouse.paging import every

    try:
        settings = load_settings()
        # Nobody wants a server started by a Tab.
        if settings.database_url is None and not EmbeddedPostgres(settings.home).is_running():
            return []
        with open_warehouse() as warehouse:
            known = [getattr(item, attribute) for item in every(getattr(warehouse, noun).list, active=None)]
    except ChmError:
        return []
    return [slug for slug in known if slug.startswith(incomplete)]
