"""Alert rules in the inventory: create, change, find, list and delete them, each within its scope."""

from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from chm_dagster.domain.nouns import Input
from chm_dagster.domain.rules import AlertRule, AlertRuleChanges, NewAlertRule, RuleType
from chm_dagster.domain.validation import read_value, shown
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse import paging
from chm_dagster.warehouse.constraints import Source, reading, writing
from chm_dagster.warehouse.inventory.references import Ref, as_id, client_id, pipeline_id
from chm_dagster.warehouse.tables import alert_rules, pipelines

_KEPT = alert_rules.c.deleted_at.is_(None)
_DELETE = sa.text("DELETE FROM alert_rules WHERE id = :id AND episodes = '[]' AND outbox = '[]'")
_MARK_DELETED = sa.text("UPDATE alert_rules SET is_enabled = false, deleted_at = now() WHERE id = :id")
_COLUMNS: tuple[sa.Column[Any], ...] = tuple(alert_rules.c[name] for name in AlertRule.model_fields)


class Rules:
    """Create, read, change and delete rules. Every method raises DatabaseUnavailable if the server fails."""

    def __init__(self, engine: Source) -> None:
        self._engine = engine

    def create(self, fields: Mapping[str, Any] | Input) -> AlertRule:
        """A new rule: `rule_type`, `channel`, `destination`, and `client_id` or `pipeline_id`, each an id or slugs.

        Raises NotFound for the client or the pipeline, InputError, Conflict.
        """
        row = NewAlertRule.read(fields).given()
        AlertRule.check(row)
        with writing(self._engine) as connection:
            row |= _scope(connection, row)
            new = connection.execute(sa.insert(alert_rules).values(row).returning(*_COLUMNS)).one()
            return AlertRule.from_row(new._mapping)

    def get(self, rule_id: Ref) -> AlertRule:
        """The rule of this id. Raises NotFound."""
        with reading(self._engine) as connection:
            return _get(connection, rule_id)

    def update(self, rule_id: Ref, changes: Mapping[str, Any] | Input) -> AlertRule:
        """Change what is given; None clears a field that may be empty. Raises NotFound, InputError, Conflict."""
        with writing(self._engine) as connection:
            # No constraint holds that the pipeline is the client's, so nobody else may change the scope now.
            current = _get(connection, rule_id, lock=True)
            wanted = AlertRuleChanges.read(changes).given()
            whole = {**current.as_dict(), **wanted}
            AlertRule.check(whole)
            wanted |= _scope(connection, whole)
            news = current.news(wanted)
            if not news:
                return current
            query = sa.update(alert_rules).where(alert_rules.c.id == current.id).values(news)
            return AlertRule.from_row(connection.execute(query.returning(*_COLUMNS)).one()._mapping)

    def delete(self, rule_id: Ref) -> None:
        """Delete the rule permanently. Raises NotFound.

        Whoever was notified of an open episode is notified of its end: the row is kept until then, and found by nobody.
        """
        with writing(self._engine) as connection:
            rule = _get(connection, rule_id, lock=True)
            gone = connection.execute(_DELETE, {"id": rule.id})
            if not gone.rowcount:
                connection.execute(_MARK_DELETED, {"id": rule.id})

    def disable(self, rule_id: Ref) -> AlertRule:
        """Keep the rule but stop evaluating it. Raises NotFound."""
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
        query = sa.select(*_COLUMNS).where(_KEPT).order_by(alert_rules.c.id).limit(paging.check_limit(limit) + 1)
        if rule_type is not None:
            query = query.where(alert_rules.c.rule_type == str(read_value(RuleType, rule_type, "rule_type")))
        if enabled is not None:
            query = query.where(alert_rules.c.is_enabled == enabled)
        if cursor is not None:
            query = query.where(alert_rules.c.id > paging.decode(cursor, [paging.uuid])[0])
        with reading(self._engine) as connection:
            if client is not None:
                query = query.where(_of_client(client_id(connection, client)))
            if pipeline is not None:
                query = query.where(alert_rules.c.pipeline_id == pipeline_id(connection, pipeline))
            items = [AlertRule.from_row(row._mapping) for row in connection.execute(query)]
        return paging.page(items, limit, lambda rule: [rule.id])

    def count(self, *, client: Ref | None = None) -> int:
        """How many rules there are, of all clients or one. Raises NotFound for the client."""
        query = sa.select(sa.func.count()).select_from(alert_rules).where(_KEPT)
        with reading(self._engine) as connection:
            if client is not None:
                query = query.where(_of_client(client_id(connection, client)))
            return int(connection.execute(query).scalar_one())

    def scopes(self, rule_ids: Collection[UUID]) -> dict[UUID, tuple[str, str | None]]:
        """What each of these rules is about: the slug of its client, and of its pipeline if it has one."""
        with reading(self._engine) as connection:
            return {row.id: (row.client, row.pipeline) for row in connection.execute(_SCOPES, {"ids": list(rule_ids)})}


_SCOPES = sa.text("""
SELECT r.id, c.slug AS client, p.slug AS pipeline
FROM alert_rules AS r
LEFT JOIN pipelines AS p ON p.id = r.pipeline_id
JOIN clients AS c ON c.id = coalesce(p.client_id, r.client_id)
WHERE r.id = ANY(:ids)
""")


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
    query = sa.select(*_COLUMNS).where(alert_rules.c.id == wanted, _KEPT)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise _unknown(rule_id)
    return AlertRule.from_row(row._mapping)


def _unknown(rule_id: Ref) -> NotFound:
    return NotFound(f"no alert rule '{shown(rule_id)}'")
