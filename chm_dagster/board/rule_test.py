"""The page that tests an alert rule: a form, and what the rule would have said over the last days."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from chm_dagster.alerting.backtesting import back_test, within
from chm_dagster.board.answers import Reading
from chm_dagster.board.filters import Filters, whole_number
from chm_dagster.domain.alerts import Condition
from chm_dagster.domain.backtests import MAX_DAYS, SHORT, BackTest, BackTestRequest
from chm_dagster.domain.limits import INT_MAX, MAX_MINUTES
from chm_dagster.domain.rules import AlertRule, parameters_of
from chm_dagster.errors import InputError
from chm_dagster.presentation.columns import count

_LABELS = {
    "days": ("Days", MAX_DAYS),
    "threshold": ("Threshold (failures)", INT_MAX),
    "window_minutes": ("Window (minutes)", MAX_MINUTES),
}
"""The fields of the form: what people read, and the highest value."""
FIELDS = frozenset(_LABELS)
MOST = 100_000
"""How many days of pipelines a page plays. How long that takes depends on their runs: `reading.longest` limits it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A field of the form. `value` is what was sent, else what is tested."""

    name: str
    label: str
    value: Any
    highest: int


def rule_test(reading: Reading, filters: Filters, rule_id: str, sent: Mapping[str, str]) -> dict[str, Any]:
    """A back-test of a rule, as it is or with other parameters, or why there is none. Raises NotFound.

    It considers the pipelines of the rule's own scope only, and no more days of them than a page can wait for. Raises
    Busy while another back-test is running.
    """
    rule = reading.warehouse.rules.get(rule_id)
    scope = reading.warehouse.rules.scopes([rule.id])[rule.id]
    problem: InputError | None = None
    found: BackTest | None = None
    watched = _pipelines(reading, *scope)
    request = BackTestRequest.read({"days": min(BackTestRequest.read({}).days, _most_days(watched))})
    try:
        given = {name: whole_number(text, name) for name, text in sent.items() if text}
        request = BackTestRequest.read({"days": request.days, **given})
        if request.days > _most_days(watched):
            raise InputError("days", _TOO_MUCH.format(_most_days(watched), count(watched, "pipeline"), _command(rule)))
        found = reading.find_alone(("back-test", rule, request), lambda: _back_test(reading, rule, request))
    except InputError as error:
        problem = error
    present = Condition.of(rule)
    changed = {name: value for name, value in request.given().items() if name in parameters_of(rule.rule_type)}
    tested = dataclasses.replace(present, **changed)
    return {
        "rule": rule,
        "scope": scope,
        "tested": tested,
        "present": present,
        "fields": _form(rule, {"days": request.days, **dataclasses.asdict(tested), **sent}),
        "days": request.days,
        "problem": problem,
        "result": found,
        "short": SHORT,
    }


_TOO_MUCH = "must be at most {} on this page, because the rule is about {}; `{}` tests any number of days"


def _back_test(reading: Reading, rule: AlertRule, request: BackTestRequest) -> BackTest:
    return back_test(reading.warehouse, request, reading.now, rule, within(reading.longest, _command(rule)))


def _command(rule: AlertRule) -> str:
    """What tests a rule over any number of days."""
    return f"chm rule test {str(rule.id)[-12:]}"


def _pipelines(reading: Reading, client: str, pipeline: str | None) -> int:
    if pipeline is not None:
        return 1
    found = reading.rows("latest_status_by_client", client_slug=client, environment=None, at=None)
    return sum(row["pipelines"] for row in found)


def _most_days(pipelines: int) -> int:
    return min(MAX_DAYS, max(1, MOST // max(1, pipelines)))


def _form(rule: AlertRule, values: Mapping[str, Any]) -> list[Field]:
    names = ("days", *parameters_of(rule.rule_type))
    return [Field(name, label, values[name], highest) for name in names for label, highest in [_LABELS[name]]]
