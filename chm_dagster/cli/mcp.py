"""`chm mcp`: an assistant asks CHM, over the Model Context Protocol."""

import importlib.util

from chm_dagster.errors import ConfigError
from chm_dagster.installation import open_warehouse

STATEMENT_SECONDS = 30


def mcp() -> None:
    """Serve the Model Context Protocol on standard input and output, for an assistant that starts this command.

    Nothing that it can call changes anything. The API serves the same over HTTP, at /mcp.
    """
    if importlib.util.find_spec("mcp") is None:
        raise ConfigError("chm mcp needs the library mcp; install chm-dagster[mcp]")
    from chm_dagster.mcp.server import serve_stdio

    with open_warehouse() as warehouse:
        bounded = warehouse.with_timeout(STATEMENT_SECONDS)
        try:
            serve_stdio(bounded)
        finally:
            bounded.close()
