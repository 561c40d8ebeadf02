"""Asks every partner in one request or a few what is new, so that a sync can start for exactly those connections.

An answer is news if it holds something that the ledger does not know. That is decided by the ledger and not by the
answer: what another sync has written meanwhile is no news, however the answer changed. What is asked is a hint and
never stored: records come into the ledger through `ingest` alone.
"""

import asyncio
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from chm_dagster.domain.pipelines import IngestedPipeline
from chm_dagster.domain.runs import Observation
from chm_dagster.domain.sync import next_attempt
from chm_dagster.errors import ConfigError, RemoteError
from chm_dagster.partners.connections import partner_of
from chm_dagster.partners.engine.sync import ANSWER_SECONDS
from chm_dagster.partners.port import Partner, SyncTarget
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.ledger.runs import unknown_runs

CONNECTIONS_AT_ONCE = 64


@dataclasses.dataclass(slots=True)
class News:
    """What asking resulted in, by connection name; each connection is in exactly one of the four.

    `unknown` has a digest of what the ledger does not know: the same digest is the same news. `too_many_requests` are
    connections that cannot be asked in a few requests; `unanswered` includes those that failed lately.
    """

    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    nothing: list[str] = dataclasses.field(default_factory=list)
    too_many_requests: list[str] = dataclasses.field(default_factory=list)
    unanswered: list[str] = dataclasses.field(default_factory=list)


def ask_partners(
    engine: Engine,
    partners: Mapping[str, Partner],
    pipelines: Sequence[IngestedPipeline],
    now: datetime,
    answer_seconds: float = ANSWER_SECONDS,
) -> News:
    """Ask the connections of these pipelines at the same time. Raises DatabaseUnavailable.

    A pipeline that was never read is news without any question. Pipelines without a connection are left out: the
    scheduled sync reports them.
    """
    news, waiting = News(), {}
    for name, owned in _by_connection(partners, pipelines).items():
        if unread := sorted(str(pipeline.id) for pipeline in owned if pipeline.sync_attempted_at is None):
            news.unknown[name] = _digest(unread)
        elif all(_failed_lately(pipeline, now) for pipeline in owned):
            news.unanswered.append(name)
        else:
            waiting[name] = owned
    questions = [(partners[name], owned) for name, owned in waiting.items()]
    answers = asyncio.run(_ask_all(questions, now, answer_seconds))
    observed = {}
    for name, answer in answers.items():
        if isinstance(answer, list):
            observed[name] = answer
        else:
            (news.unanswered if isinstance(answer, Exception) else news.too_many_requests).append(name)
    unknown = unknown_runs(engine, [run for answer in observed.values() for run in answer])
    for name, answer in observed.items():
        states = [(r.key, r.attempt, r.progress, r.source_version, r.status.value) for r in answer if r.key in unknown]
        new = sorted(map(repr, states))
        if new:
            news.unknown[name] = _digest(new)
        else:
            news.nothing.append(name)
    return news


def of_connections(
    partners: Mapping[str, Partner], pipelines: Sequence[IngestedPipeline], names: Sequence[str]
) -> list[IngestedPipeline]:
    """Those of the pipelines that these connections read."""
    owned = _by_connection(partners, pipelines)
    return [pipeline for name in names for pipeline in owned.get(name, ())]


def _by_connection(
    partners: Mapping[str, Partner], pipelines: Sequence[IngestedPipeline]
) -> dict[str, list[IngestedPipeline]]:
    found: dict[str, list[IngestedPipeline]] = defaultdict(list)
    for pipeline in pipelines:
        try:
            found[partner_of(pipeline, partners).name].append(pipeline)
        except ConfigError:
            continue
    return found


def _failed_lately(pipeline: IngestedPipeline, now: datetime) -> bool:
    since, last = pipeline.sync_failing_since, pipeline.sync_attempted_at
    return since is not None and last is not None and next_attempt(since, last) > now


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


_Answer = list[Observation] | Exception | None
"""The runs in an answer; why there is none; None if asking takes too many requests."""


async def _ask_all(
    questions: Sequence[tuple[Partner, Sequence[IngestedPipeline]]], now: datetime, answer_seconds: float
) -> dict[str, _Answer]:
    places = asyncio.Semaphore(CONNECTIONS_AT_ONCE)

    async def one(partner: Partner, owned: Sequence[IngestedPipeline]) -> _Answer:
        async with places:
            try:
                async with asyncio.timeout(answer_seconds):
                    return await _ask(partner, owned, now)
            except (RemoteError, ConfigError, TimeoutError) as error:
                return error

    answers = await asyncio.gather(*(one(partner, owned) for partner, owned in questions))
    return {partner.name: answer for (partner, _), answer in zip(questions, answers, strict=True)}


async def _ask(partner: Partner, owned: Sequence[IngestedPipeline], now: datetime) -> list[Observation] | None:
    """The runs since the newest watermark: the others are behind because they are quiet, or the schedule reads them."""
    since = max((p.synced_through for p in owned if p.synced_through and p.synced_through <= now), default=None)
    by_external_id: dict[str, list[IngestedPipeline]] = defaultdict(list)
    for pipeline in owned:
        by_external_id[pipeline.external_id].append(pipeline)
    feed = partner.open_feed()
    try:
        batches = await feed.recent([SyncTarget(external_id, since) for external_id in by_external_id])
    finally:
        await feed.aclose()
    if batches is None:
        return None
    mapped = (
        partner.map_record(pipeline.id, record, batch.observed_at)
        for batch in batches
        for external_id, record in batch.records
        for pipeline in by_external_id.get(external_id, ())
    )
    return [run for run in mapped if isinstance(run, Observation)]
