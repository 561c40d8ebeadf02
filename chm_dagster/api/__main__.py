"""`python -m chm_dagster.api`: the HTTP API as a process of its own, configured by the environment."""

import sys

from prometheus_client import disable_created_metrics

from chm_dagster.api import operations
from chm_dagster.api.app import POOL_SIZE, create_app
from chm_dagster.errors import ChmError
from chm_dagster.installation import load_settings, running
from chm_dagster.serving import base_url, bind, serve

STATEMENT_SECONDS = 30


def main() -> int:
    """Serve until a signal comes. Returns 2, after a line on stderr for each problem, if it cannot start."""
    operations.configure()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = load_settings()
        listener = bind(settings.api_host, settings.api_port)
        with listener, running(settings) as installation:
            warehouse = installation.warehouse(pool_size=POOL_SIZE, statement_seconds=STATEMENT_SECONDS)
            print(f"chm: API on {base_url(listener)}", flush=True)  # noqa: T201 - for a person at the terminal
            app = create_app(warehouse, token=settings.api_token, unmatched_events=installation.unmatched_events())
            serve(app, listener, stack=installation.stack)
    except ChmError as error:
        for line in str(error).splitlines():
            print(f"chm: {line}", file=sys.stderr)  # noqa: T201 - a command-line program's own error
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
