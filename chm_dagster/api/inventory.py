"""The routes of clients, pipelines and alert rules."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from chm_dagster.alerting.backtesting import back_test, within
from chm_dagster.api import schemas
from chm_dagster.api.errors import documented
from chm_dagster.api.schemas import (
    ActiveQuery,
    AnyPipelineQuery,
    ClientReference,
    Ledger,
    OldRunsQuery,
    PipelineQuery,
    PipelineReference,
    RuleQuery,
)
from chm_dagster.domain.backtests import BackTest, BackTestRequest, Check
from chm_dagster.domain.clients import Client, ClientChanges, NewClient
from chm_dagster.domain.pipelines import NewPipeline, NewPipelineOfClient, Pipeline, PipelineChanges
from chm_dagster.domain.rules import AlertRule, AlertRuleChanges, NewAlertRule
from chm_dagster.warehouse.paging import Page

WARNING = "X-CHM-Warning"
"""The header of a response to a request that was served, but may be a mistake."""
_HEADERS = {WARNING: {"description": "What may be a mistake.", "schema": {"type": "string"}}}
clients = APIRouter(prefix="/api/v1/clients", tags=["clients"])


@clients.get("", response_model=schemas.Page[Client], responses=documented(400))
def list_clients(query: Annotated[ActiveQuery, Query()], ledger: Ledger) -> Page[Client]:
    """Clients by slug, the active ones by default."""
    return ledger.clients.list(active=query.active, **query.page)


@clients.post(
    "", status_code=201, response_model=Client, responses={201: {"headers": _HEADERS}, **documented(400, 409)}
)
def create_client(sent: NewClient, ledger: Ledger, response: Response) -> Client:
    """Create a client. Its slug is made from its name unless one is sent."""
    return _warned(ledger, ledger.clients.create(sent), response)


@clients.get("/{client_id}", response_model=Client, responses=documented(404))
def get_client(client_id: ClientReference, ledger: Ledger) -> Client:
    """A client, active or disabled."""
    return ledger.clients.get(client_id)


@clients.patch(
    "/{client_id}", response_model=Client, responses={200: {"headers": _HEADERS}, **documented(400, 404, 409)}
)
def update_client(client_id: ClientReference, sent: ClientChanges, ledger: Ledger, response: Response) -> Client:
    """Change the fields that are sent. Null clears a field."""
    return _warned(ledger, ledger.clients.update(client_id, sent), response)


@clients.delete("/{client_id}", status_code=204, response_class=Response, responses=documented(404))
def disable_client(client_id: ClientReference, ledger: Ledger) -> None:
    """Disable a client and its pipelines; their history stays. PATCH `is_active` to enable it again."""
    ledger.clients.disable(client_id)


def _warned(ledger: Ledger, client: Client, response: Response) -> Client:
    """The client, with a warning in the header if another one's name differs by case only."""
    warnings = [other.lookalike_warning for other in ledger.clients.lookalikes(client)]
    if warnings:
        response.headers[WARNING] = "; ".join(warnings)
    return client


pipelines = APIRouter(prefix="/api/v1", tags=["pipelines"])


@pipelines.get("/pipelines", response_model=schemas.Page[Pipeline], responses=documented(400, 404))
def list_pipelines(query: Annotated[AnyPipelineQuery, Query()], ledger: Ledger) -> Page[Pipeline]:
    """Pipelines by client and slug, the active ones of active clients by default."""
    return ledger.pipelines.list(client=query.client_id, **query.filters)


@pipelines.post("/pipelines", status_code=201, response_model=Pipeline, responses=documented(400, 404, 409))
def create_pipeline(sent: NewPipeline, ledger: Ledger) -> Pipeline:
    """Create a pipeline. Its slug is made from its name unless one is sent."""
    return ledger.pipelines.create(sent.client_id, sent)


@pipelines.get("/clients/{client_id}/pipelines", response_model=schemas.Page[Pipeline], responses=documented(400, 404))
def list_pipelines_of_client(
    client_id: ClientReference, query: Annotated[PipelineQuery, Query()], ledger: Ledger
) -> Page[Pipeline]:
    """A client's pipelines by slug, the active ones by default."""
    return ledger.pipelines.list(client=client_id, **query.filters)


@pipelines.post(
    "/clients/{client_id}/pipelines",
    status_code=201,
    response_model=Pipeline,
    responses=documented(400, 404, 409),
)
def create_pipeline_of_client(client_id: ClientReference, sent: NewPipelineOfClient, ledger: Ledger) -> Pipeline:
    """Create a pipeline of this client. Its slug is made from its name unless one is sent."""
    return ledger.pipelines.create(client_id, sent)


@pipelines.get("/pipelines/{pipeline_id:pipeline}", response_model=Pipeline, responses=documented(404))
def get_pipeline(pipeline_id: PipelineReference, ledger: Ledger) -> Pipeline:
    """A pipeline, active or disabled."""
    return ledger.pipelines.get(pipeline_id)


@pipelines.patch("/pipelines/{pipeline_id:pipeline}", response_model=Pipeline, responses=documented(400, 404, 409))
def update_pipeline(
    pipeline_id: PipelineReference, sent: PipelineChanges, query: Annotated[OldRunsQuery, Query()], ledger: Ledger
) -> Pipeline:
    """Change the fields that are sent. Null clears a field.

    Another `external_id`, `connection` or `platform` starts its history anew: the next sync reads all of it.
    """
    return ledger.pipelines.update(pipeline_id, sent, runs=query.runs)


@pipelines.delete(
    "/pipelines/{pipeline_id:pipeline}", status_code=204, response_class=Response, responses=documented(404)
)
def disable_pipeline(pipeline_id: PipelineReference, ledger: Ledger) -> None:
    """Disable a pipeline: it is no longer ingested; its history stays. PATCH `is_active` to enable it again."""
    ledger.pipelines.disable(pipeline_id)


alert_rules = APIRouter(prefix="/api/v1/alert_rules", tags=["alert rules"])

_RuleId = Annotated[str, Path(description="The rule's id.", json_schema_extra={"format": "uuid"})]


@alert_rules.get("", response_model=schemas.Page[AlertRule], responses=documented(400, 404))
def list_alert_rules(query: Annotated[RuleQuery, Query()], ledger: Ledger) -> Page[AlertRule]:
    """Alert rules, the oldest first. `client_id` includes the rules of its pipelines."""
    return ledger.rules.list(**query.filters)


@alert_rules.post("", status_code=201, response_model=AlertRule, responses=documented(400, 404, 409))
def create_alert_rule(sent: NewAlertRule, ledger: Ledger) -> AlertRule:
    """Create a rule for a client or for one pipeline."""
    return ledger.rules.create(sent)


LONGEST_BACK_TEST = 60.0
"""How many seconds a back-test may hold a thread of the server."""


async def _patience(request: Request) -> Check:
    return within(request.app.state.longest_back_test)


_Patience = Annotated[Check, Depends(_patience)]
back_tests = APIRouter(prefix="/api/v1/back_tests", tags=["alert rules"])


@back_tests.post("", response_model=BackTest, responses=documented(400, 404))
def test_new_alert_rule(sent: BackTestRequest, ledger: Ledger, check: _Patience) -> BackTest:
    """Test a rule that does not exist: what it would have said over the last days. Nothing is stored or sent.

    What takes longer than a minute is refused, with `days` as the field.
    """
    return back_test(ledger, sent, datetime.now(UTC), check=check)


@alert_rules.post("/{rule_id}/test", response_model=BackTest, responses=documented(400, 404))
def test_alert_rule(rule_id: _RuleId, sent: BackTestRequest, ledger: Ledger, check: _Patience) -> BackTest:
    """Test a rule, as it is or with other parameters: what it would have said over the last days.

    Nothing is stored or sent. With other parameters, `difference` compares it with the rule as it is now. What
    takes longer than a minute is refused, with `days` as the field.
    """
    return back_test(ledger, sent, datetime.now(UTC), ledger.rules.get(rule_id), check)


@alert_rules.get("/{rule_id}", response_model=AlertRule, responses=documented(404))
def get_alert_rule(rule_id: _RuleId, ledger: Ledger) -> AlertRule:
    """An alert rule."""
    return ledger.rules.get(rule_id)


@alert_rules.patch("/{rule_id}", response_model=AlertRule, responses=documented(400, 404, 409))
def update_alert_rule(rule_id: _RuleId, sent: AlertRuleChanges, ledger: Ledger) -> AlertRule:
    """Change the fields that are sent. Null clears a field."""
    return ledger.rules.update(rule_id, sent)


@alert_rules.delete("/{rule_id}", status_code=204, response_class=Response, responses=documented(404))
def delete_alert_rule(rule_id: _RuleId, ledger: Ledger) -> None:
    """Delete a rule permanently. To keep it, PATCH `is_enabled` to false."""
    ledger.rules.delete(rule_id)
