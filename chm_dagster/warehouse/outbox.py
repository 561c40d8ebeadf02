"""The messages that wait to be delivered, and acknowledgements. Both are kept with the rules."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from chm_dagster.domain.messages import Message, joined
from chm_dagster.warehouse.alerts import EVALUATING_LOCK
from chm_dagster.warehouse.engine import Engine, database_errors

_DELIVERING = "hashtextextended('chm/alerts/delivering', 0)"

_ACKNOWLEDGE = sa.text("""
UPDATE alert_rules AS r SET episodes = (
    SELECT jsonb_agg(CASE WHEN e ->> 'id' = :id THEN e || :seen ELSE e END ORDER BY n)
    FROM jsonb_array_elements(r.episodes) WITH ORDINALITY AS x(e, n)
)
WHERE r.episodes @> jsonb_build_array(jsonb_build_object('id', CAST(:id AS text)))
""").bindparams(sa.bindparam("seen", type_=pg.JSONB))

_WAITING = sa.text("SELECT outbox FROM alert_rules WHERE outbox <> '[]' ORDER BY id")
# Locked in the order that everybody keeps who writes several rules, or two of them could wait for each other.
_LOCK = sa.text("""
SELECT id FROM alert_rules
WHERE outbox <> '[]' AND outbox @> jsonb_build_array(jsonb_build_object('id', CAST(:id AS text)))
ORDER BY id FOR UPDATE
""")
_UPDATE = """
UPDATE alert_rules AS r SET outbox = coalesce((
    SELECT jsonb_agg({after} ORDER BY n) FROM jsonb_array_elements(r.outbox) WITH ORDINALITY AS x(m, n) {where}
), '[]')
WHERE r.id = ANY(:rules)
"""
_SAME = "m ->> 'id' = :id AND m ->> 'channel' = :channel AND m ->> 'destination' = :destination"
_TAKE = sa.text(_UPDATE.format(after="m", where=f"WHERE NOT ({_SAME})"))
_POSTPONE = sa.text(
    _UPDATE.format(after=f"CASE WHEN {_SAME} THEN m || CAST(:state AS jsonb) ELSE m END", where="")
).bindparams(sa.bindparam("state", type_=pg.JSONB))
_DROP = sa.text(_UPDATE.format(after="m", where="WHERE m ->> 'id' <> :id"))
_RETRY = sa.text(
    _UPDATE.format(
        after="""CASE WHEN m ->> 'id' = :id THEN m - 'error' - 'attempts' || jsonb_build_object(
            'channel', r.channel, 'destination', r.destination, 'next_at', :now, 'retried_at', :now
        ) ELSE m END""",
        where="",
    )
).bindparams(sa.bindparam("now", type_=sa.Text))


class Outbox:
    """The messages that wait to be delivered. Each change is a transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def messages(self) -> list[Message]:
        """All messages that no receiver has accepted, the oldest first. Raises DatabaseUnavailable."""
        with database_errors(), self._engine.connect() as connection:
            found = [part for row in connection.execute(_WAITING) for part in row.outbox]
        return joined(msgspec.convert(part, Message) for part in found)

    def delivered(self, message: Message) -> None:
        """The receiver has accepted the message."""
        self._change(_TAKE, message.id, channel=message.channel, destination=message.destination)

    def postponed(self, message: Message) -> None:
        """An attempt has failed; `message` says what is next."""
        state = {"attempts": message.attempts, "error": message.error, "next_at": message.next_at}
        receiver = {"channel": message.channel, "destination": message.destination}
        self._change(_POSTPONE, message.id, state=msgspec.to_builtins(state), **receiver)

    def retry(self, message_id: UUID, now: datetime) -> bool:
        """Have a message tried anew, for a day from now on, at the present receivers of its rules.

        False if it does not wait. Raises DatabaseUnavailable.
        """
        return self._change(_RETRY, message_id, now=now.isoformat())

    def drop(self, message_id: UUID) -> bool:
        """Take a message out, whoever has not received it. False if it does not wait. Raises DatabaseUnavailable."""
        return self._change(_DROP, message_id)

    def _change(self, statement: sa.TextClause, message_id: UUID, **values: Any) -> bool:
        with database_errors(), self._engine.begin() as connection:
            rules = list(connection.scalars(_LOCK, {"id": str(message_id)}))
            if rules:
                connection.execute(statement, {"id": str(message_id), "rules": rules, **values})
            return bool(rules)


@contextmanager
def delivering(engine: Engine) -> Iterator[Outbox | None]:
    """The messages, for the one process that delivers at this time; None in any other. Raises DatabaseUnavailable."""
    with database_errors(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(sa.text(f"SELECT pg_try_advisory_lock({_DELIVERING})")):
            yield None
            return
        try:
            yield Outbox(engine)
        finally:
            connection.execute(sa.text(f"SELECT pg_advisory_unlock({_DELIVERING})"))


def is_delivering(engine: Engine) -> bool:
    """Whether any process delivers at this time. Raises DatabaseUnavailable."""
    with database_errors(), engine.begin() as connection:
        return not connection.scalar(sa.text(f"SELECT pg_try_advisory_xact_lock({_DELIVERING})"))


def acknowledge(engine: Engine, episode_id: UUID, by: str, now: datetime) -> bool:
    """Note that somebody takes care of an open episode: there are no more reminders. False if it is not open.

    Raises DatabaseUnavailable.
    """
    with database_errors(), engine.begin() as connection:
        # Not during an evaluation, which would write the episode back without it.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({EVALUATING_LOCK})")
        values = {"id": str(episode_id), "seen": {"acknowledged_at": now.isoformat(), "acknowledged_by": by}}
        return connection.execute(_ACKNOWLEDGE, values).rowcount > 0
