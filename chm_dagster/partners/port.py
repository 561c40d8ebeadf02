"""What ingestion asks of a partner, whatever its platform."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import UUID

from chm_dagster.domain.inventory import PipelineType, Platform
from chm_dagster.domain.runs import Observation, OpenRun, Rejection, ToldRun
from chm_dagster.errors import PartnerError


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A pipeline to ask for. `since` is its watermark in the partner's time; None asks for all of its history.

    `open_runs` are the runs that the ledger believes unfinished: a feed that can tell says of each of them what became
    of it, also if it is no longer there. `told` are runs that ended lately, by run id.
    """

    external_id: str
    since: datetime | None
    open_runs: tuple[OpenRun, ...] = ()
    told: Mapping[str, ToldRun] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Raw records as the partner sent them, each with the external id of its pipeline.

    `observed_at` is when the request that fetched the page started, by our clock.
    """

    records: Sequence[tuple[str, Any]]
    observed_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """Runs of one pipeline that the ledger believes unfinished and that the partner has no more.

    `observed_at` is when the request that did not find them started, by our clock.
    """

    external_id: str
    runs: Sequence[OpenRun]
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
class Finding:
    """One thing that a probe looked into: `topic` is version, auth or rights."""

    topic: str
    ok: bool
    sentence: str


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What `chm partner check` found out: who answered, and what it can do. `detail` says all of it in one line."""

    ok: bool
    detail: str
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class SourcePipeline:
    """A pipeline as the partner lists it. `name` is for people; it need not be unique.

    `platform` is where it runs, where the partner has pipelines of several.
    """

    external_id: str
    name: str
    pipeline_type: PipelineType
    is_active: bool = True
    platform: Platform | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Capabilities:
    """What a partner's API can tell. `scope` is what one sweep covers: the account, a list of ids, one pipeline.

    `reopens`: a finished run may run again under its id. `finds_deletions`: an unfinished run that vanished is told of
    as gone. `looks_further`: errors or rows cost requests of their own, which what is known already saves.
    `retention_days`: how long the partner keeps runs; an outage longer than that leaves a gap.
    """

    scope: Literal["account", "ids", "pipeline"] = "pipeline"
    reopens: bool = False
    gives_errors: bool = False
    gives_rows: bool = False
    finds_deletions: bool = False
    looks_further: bool = False
    lists_pipelines: bool = False
    retention_days: int | None = None
    requests_per_minute: float | None = None


class RunFeed(Protocol):
    """The run history of one connection. Each target ends in exactly one Done or Failed, after its last Page."""

    overlap: timedelta
    """How far each sweep reaches back behind the watermark: rows are stamped before they are visible."""

    def sweep(self, targets: Sequence[Target]) -> AsyncGenerator[Page | Done | Failed | Gone, None]:
        """Fetch the targets' runs, with bounded concurrency, and report as answers come in."""
        ...

    async def check(self) -> Probe:
        """Ask the partner something cheap that needs our credentials. Never raises PartnerError."""
        ...

    async def aclose(self) -> None:
        """Give the connections back."""
        ...


class PipelineList(Protocol):
    """A feed that can list the partner's pipelines."""

    async def discover(self) -> Sequence[SourcePipeline]:
        """All pipelines that our credentials may see. Raises PartnerError."""
        ...


class MapRecord(Protocol):
    """Turns one raw record into what CHM knows. Pure: same arguments, same answer; never raises on bad data."""

    def __call__(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation | Rejection:
        """The run that the record tells of, or why it tells of none."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Partner:
    """One connection, ready to use. `open_feed` is called inside the event loop that will use the feed.

    `platform` is whose pipelines it tells of by default, None for any; `is_default` prefers it among several.
    """

    name: str
    open_feed: Callable[[], RunFeed]
    map_record: MapRecord
    platform: Platform | None = None
    is_default: bool = False
    capabilities: Capabilities = Capabilities()
