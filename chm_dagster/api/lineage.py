"""The routes of OpenLineage: what Airflow, dbt, Spark and others send by themselves once they know our address.

Producers give up on an event for good at any status from 400 to 499, try again after 503, and wait five seconds for an
answer. So what is fine but of no use here is accepted, and what cannot be kept right now is answered by 503.
"""

import zlib
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from chm_dagster.api.errors import documented
from chm_dagster.api.schemas import Ledger
from chm_dagster.errors import InputError
from chm_dagster.ingestion.lineage import Outcome, UnmatchedEvents, receive

PREFIX = "/api/v1/lineage"
router = APIRouter(prefix=PREFIX, tags=["lineage"])

MAX_EVENT_BYTES = 8_388_608
"""The maximum size of a body, before and after decompression: schema facets of wide tables are large."""
MAX_BATCH = 1_000


class Receipt(BaseModel):
    """The outcome of an event."""

    outcome: Outcome = Field(
        description="`unchanged`: already known; `stale`: older than what the ledger has; `unmatched`: no pipeline of"
        " the inventory matches, the event is kept for a week; `ignored`: it says nothing about the status of a run."
    )
    reason: str | None = Field(None, description="The reason, where it is not obvious.")


class Summary(BaseModel):
    """Counts of a batch."""

    received: int
    successful: int
    failed: int


class FailedEvent(BaseModel):
    """An event of a batch that was rejected permanently."""

    index: int
    reason: str
    retriable: Literal[False] = False


class BatchReceipt(BaseModel):
    """The outcome of a batch."""

    status: Literal["success", "partial_success"]
    summary: Summary
    failed_events: list[FailedEvent]


async def _sent(request: Request) -> Any:
    """The JSON value of the body, decompressed if Content-Encoding says so. Raises InputError."""
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding == "gzip":
        body = _gunzipped(body)
    elif encoding != "identity":
        raise InputError("Content-Encoding", "send the body uncompressed or compressed with gzip")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InputError("body", "not JSON; send one OpenLineage event") from None


def _gunzipped(body: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(body, MAX_EVENT_BYTES + 1)
    except zlib.error:
        raise InputError("body", "is not gzip, although Content-Encoding says so") from None
    if len(plain) > MAX_EVENT_BYTES:
        raise InputError("body", f"over {MAX_EVENT_BYTES} bytes after decompression; turn large facets off")
    if not stream.eof:
        raise InputError("body", "the compressed body is truncated; send it again")
    return plain


async def _unmatched(request: Request) -> UnmatchedEvents | None:
    unmatched: UnmatchedEvents | None = request.app.state.unmatched_events
    return unmatched


_Sent = Annotated[Any, Depends(_sent)]
_Unmatched = Annotated[UnmatchedEvents | None, Depends(_unmatched)]
_EVENT = {
    "eventType": "COMPLETE",
    "eventTime": "2026-03-01T06:10:00Z",
    "producer": "https://example.com/etl",
    "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json",
    "job": {"namespace": "acme", "name": "orders"},
    "run": {"runId": "01a2068f-8a00-7580-ba57-3233e089b522"},
}


def _body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "",
    status_code=201,
    responses=documented(400),
    openapi_extra=_body({"type": "object", "description": "A RunEvent, JobEvent or DatasetEvent."}, _EVENT),
)
def receive_event(sent: _Sent, ledger: Ledger, unmatched: _Unmatched) -> Receipt:
    """Receive an OpenLineage event. Events of a run and its tasks become a run of the pipeline with the job's name.

    The same events give the same ledger in any order and repetition. An event is never lost after a 201.
    """
    outcome, reason = receive(ledger.engine, unmatched, sent)
    return Receipt(outcome=outcome, reason=reason)


@router.post(
    "/batch",
    responses=documented(400),
    openapi_extra=_body({"type": "array", "items": {"type": "object"}, "maxItems": MAX_BATCH}, [_EVENT]),
)
def receive_events(sent: _Sent, ledger: Ledger, unmatched: _Unmatched) -> BatchReceipt:
    """Receive several events. After a 503, send all of them again: events that were already accepted are recognized."""
    if not isinstance(sent, list) or len(sent) > MAX_BATCH:
        raise InputError("body", f"not an array of at most {MAX_BATCH} events; send fewer")
    failed = []
    for index, event in enumerate(sent):
        try:
            receive(ledger.engine, unmatched, event)
        except InputError as refused:
            failed.append(FailedEvent(index=index, reason=str(refused)))
    summary = Summary(received=len(sent), successful=len(sent) - len(failed), failed=len(failed))
    return BatchReceipt(status="partial_success" if failed else "success", summary=summary, failed_events=failed)
