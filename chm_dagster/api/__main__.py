"""`python -m chm_dagster.api`: the HTTP API as a process of its own, configured by the environment."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import disable_created_metrics

from chm_dagster.api import logs
from chm_dagster.api.app import POOL_SIZE, create_app
from chm_dagster.api.serving import base_url, bind, serve
from chm_dagster.errors import ChmError
from chm_dagster.ingestion.lineage import Shelf
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.settings import Settings
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "chm"
STATEMENT_SECONDS = 30


def main() -> int:
    """Serve until a signal comes. Returns 2, after a line on stderr for each problem, if it cannot start."""
    logs.configure()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    environ = os.environ  # noqa: TID251 - an entry point
    try:
        settings = Settings.from_env(environ, root=ROOT)
        listener = bind(settings.api_host, settings.api_port)
        with listener, _database(settings) as url:
            warehouse = Warehouse(make_engine(url, pool_size=POOL_SIZE, statement_seconds=STATEMENT_SECONDS))
            print(f"chm: API on {base_url(listener)}", flush=True)  # noqa: T201 - for a person at the terminal
            shelf = Shelf(settings.home / "lineage")
            serve(create_app(warehouse, token=settings.api_token, shelf=shelf), listener)
    except ChmError as error:
        for line in str(error).splitlines():
            print(f"chm: {line}", file=sys.stderr)  # noqa: T201 - a command-line program's own complaint
        return 2
    return 0


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """The address of the given database, or of the embedded one, started or joined for as long as it is needed."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    postgres = EmbeddedPostgres(settings.home)
    with postgres.running():
        postgres.ensure_database(DATABASE)
        yield postgres.url(DATABASE)


if __name__ == "__main__":
    sys.exit(main())
