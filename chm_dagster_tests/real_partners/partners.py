"""A partners.yaml with one connection to a real server, read as CHM reads it."""

from pathlib import Path
from typing import Any

import yaml

from chm_dagster.partners.connections import load_partners
from chm_dagster.partners.port import Partner

CONNECTION = "real"


def partner_of(
    folder: Path,
    platform: str,
    base_url: str,
    credentials: dict[str, str] | None = None,
    *,
    api: str | None = None,
    **options: Any,
) -> dict[str, Partner]:
    """The partners of a file with this one, whose credentials are in the variables that the file names."""
    names = {name: f"REAL_{name.upper()}" for name in credentials or {}}
    connection = {"platform": platform, "base_url": base_url, "credentials": names, "options": options}
    if api is not None:
        connection["api"] = api
    file = folder / "partners.yaml"
    file.write_text(yaml.safe_dump({"connections": {CONNECTION: connection}}))
    variables = {names[name]: value for name, value in (credentials or {}).items()}
    return load_partners(file, variables, None, None)
