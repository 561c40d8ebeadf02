"""The routes of alert rules."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from chm_dagster.api import answers
from chm_dagster.api.bodies import SentAlertRule, SentAlertRuleChanges
from chm_dagster.api.dependencies import Ledger
from chm_dagster.api.problems import documented
from chm_dagster.api.queries import RuleQuery
from chm_dagster.domain.rules import AlertRule
from chm_dagster.warehouse.paging import Page

router = APIRouter(prefix="/api/v1/alert_rules", tags=["alert rules"])

_RuleId = Annotated[str, Path(description="The rule's id.", json_schema_extra={"format": "uuid"})]


@router.get("", response_model=answers.Page[answers.AlertRule], responses=documented(400, 404))
def list_alert_rules(query: Annotated[RuleQuery, Query()], ledger: Ledger) -> Page[AlertRule]:
    """Alert rules, the oldest first. With a client, also those of its pipelines."""
    return ledger.rules.list(**query.filters)


@router.post("", status_code=201, response_model=answers.AlertRule, responses=documented(400, 404, 409))
def create_alert_rule(sent: SentAlertRule, ledger: Ledger) -> AlertRule:
    """Make a rule for a client or for one pipeline."""
    return ledger.rules.create(sent)


@router.get("/{rule_id}", response_model=answers.AlertRule, responses=documented(404))
def get_alert_rule(rule_id: _RuleId, ledger: Ledger) -> AlertRule:
    """An alert rule."""
    return ledger.rules.get(rule_id)


@router.patch("/{rule_id}", response_model=answers.AlertRule, responses=documented(400, 404, 409))
def update_alert_rule(rule_id: _RuleId, sent: SentAlertRuleChanges, ledger: Ledger) -> AlertRule:
    """Change what is sent, and leave the rest."""
    return ledger.rules.update(rule_id, sent)


@router.delete("/{rule_id}", status_code=204, response_class=Response, responses=documented(404))
def delete_alert_rule(rule_id: _RuleId, ledger: Ledger) -> None:
    """Delete a rule for good. To keep it, PATCH `is_enabled`."""
    ledger.rules.delete(rule_id)
