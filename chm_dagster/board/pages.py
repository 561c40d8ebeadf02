"""What each page of the board shows: one function for each, from what it reads to what its template needs.

Every number comes from a query of the SQL contract (contracts/README.md lists them by page) and links to what it
counts. Lists are cut at a fixed length, and say what is left out.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from chm_dagster.board.answers import Reading
from chm_dagster.board.filters import CHANGES, DAYS, Filters
from chm_dagster.domain.pipelines import Health, Pipeline
from chm_dagster.domain.rules import AlertRule, RuleType
from chm_dagster.presentation.columns import for_people, is_blind
from chm_dagster.warehouse.named_queries import Excerpt
from chm_dagster.warehouse.paging import MAX_LIMIT
from chm_dagster.warehouse.reports import receivers, report_source

ROWS = 50
"""Rows of a page's main list."""
GLANCE = 8
"""Rows of a list that a page shows beside its main one."""
STRIP = 40
RUNS = 60
MAX_GROUPS = 500
"""Errors that a page reads."""
MAX_RUNS = 200
"""Failed runs that a page reads: as many as the query returns."""
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
TIMED = frozenset({"overview", "pipelines", "client", "pipeline", "run", "changes", "flaky", "errors", "failed_runs"})
"""The pages that can be about a time in the past; the others are about now, and say so."""
HEALTH = tuple(str(health) for health in Health)
"""The states of health, the worst first."""

Facts = dict[str, Any]
Page = Callable[[Reading, Filters], Facts]


def overview(reading: Reading, filters: Filters) -> Facts:
    """All clients, the worst first; what needs attention, what changed, and which partners cannot be read."""
    clients = _clients(reading, filters)
    chosen = [row for row in clients if filters.health is None or row[filters.health]]
    return {
        "totals": _totals(clients),
        "clients": _part(chosen, filters.skip),
        "attention": _people(_attention(reading, filters, GLANCE)),
        "changes": _changes(reading, filters, GLANCE),
        "shared_errors": [
            row for row in _error_groups(reading, filters) if row["clients"] > 1 and row["still_failing"] and row["why"]
        ],
        **(_troubles(reading, filters) if filters.at is None else _NO_TROUBLES),
    }


_NO_TROUBLES: Facts = {"blind": [], "undeliverable": 0}
"""Of a time in the past: they are not kept, and are not shown."""


def _troubles(reading: Reading, filters: Filters) -> Facts:
    return {
        "blind": [row for row in _connections(reading, filters) if is_blind(row, reading.as_of)],
        "undeliverable": len(reading.rows("waiting_messages", message_state="undeliverable", **filters.scope)),
    }


def wall(reading: Reading, filters: Filters) -> Facts:
    """The overview for a screen that people pass by: only what fits, the worst first."""
    filters = dataclasses.replace(filters, at=None)
    clients = _clients(reading, filters)
    return {
        "totals": _totals(clients),
        "clients": _part(clients, 0),
        "attention": _people(_attention(reading, filters, GLANCE)),
        "blind": [row for row in _connections(reading, filters) if is_blind(row, reading.as_of)],
    }


def pipelines(reading: Reading, filters: Filters) -> Facts:
    """The pipelines that the filters leave, with their health and their latest run."""
    if filters.health == Health.PAUSED:
        return {"paused": _paused(reading, filters), "rows": None}
    return {"rows": _latest(reading, filters), "paused": None}


def client(reading: Reading, filters: Filters, slug: str) -> Facts:
    """A client: its pipelines with their last runs, what changed, and its rules. Raises NotFound."""
    found = reading.warehouse.clients.get(slug)
    filters = _for_client(filters, found.slug)
    totals = _totals(_clients(reading, filters))
    strips = {row["pipeline_id"]: row for row in reading.rows("recent_runs_by_pipeline", runs=STRIP, **filters.timed)}
    rules = reading.warehouse.rules.list(client=found.id, limit=GLANCE)
    then = filters.at or reading.now
    return {
        "client": found,
        "filters": filters,
        "totals": totals,
        "rows": _latest(reading, filters),
        "strips": strips,
        "changes": _changes(reading, filters, GLANCE),
        "failures": reading.rows("failures_over_time", since=then - 30 * DAY, until=filters.at, **filters.scope)[-30:],
        "rules": rules.items,
        "more_rules": rules.next_cursor is not None,
    }


def pipeline(reading: Reading, filters: Filters, client_slug: str, slug: str) -> Facts:
    """A pipeline: its health and why, its last runs, what is expected of it, its rules and open episodes."""
    found = reading.warehouse.pipelines.get(f"{client_slug}/{slug}")
    until = None if filters.at is None else filters.at + MICROSECOND
    page = reading.warehouse.runs.list(found.id, limit=RUNS, until=until)
    runs = page.items if filters.at is None else [then for run in page.items if (then := run.as_it_was(filters.at))]
    rules = _rules_of(reading, found)
    own = {"client_slug": found.client_slug, "pipeline_slug": found.slug}
    return {
        "pipeline": found,
        "health": _health_of(reading, filters, found),
        "runs": runs,
        "more_runs": page.next_cursor is not None,
        "longest": max((run.duration_seconds or 0 for run in runs), default=0),
        "rules": rules,
        "episodes": reading.rows("open_episodes", **own),
        "past": reading.excerpt("past_episodes", first=GLANCE, where={}, **own),
    }


def run(reading: Reading, filters: Filters, client_slug: str, slug: str, run_id: str) -> Facts:
    """One run, with its whole error. Raises NotFound.

    At a time in the past, `run` is as it was then, and None if it began later.
    """
    found = reading.warehouse.pipelines.get(f"{client_slug}/{slug}")
    present = reading.warehouse.runs.get(found.id, run_id)
    then = present if filters.at is None else present.as_it_was(filters.at)
    return {"pipeline": found, "run": then, "present": present}


def changes(reading: Reading, filters: Filters) -> Facts:
    """What broke, what was fixed, what still fails and what is new since yesterday."""
    return {"changes": _changes(reading, filters, ROWS), "kinds": CHANGES}


def errors(reading: Reading, filters: Filters) -> Facts:
    """Which errors made runs fail, in groups of the same error; those at the most clients come first."""
    groups = _error_groups(reading, filters)
    total = groups[0]["all_groups"] if groups else 0
    part = groups[filters.skip : filters.skip + ROWS]
    return {"groups": Excerpt(part, len(groups), filters.skip), "unread": total - len(groups), "spans": DAYS}


def failed_runs(reading: Reading, filters: Filters) -> Facts:
    """The failed runs of a time span, of one error or of all, and what is known of that error."""
    since = _since(reading, filters, filters.days)
    narrow = {"since": since, "error_id": filters.error, "platform": filters.platform, **filters.timed}
    group = reading.rows("error_groups", groups=1, **narrow)[:1] if filters.error else []
    runs = for_people(reading.rows("failed_runs", runs=MAX_RUNS, **narrow))
    return {
        "runs": _part(runs, filters.skip),
        "group": next(iter(for_people(group)), None),
        "full": MAX_RUNS,
        "spans": DAYS,
    }


def flaky(reading: Reading, filters: Filters) -> Facts:
    """The pipelines that flip between success and failure, the worst first."""
    rows = reading.excerpt("flaky_pipelines", first=ROWS, skip=filters.skip, where={}, **filters.timed)
    return {"flaky": _people(rows)}


def reports(reading: Reading, filters: Filters) -> Facts:
    """The reports that were issued: of a client all that are kept, else the latest of each. Raises NotFound."""
    if filters.client is None:
        chosen = receivers(reading.warehouse.engine)
        found = [(one, next(iter(one.issued), None)) for one in chosen]
    else:
        with report_source(reading.warehouse.engine) as source:
            one = source.client(filters.client)
        found = [(one, period) for period in one.issued]
    rows = [
        {"client": one, "period": period, "issued": None if period is None else one.issues[str(period)]}
        for one, period in found
    ]
    return {"reports": _part(rows, filters.skip), "of": None if filters.client is None else one}


def rules(reading: Reading, filters: Filters) -> Facts:
    """The alert rules, with how many episodes each has open, and the episodes."""
    total = reading.warehouse.rules.count(client=filters.client)
    page = reading.warehouse.rules.list(client=filters.client, limit=min(filters.skip + ROWS, MAX_LIMIT))
    episodes = reading.rows("open_episodes", **filters.scope)
    shown = page.items[filters.skip :]
    return {
        "rules": Excerpt([rule.as_dict() for rule in shown], min(total, MAX_LIMIT), filters.skip),
        "is_capped": total > MAX_LIMIT,
        "scopes": reading.warehouse.rules.scopes([rule.id for rule in shown]),
        "open": Counter(row["rule_id"] for row in episodes),
        "episodes": Excerpt(episodes[:ROWS], len(episodes)),
        "messages": reading.excerpt("waiting_messages", first=ROWS, where={}, **filters.scope),
    }


def partners(reading: Reading, filters: Filters) -> Facts:
    """How recently each connection was read, what of it cannot be read, and why."""
    found = _connections(reading, filters)
    return {"connections": [{**row, "blind": is_blind(row, reading.as_of)} for row in found]}


def _for_client(filters: Filters, slug: str) -> Filters:
    return dataclasses.replace(filters, client=slug)


def _clients(reading: Reading, filters: Filters) -> list[dict[str, Any]]:
    return reading.rows("latest_status_by_client", **filters.timed)


def _totals(clients: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {health: sum(row[health] for row in clients) for health in HEALTH}


def _part(rows: list[dict[str, Any]], skip: int) -> Excerpt:
    return Excerpt(rows[skip : skip + ROWS], len(rows), skip)


def _people(excerpt: Excerpt) -> Excerpt:
    return Excerpt(for_people(excerpt.rows), excerpt.total, excerpt.skipped)


def _latest(reading: Reading, filters: Filters) -> Excerpt:
    rows = reading.excerpt(
        "latest_status_by_pipeline",
        first=ROWS,
        skip=filters.skip,
        where={"health": filters.health},
        text=filters.text,
        worst_first=True,
        **filters.timed,
    )
    return _people(rows)


def _attention(reading: Reading, filters: Filters, first: int) -> Excerpt:
    return reading.excerpt("needs_attention", first=first, where={"health": filters.health}, **filters.timed)


def _changes(reading: Reading, filters: Filters, first: int) -> Excerpt:
    since, where = _since(reading, filters, 1), {"change": filters.change}
    return _people(
        reading.excerpt("changed_since", first=first, skip=filters.skip, where=where, since=since, **filters.timed)
    )


def _since(reading: Reading, filters: Filters, days: int) -> datetime:
    if filters.at is not None:
        return filters.at - days * DAY
    # To the minute, so that viewers share the answer.
    return (reading.now - days * DAY).replace(second=0, microsecond=0)


def _error_groups(reading: Reading, filters: Filters) -> list[dict[str, Any]]:
    since = _since(reading, filters, filters.days)
    found = reading.rows("error_groups", since=since, groups=MAX_GROUPS, platform=filters.platform, **filters.timed)
    return [{**row, "pipelines_shown": _named(row["pipeline_keys"])} for row in for_people(found)]


def _named(keys: str) -> list[tuple[str, ...]]:
    """The clients and pipelines of a list of keys. Slugs have neither commas nor slashes."""
    return [tuple(key.split("/")) for key in keys.split(", ")]


def _connections(reading: Reading, filters: Filters) -> list[dict[str, Any]]:
    return reading.rows("connections", **filters.scope)


def _paused(reading: Reading, filters: Filters) -> Facts:
    page = reading.warehouse.pipelines.list(
        client=filters.client, environment=filters.environment, active=False, limit=ROWS
    )
    return {"items": page.items, "more": page.next_cursor is not None}


def _health_of(reading: Reading, filters: Filters, found: Pipeline) -> dict[str, Any] | None:
    """The row of the health question about one pipeline; None if it is disabled."""
    of_client = reading.excerpt(
        "latest_status_by_pipeline",
        first=1,
        where={"pipeline_slug": found.slug},
        client_slug=found.client_slug,
        environment=None,
        at=filters.at,
    )
    return next(iter(for_people(of_client.rows)), None)


def _rules_of(reading: Reading, found: Pipeline) -> list[tuple[AlertRule, str]]:
    """The rules of a pipeline and of its client, each with why it does not apply; empty if it does."""
    rules = reading.warehouse.rules.list(client=found.client_id, limit=MAX_LIMIT).items
    own = [rule for rule in rules if rule.pipeline_id == found.id]
    replaced = {rule.rule_type for rule in own if rule.is_enabled}
    of_client = [rule for rule in rules if rule.pipeline_id is None]
    return [
        *((rule, "" if rule.is_enabled else "disabled") for rule in own),
        *((rule, _why_not(rule, replaced)) for rule in of_client),
    ]


def _why_not(rule: AlertRule, replaced: set[RuleType]) -> str:
    if not rule.is_enabled:
        return "disabled"
    return "replaced by the pipeline's own rule" if rule.rule_type in replaced else ""
