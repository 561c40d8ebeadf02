"""The routes of what alert rules have found: episodes, and the messages about them."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from chm_dagster.api.errors import documented
from chm_dagster.api.health import Question, add_question
from chm_dagster.api.schemas import Ledger, Parameters
from chm_dagster.domain.fields import Line
from chm_dagster.domain.validation import shown
from chm_dagster.errors import NotFound
from chm_dagster.warehouse.inventory.references import as_id
from chm_dagster.warehouse.outbox import Outbox, acknowledge

router = APIRouter(prefix="/api/v1/alerts", tags=["alerts"])

add_question(router, "", "list_alerts", Question("open_episodes", "Open episodes"))
add_question(router, "/history", "list_past_alerts", Question("past_episodes", "Episodes that are over"))
add_question(router, "/messages", "list_alert_messages", Question("waiting_messages", "Messages that wait"))

_UUID = {"format": "uuid"}
_EpisodeId = Annotated[str, Path(description="The episode's id.", json_schema_extra=_UUID)]
_MessageId = Annotated[str, Path(description="The message's id.", json_schema_extra=_UUID)]


class AckQuery(Parameters):
    """Who acknowledges."""

    by: Line = Field(max_length=100, description="Who takes care of it.", examples=["Sam"])


@router.post("/{episode_id}/ack", status_code=204, response_class=Response, responses=documented(400, 404))
def acknowledge_alert(episode_id: _EpisodeId, query: Annotated[AckQuery, Query()], ledger: Ledger) -> None:
    """Acknowledge an open episode: there are no more reminders of it; its end is still announced."""
    found = as_id(episode_id)
    if found is None or not acknowledge(ledger.engine, found, query.by, datetime.now(UTC)):
        raise NotFound(f"no open episode '{shown(episode_id)}'")


@router.post("/messages/{message_id}/retry", status_code=204, response_class=Response, responses=documented(404))
def retry_alert_message(message_id: _MessageId, ledger: Ledger) -> None:
    """Have a message tried anew, for a day from now on, at the present receivers of its rules."""
    found = _message(message_id)
    if not Outbox(ledger.engine).retry(found, datetime.now(UTC)):
        raise _unknown(message_id)


@router.delete("/messages/{message_id}", status_code=204, response_class=Response, responses=documented(404))
def drop_alert_message(message_id: _MessageId, ledger: Ledger) -> None:
    """Drop a message that no receiver has accepted: it is not sent any more."""
    if not Outbox(ledger.engine).drop(_message(message_id)):
        raise _unknown(message_id)


def _message(message_id: str) -> UUID:
    found = as_id(message_id)
    if found is None:
        raise _unknown(message_id)
    return found


def _unknown(message_id: str) -> NotFound:
    return NotFound(f"no message '{shown(message_id)}' waits")
