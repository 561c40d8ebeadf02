"""What ingestion asks of a partner, whatever its platform."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from chm_dagster.domain.runs import Observation, Rejection
from chm_dagster.errors import PartnerError


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A pipeline to ask for. `since` is its watermark in the partner's time; None asks for all of its history."""

    external_id: str
    since: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Raw records as the partner sent them, each with the external id of its pipeline.

    `observed_at` is when the request that fetched the page started, by our clock.
    """

    records: Sequence[tuple[str, Any]]
    observed_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """Every pass over these pipelines has succeeded: their runs are known up to `synced_through` (partner's time).

    `observed_at` is when the first request of the pass started, by our clock.
    """

    external_ids: Sequence[str]
    synced_through: datetime
    observed_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """These pipelines could not be read to the end; their watermark stays."""

    external_ids: Sequence[str]
    error: PartnerError


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What `chm partner check` found out: who answered, and what it can do."""

    ok: bool
    detail: str


class RunFeed(Protocol):
    """The run history of one connection. Each target ends in exactly one Done or Failed, after its last Page."""

    overlap: timedelta
    """How far each sweep reaches back behind the watermark: rows are stamped before they are visible."""

    def sweep(self, targets: Sequence[Target]) -> AsyncGenerator[Page | Done | Failed, None]:
        """Fetch the targets' runs, with bounded concurrency, and report as answers come in."""
        ...

    async def check(self) -> Probe:
        """Ask the partner something cheap that needs our credentials. Never raises PartnerError."""
        ...

    async def aclose(self) -> None:
        """Give the connections back."""
        ...


class MapRecord(Protocol):
    """Turns one raw record into what CHM knows. Pure: same arguments, same answer; never raises on bad data."""

    def __call__(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation | Rejection:
        """The run that the record tells of, or why it tells of none."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Partner:
    """One connection, ready to use. `open_feed` is called inside the event loop that will use the feed."""

    name: str
    open_feed: Callable[[], RunFeed]
    map_record: MapRecord
