"""The build hook of the wheel: it carries what the code reads beside the package, and what `chm init` writes.

An editable install gets none of it, because there the code finds these files at the top of the clone.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = (
    ".dockerignore",
    "contracts",
    "dagster.yaml",
    "dashboards",
    "deploy/Dockerfile",
    "deploy/compose.env.example",
    "deploy/entrypoint.sh",
    "deploy/postgres-init.sql",
    "deploy/postgres-superuser.sql",
    "deploy/roles.sql",
    "deploy/workspace.compose.yaml",
    "docker-compose.yml",
    "migrations",
    "requirements.lock",
    "workspace.yaml",
)
"""Named one by one, so that no local file, such as deploy/compose.env with its passwords, gets into a wheel."""


class ShippedFiles(BuildHookInterface[Any]):
    """Puts each file into the package, in the folder where `chm_dagster/shipped.py` looks for it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds."""
        if version != "editable":
            build_data["force_include"].update({name: f"chm_dagster/_shipped/{name}" for name in SHIPPED})
