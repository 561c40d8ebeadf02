"""All APIs that CHM is shipped with, by name."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from chm_dagster.domain.inventory import Platform
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.declared.template import overlaid

GENERIC = "generic"
"""CHM's own API, contracts/partner-runs.schema.json: the one that needs no configuration."""

_FOLDER = Path(__file__).parent


@functools.cache
def shipped() -> Mapping[str, Rest]:
    """The configurations in this folder, by the name of their file."""
    return {path.stem: Rest.model_validate(_written(path.stem)) for path in sorted(_FOLDER.glob("*.yaml"))}


def _written(name: str) -> Mapping[str, Any]:
    """What a file says; with `extends`, laid over what another one says."""
    # The C loader is ten times as fast, and these files are our own.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    own = yaml.load((_FOLDER / f"{name}.yaml").read_bytes(), Loader=loader)  # noqa: S506 - a safe loader
    base = own.pop("extends", None)
    merged: Mapping[str, Any] = own if base is None else overlaid(_written(base), own)
    return merged


def api_of(platform: Platform) -> str:
    """The name of the API that pipelines of this platform are read by, unless a connection says otherwise."""
    return platform.value if platform.value in shipped() else GENERIC
