"""The file partners.yaml: which partner instances there are. Its model is also its JSON schema."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from chm_dagster.domain.inventory import Platform
from chm_dagster.errors import ConfigError
from chm_dagster.partners.declared.base import Model
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.yaml_lines import Document, checked, parsed

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]
"""The name of an environment variable."""
Setting = str | int | float | bool | None


class Http(Model):
    """How patient and how parallel the requests of one connection are."""

    concurrency: int = Field(default=4, ge=1, le=64)
    """Requests under way at the same time, at most."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    deadline_seconds: float = Field(default=30, gt=0, le=600)
    """For one attempt, from its first byte sent to the last byte of the answer."""
    max_body_megabytes: float = Field(default=32, gt=0, le=512)


class Connection(Model):
    """One partner instance."""

    platform: Platform | None = None
    """Whose pipelines it tells of. Pipelines of this platform that name no connection use it, if it is the only one
    of the platform, or its default."""
    api: str | None = None
    """Which API it speaks, where that does not follow from the platform: see `chm partner list --apis`."""
    rest: Rest | None = None
    """The description of an API that CHM is not shipped with."""
    base_url: str | None = None
    base_url_env: Variable | None = None
    """The environment variable that holds base_url."""
    credentials: dict[str, Variable] = {}
    """For each credential, the name of the environment variable that holds it; never the secret itself."""
    options: dict[str, Setting] = {}
    """Settings of the API."""
    default: bool = False
    """Whether it is the default among several connections of its platform."""
    overlap_minutes: float | None = Field(default=None, ge=0)
    history_days: float | None = Field(default=None, gt=0)
    http: Http = Http()


class PartnersFile(Model):
    """Connections to partners, by name."""

    connections: dict[Name, Connection]


def read_file(path: Path) -> tuple[PartnersFile, Document]:
    """The file, and where everything stands in it. Raises ConfigError with a line for each problem."""
    text: str | None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = None
    if text is None:
        raise ConfigError(f"{path.name} cannot be read; CHM_PARTNERS_FILE names it")
    document = parsed(text, path.name)
    return checked(PartnersFile, document), document


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    schema = PartnersFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "CHM's partners.yaml", **schema}
