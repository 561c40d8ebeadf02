"""Episodes and messages of alert rules, as they are kept with their rule."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
import sqlalchemy as sa

from chm_dagster.domain.alerts import Episode, PastEpisode, Receiver
from chm_dagster.domain.messages import Message, Openings
from chm_dagster.domain.rules import Channel

KEPT_EPISODES, KEPT_FOR = 200, timedelta(days=90)
"""How many episodes that are over are kept with a rule, and for how long."""

# Locked in the order that everybody keeps who writes several rules, or two of them could wait for each other.
_LOCK = sa.text("SELECT FROM alert_rules WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
_SAVE = sa.text("""
UPDATE alert_rules AS r SET
    episodes = coalesce(w.episodes, r.episodes),
    outbox = r.outbox || coalesce(w.messages, '[]'),
    history = CASE WHEN w.past IS NULL THEN r.history ELSE (
        SELECT coalesce(jsonb_agg(x.past ORDER BY x.place), '[]') FROM (
            SELECT past, place FROM jsonb_array_elements(w.past || r.history) WITH ORDINALITY AS x(past, place)
            WHERE CAST(past ->> 'over_at' AS timestamptz) > :now - :kept_for
            ORDER BY place LIMIT :kept
        ) AS x
    ) END
FROM unnest(
    CAST(:ids AS uuid[]), CAST(:episodes AS jsonb[]), CAST(:messages AS jsonb[]), CAST(:past AS jsonb[])
) AS w(id, episodes, messages, past)
WHERE r.id = w.id
""")

# What is over is in order, the latest first: most rules have nothing of late and are left alone.
_OPENINGS = sa.text("""
WITH found AS (
    SELECT r.channel, r.destination, e AS episode, false AS is_over
    FROM alert_rules AS r CROSS JOIN LATERAL jsonb_array_elements(r.episodes) AS e
    WHERE r.episodes <> '[]'
    UNION ALL
    SELECT r.channel, r.destination, h -> 'episode', true
    FROM alert_rules AS r CROSS JOIN LATERAL jsonb_array_elements(r.history) AS h
    WHERE CAST(r.history -> 0 ->> 'over_at' AS timestamptz) > :since AND CAST(h ->> 'over_at' AS timestamptz) > :since
)
SELECT
    coalesce(x.episode -> 'receiver' ->> 0, x.channel) AS channel,
    coalesce(x.episode -> 'receiver' ->> 1, x.destination) AS destination,
    coalesce(array_agg(DISTINCT announced.at) FILTER (WHERE announced.at > :since), '{}') AS times,
    count(*) FILTER (WHERE x.is_over AND announced.at IS NULL) AS unannounced
FROM found AS x
CROSS JOIN LATERAL (SELECT CAST(x.episode ->> 'announced_at' AS timestamptz) AS at) AS announced
GROUP BY 1, 2
""")

_FORGET = sa.text("DELETE FROM alert_rules WHERE deleted_at IS NOT NULL AND episodes = '[]' AND outbox = '[]'")


def openings(connection: sa.Connection, since: datetime) -> dict[Receiver, Openings]:
    """What each receiver was notified of since then: whoever is not among them was notified of nothing."""
    return {
        (Channel(row.channel), row.destination): Openings(tuple(row.times), row.unannounced)
        for row in connection.execute(_OPENINGS, {"since": since})
    }


def forget_deleted(connection: sa.Connection) -> None:
    """Remove deleted rules that nobody is to be notified about any more."""
    connection.execute(_FORGET)


def save_episodes(
    connection: sa.Connection,
    now: datetime,
    episodes: Mapping[UUID, Sequence[Episode]],
    messages: Iterable[Message],
    over: Mapping[UUID, Sequence[PastEpisode]],
) -> None:
    """Replace the open episodes of these rules, add these messages, and keep what is over, within bounds."""
    parts: dict[UUID, list[Message]] = {}
    for message in messages:
        for rule_id, part in message.parts().items():
            parts.setdefault(rule_id, []).append(part)
    if ids := sorted({*episodes, *parts, *over}):
        rows = {
            "ids": ids,
            "episodes": [_json(episodes[rule_id]) if rule_id in episodes else None for rule_id in ids],
            "messages": [_json(parts.get(rule_id, ())) for rule_id in ids],
            "past": [_json(over[rule_id]) if rule_id in over else None for rule_id in ids],
            "now": now,
            "kept": KEPT_EPISODES,
            "kept_for": KEPT_FOR,
        }
        connection.execute(_LOCK, {"ids": ids})
        connection.execute(_SAVE, rows)


def _json(values: Iterable[Episode | Message | PastEpisode]) -> str:
    return msgspec.json.encode(list(values)).decode()
