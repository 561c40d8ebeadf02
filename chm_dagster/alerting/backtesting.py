"""Back-tests of alert rules over the runs that are stored."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from chm_dagster.domain.alerts import Condition
from chm_dagster.domain.backtests import (
    BackTest,
    BackTestRequest,
    Check,
    Difference,
    Stretch,
    Tally,
    play,
    silent,
    unlimited,
)
from chm_dagster.domain.rules import AlertRule, RuleType, parameter_problems
from chm_dagster.domain.validation import refuse
from chm_dagster.errors import InputError
from chm_dagster.warehouse.alerts import SLACK
from chm_dagster.warehouse.backtests import watched
from chm_dagster.warehouse.warehouse import Warehouse

_NO_RULE = UUID(int=0)
_PARAMETERS = ("threshold", "window_minutes")


@dataclasses.dataclass(frozen=True, slots=True)
class _Scope:
    client: UUID | None
    pipeline: UUID | None


def within(seconds: float, command: str = "chm rule test", clock: Callable[[], float] = time.monotonic) -> Check:
    """A check that raises InputError about `days` once so many seconds have passed. `command` tests without a limit."""
    end = clock() + seconds

    def check() -> None:
        if clock() >= end:
            raise InputError("days", f"take longer than {seconds:g} s here; test fewer, or all with `{command}`")

    return check


def back_test(
    warehouse: Warehouse,
    request: BackTestRequest,
    now: datetime,
    rule: AlertRule | None = None,
    check: Check = unlimited,
) -> BackTest:
    """What such a rule would have said over the last days. Of a `rule`, what is not requested is taken.

    Raises NotFound for the client or the pipeline, InputError, DatabaseUnavailable, and what `check` raises.
    """
    condition, scope = _condition(request, rule), _scope(warehouse, request, rule)
    present = None if rule is None else Condition.of(rule)
    stretch = Stretch(now - timedelta(days=request.days), now)
    tested, other = Tally(condition, stretch), Tally(present or condition, stretch)
    added = removed = 0
    pipelines = watched(
        warehouse.engine,
        client=scope.client,
        pipeline=scope.pipeline,
        rule_type=condition.rule_type,
        since=min(_needed_since(one, stretch) for one in (condition, present or condition)),
        now=now,
    )
    name = _NO_RULE if rule is None else rule.id
    with closing(pipelines):
        for one in pipelines:
            check()
            facts = (one.expectations, one.runs, one.coverage, stretch, one.maintenance, check)
            found = tested.add(one.key, play(name, condition, *facts), one.runs)
            if present is not None and present != condition:
                before = other.add(one.key, play(name, present, *facts), one.runs)
                added, removed = added + silent(found, before), removed + silent(before, found)
    if present is None or present == condition:
        return tested.result()
    now_is = other.result()
    return tested.result(
        Difference(episodes_now=now_is.episodes, messages_now=now_is.messages, added=added, removed=removed)
    )


def _needed_since(condition: Condition, stretch: Stretch) -> datetime:
    """From when on runs are needed: a window may have begun before the time in question, and a run of it earlier."""
    is_window = condition.rule_type in (RuleType.FAILURES_IN_WINDOW, RuleType.NO_SUCCESS_IN_WINDOW)
    return stretch.since - condition.window - SLACK if is_window else stretch.since


def _condition(request: BackTestRequest, rule: AlertRule | None) -> Condition:
    given = request.given()
    kind = given.get("rule_type") or (None if rule is None else rule.rule_type)
    if kind is None:
        raise InputError("rule_type", "is required: which type of rule is to be tested?")
    whole: dict[str, Any] = {name: given.get(name) for name in _PARAMETERS}
    if rule is not None and rule.rule_type == kind:
        whole = {name: given.get(name, getattr(rule, name)) for name in _PARAMETERS}
    refuse(parameter_problems(kind, whole))
    return Condition(RuleType(kind), whole["threshold"], whole["window_minutes"])


def _scope(warehouse: Warehouse, request: BackTestRequest, rule: AlertRule | None) -> _Scope:
    client, pipeline = request.client_id, request.pipeline_id
    if client is not None and pipeline is not None:
        raise InputError("pipeline_id", "has no meaning beside client_id; leave one of them out")
    if client is None and pipeline is None and rule is not None:
        # Of both, the pipeline counts.
        return _Scope(None if rule.pipeline_id else rule.client_id, rule.pipeline_id)
    return _Scope(
        None if client is None else warehouse.clients.get(client).id,
        None if pipeline is None else warehouse.pipelines.get(pipeline).id,
    )
