"""How a path names a client or a pipeline: by id, or by slug.

A pipeline's slug form has a slash in it, `client/pipeline`. The convertor below takes two segments for a pipeline,
unless the first one is a UUID, so that `/pipelines/acme/orders/runs/latest` can be read in one way only, also for a
pipeline that is called `runs`. A slash that arrives as `%2F` is the same slash.
"""

from typing import Annotated

from fastapi import Path
from starlette.convertors import Convertor, register_url_convertor

from chm_dagster.domain.inventory import SLUG_PATTERN

_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_SLUG = SLUG_PATTERN.strip("^$")


class _PipelineReference(Convertor[str]):
    regex = f"(?:{_UUID}|(?!{_UUID}/)[^/]+/[^/]+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("pipeline", _PipelineReference())

# The patterns only describe: what does not match is simply not there, 404.
ClientReference = Annotated[
    str,
    Path(
        description="A client's id, or its slug.",
        examples=["acme"],
        json_schema_extra={"pattern": f"^({_UUID}|{_SLUG})$"},
    ),
]
"""The client that a path names."""
PipelineReference = Annotated[
    str,
    Path(
        description="A pipeline's id, or `client-slug/pipeline-slug`. The slash may be sent as it is or as `%2F`.",
        examples=["acme/orders"],
        json_schema_extra={"pattern": f"^({_UUID}|{_SLUG}/{_SLUG})$"},
    ),
]
"""The pipeline that a path names; its place in the path is written `{pipeline_id:pipeline}`."""
