"""The APIs that CHM knows: a YAML file for each, and code for what a file cannot describe."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from chm_dagster.domain.pipelines import Platform
from chm_dagster.http.client import HttpClient
from chm_dagster.partners.engine.details import DetailSource, RunDetails
from chm_dagster.partners.engine.mapping import RecordMapper
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.selectors import overlay
from chm_dagster.partners.platforms.airflow_details import AirflowDetails
from chm_dagster.partners.platforms.dagster_details import DagsterDetails
from chm_dagster.partners.platforms.generic import GenericMapper
from chm_dagster.partners.platforms.github_details import GithubDetails
from chm_dagster.partners.port import MapRecord

GENERIC = "generic"
"""CHM's own API, contracts/partner-runs.schema.json."""

_FOLDER = Path(__file__).parent


@functools.cache
def shipped() -> Mapping[str, Rest]:
    """The configurations in this folder, by the name of their file."""
    return {path.stem: Rest.model_validate(_read(path.stem)) for path in sorted(_FOLDER.glob("*.yaml"))}


def _read(name: str) -> Mapping[str, Any]:
    """The content of a file; with `extends`, laid over that of another file."""
    # The C loader is ten times as fast, and these files are our own.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    own = yaml.load((_FOLDER / f"{name}.yaml").read_bytes(), Loader=loader)  # noqa: S506 - a safe loader
    base = own.pop("extends", None)
    merged: Mapping[str, Any] = own if base is None else overlay(_read(base), own)
    return merged


def api_of(platform: Platform) -> str:
    """The name of the API for pipelines of this platform, unless a connection names another one."""
    return platform.value if platform.value in shipped() else GENERIC


def reopens(rest: Rest, options: Mapping[str, Any]) -> bool:
    """Whether a finished run may run again under its id; some APIs leave that to the connection."""
    return bool(options.get("reopens", rest.reopens))


def mapper_of(rest: Rest, options: Mapping[str, Any], ui: str) -> MapRecord:
    """What maps the records of a connection. `ui` is the address of the partner's pages."""
    if rest.extension == "generic":
        return GenericMapper(reopens=reopens(rest, options))
    links = {"ui": ui, **{f"options.{name}": value for name, value in options.items() if value is not None}}
    return RecordMapper(rest.runs, reopens=reopens(rest, options), links=links)


def details_of(rest: Rest, options: Mapping[str, Any]) -> Callable[[HttpClient], RunDetails] | None:
    """What makes the RunDetails of each sync; None if the lists of runs contain everything."""
    if rest.extension not in ("airflow", "dagster", "github"):
        return None
    errors, rows = (int(options.get(name) or 0) for name in ("error_lookups", "row_lookups"))
    ends = rest.extension == "github"

    def source(http: HttpClient) -> DetailSource:
        if rest.extension == "github":
            return GithubDetails(http, str(options.get("owner")), str(options.get("repo")))
        if rest.extension == "dagster":
            return DagsterDetails(http, counts_rows=bool(options.get("count_rows")))
        xcom = options.get("rows_xcom")
        return AirflowDetails(http, None if xcom is None else str(xcom))

    return lambda http: RunDetails(http.label, source(http), errors=errors, rows=rows, ends=ends)
