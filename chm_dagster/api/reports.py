"""The route of client reports."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from chm_dagster.api.errors import documented
from chm_dagster.api.schemas import ClientReference, Ledger, Parameters
from chm_dagster.reporting import FORMATS, build, file_name

router = APIRouter(prefix="/api/v1/clients", tags=["clients"])
_TYPES: dict[str, dict[str, str]] = {media_type.partition(";")[0]: {} for _, media_type in FORMATS.values()}


class ReportQuery(Parameters):
    """Which report, and how it is written."""

    week: str | SkipJsonSchema[None] = Field(
        None, description="An ISO week. Default: the last one that is over.", examples=["2026-W47"]
    )
    month: str | SkipJsonSchema[None] = Field(None, description="A month, instead of a week.", examples=["2026-10"])
    format: Literal["html", "pdf", "csv", "json"] = Field("json", description="How the report is written.")


@router.get(
    "/{client_id}/report",
    response_class=Response,
    responses={200: {"description": "The report.", "content": _TYPES}, **documented(400, 404)},
)
def get_client_report(client_id: ClientReference, query: Annotated[ReportQuery, Query()], ledger: Ledger) -> Response:
    """A client's report on a week or a month, in the client's time zone.

    Rates are from 0 to 1; null is unknown. The same ledger gives the same bytes. Nothing is issued or sent: if data
    arrived after the last issue, this is the revision that would be issued now.
    """
    report = build(ledger.engine, client_id, query.week, query.month, datetime.now(UTC)).report
    write, media_type = FORMATS[query.format]
    name = file_name(report, query.format)
    return Response(write(report), media_type=media_type, headers={"Content-Disposition": f'inline; filename="{name}"'})
