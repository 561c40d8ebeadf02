"""The alert rules."""

import dataclasses
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.fields import read_changes, read_new, refuse, shown, word
from chm_dagster.domain.forms import RULE, rule_problems
from chm_dagster.domain.rules import AlertRule, Channel, RuleType
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import Source, reading, writing
from chm_dagster.warehouse.references import Ref, as_id, client_id, pipeline_id
from chm_dagster.warehouse.tables import alert_rules, pipelines

_COLUMNS: tuple[sa.Column[Any], ...] = tuple(alert_rules.c[field.name] for field in dataclasses.fields(AlertRule))


class Rules:
    """Create, read, change and delete rules. All of it raises DatabaseUnavailable where the server is at fault."""

    def __init__(self, engine: Source) -> None:
        self._engine = engine

    def create(self, fields: Mapping[str, Any]) -> AlertRule:
        """A new rule: `rule_type`, `channel`, `destination`, and `client_id` or `pipeline_id`, each an id or slugs.

        Raises NotFound for the client or the pipeline, InputError, Conflict.
        """
        row = read_new(fields, RULE)
        refuse(rule_problems(row))
        with writing(self._engine) as connection:
            row |= _scope(connection, row)
            new = connection.execute(sa.insert(alert_rules).values(row).returning(*_COLUMNS)).one()
            return _rule(new)

    def get(self, rule_id: Ref) -> AlertRule:
        """The rule of this id. Raises NotFound."""
        with reading(self._engine) as connection:
            return _get(connection, rule_id)

    def update(self, rule_id: Ref, changes: Mapping[str, Any]) -> AlertRule:
        """Change what is given; None clears a field that may be empty. Raises NotFound, InputError, Conflict."""
        with writing(self._engine) as connection:
            # No constraint holds that the pipeline is the client's, so nobody else may change the scope now.
            current = _get(connection, rule_id, lock=True)
            wanted = read_changes(changes, RULE)
            whole = {name: wanted.get(name, getattr(current, name)) for name in RULE}
            refuse(rule_problems(whole))
            wanted |= _scope(connection, whole)
            news = {name: value for name, value in wanted.items() if value != getattr(current, name)}
            if not news:
                return current
            query = sa.update(alert_rules).where(alert_rules.c.id == current.id).values(news)
            return _rule(connection.execute(query.returning(*_COLUMNS)).one())

    def delete(self, rule_id: Ref) -> None:
        """Delete the rule for good. Raises NotFound."""
        with writing(self._engine) as connection:
            gone = connection.execute(sa.delete(alert_rules).where(alert_rules.c.id == as_id(rule_id)))
            if not gone.rowcount:
                raise _unknown(rule_id)

    def disable(self, rule_id: Ref) -> AlertRule:
        """Keep the rule, but evaluate it no longer. Raises NotFound."""
        return self.update(rule_id, {"is_enabled": False})

    def list(
        self,
        *,
        client: Ref | None = None,
        pipeline: Ref | None = None,
        rule_type: RuleType | str | None = None,
        enabled: bool | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> paging.Page[AlertRule]:
        """Rules, the oldest first. `client` finds those of its pipelines, too.

        Raises NotFound for the client or the pipeline, InputError.
        """
        query = sa.select(*_COLUMNS).order_by(alert_rules.c.id).limit(paging.check_limit(limit) + 1)
        if rule_type is not None:
            query = query.where(alert_rules.c.rule_type == str(word(RuleType)(rule_type, "rule_type")))
        if enabled is not None:
            query = query.where(alert_rules.c.is_enabled == enabled)
        if cursor is not None:
            query = query.where(alert_rules.c.id > paging.decode(cursor, [paging.uuid])[0])
        with reading(self._engine) as connection:
            if client is not None:
                query = query.where(_of_client(client_id(connection, client)))
            if pipeline is not None:
                query = query.where(alert_rules.c.pipeline_id == pipeline_id(connection, pipeline))
            items = [_rule(row) for row in connection.execute(query)]
        return paging.page(items, limit, lambda rule: [rule.id])


def _of_client(client: UUID) -> sa.ColumnElement[bool]:
    theirs = sa.select(pipelines.c.id).where(pipelines.c.client_id == client)
    return sa.or_(alert_rules.c.client_id == client, alert_rules.c.pipeline_id.in_(theirs))


def _scope(connection: sa.Connection, rule: Mapping[str, Any]) -> dict[str, UUID]:
    """The ids of the client and the pipeline of a rule. Raises NotFound, InputError for another client's pipeline."""
    scope: dict[str, UUID] = {}
    if rule.get("client_id") is not None:
        scope["client_id"] = client_id(connection, rule["client_id"])
    if rule.get("pipeline_id") is not None:
        scope["pipeline_id"] = pipeline_id(connection, rule["pipeline_id"])
    if len(scope) == 2:
        owner = connection.scalar(sa.select(pipelines.c.client_id).where(pipelines.c.id == scope["pipeline_id"]))
        if owner != scope["client_id"]:
            raise InputError("pipeline_id", "is a pipeline of another client; leave client_id out")
    return scope


def _get(connection: sa.Connection, rule_id: Ref, *, lock: bool = False) -> AlertRule:
    wanted = as_id(rule_id)
    query = sa.select(*_COLUMNS).where(alert_rules.c.id == wanted)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise _unknown(rule_id)
    return _rule(row)


def _unknown(rule_id: Ref) -> NotFound:
    return NotFound(f"no alert rule '{shown(rule_id)}'")


def _rule(row: sa.Row[Any]) -> AlertRule:
    values = row._asdict()
    words = {"rule_type": RuleType(values["rule_type"]), "channel": Channel(values["channel"])}
    return AlertRule(**{**values, **words})
