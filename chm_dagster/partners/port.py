"""The interface between ingestion and the partners, whatever their platform."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, TypeAlias
from uuid import UUID

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.domain.runs import KnownDetails, Observation, OpenRun, Rejection
from chm_dagster.domain.sync import FRESH_FOR
from chm_dagster.errors import RemoteError

DEFAULT_OVERLAP = timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, slots=True)
class SyncTarget:
    """A pipeline to sync. `since` is its watermark in the partner's time; None requests all of its history.

    `open_runs` are the runs that are unfinished in the ledger: a feed that can look up runs reports what became of each
    of them, also if it is gone. `failing_runs` are the ids of finished runs that make the pipeline fail: a feed with
    `follows_failing` looks for what happened to them since. `known_details` are runs that ended lately, by run id.
    """

    external_id: str
    since: datetime | None
    open_runs: tuple[OpenRun, ...] = ()
    known_details: Mapping[str, KnownDetails] = dataclasses.field(default_factory=dict)
    failing_runs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class RecordBatch:
    """Raw records as the partner sent them, each with the external id of its pipeline.

    `observed_at` is when the request that returned them started, by our clock.
    """

    records: Sequence[tuple[str, Any]]
    observed_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class RunsNotFound:
    """Runs of one pipeline that are unfinished in the ledger and that the partner no longer has.

    `observed_at` is when the request that did not find them started, by our clock.
    """

    external_id: str
    runs: Sequence[OpenRun]
    observed_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class PipelinesSynced:
    """These pipelines were read to the end, up to `synced_through` by the partner's `Date` header.

    The header may be wrong: how far the runs are really known also depends on the records (`domain/sync.py`).
    `observed_at` is when the first request started, by our clock; `server_time` is the `Date` of its response. Records
    may become visible up to `overlap` after they were stamped. `unread`: by pipeline, why the state of some of its
    unfinished runs could not be read.
    """

    external_ids: Sequence[str]
    synced_through: datetime
    observed_at: datetime
    server_time: datetime | None = None
    overlap: timedelta = DEFAULT_OVERLAP
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class PipelinesFailed:
    """These pipelines could not be read to the end; their watermark stays."""

    external_ids: Sequence[str]
    error: RemoteError


SyncEvent: TypeAlias = RecordBatch | RunsNotFound | PipelinesSynced | PipelinesFailed


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One result of a probe: `topic` is config, version, auth, rights or answer."""

    topic: str
    ok: bool
    sentence: str


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What `chm partner check` found out. `detail` sums it up in one line."""

    ok: bool
    detail: str
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class SourcePipeline:
    """A pipeline as the partner lists it. `name` is for people; it need not be unique.

    `platform` is where it runs, if the partner has pipelines of several.
    """

    external_id: str
    name: str
    pipeline_type: PipelineType
    is_active: bool = True
    platform: Platform | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Capabilities:
    """What a partner's API can do. `scope` is what one request can cover: the account, a list of ids, one pipeline.

    `reopens`: a finished run may run again under its id. `finds_deletions`: an unfinished run that vanished is
    reported. `follows_open`: what became of unfinished runs is reported, at least when their pipeline is gone.
    `follows_failing`: runs that make a pipeline fail are looked up by id. `looks_further`: errors or rows cost
    requests of their own, which known details save; so does the end of a run with `looks_up_ends`.
    `retention_days`: how long the partner keeps runs; a longer outage leaves a gap.
    """

    scope: Literal["account", "ids", "pipeline"] = "pipeline"
    reopens: bool = False
    gives_errors: bool = False
    gives_rows: bool = False
    finds_deletions: bool = False
    follows_open: bool = False
    follows_failing: bool = False
    looks_further: bool = False
    looks_up_ends: bool = False
    lists_pipelines: bool = False
    retention_days: int | None = None
    requests_per_minute: float | None = None


class RunFeed(Protocol):
    """The run history of one connection."""

    overlap: timedelta
    """How far each sync reaches back before the watermark: runs are stamped before they become visible."""

    def sync(self, targets: Sequence[SyncTarget]) -> AsyncGenerator[SyncEvent, None]:
        """Read the targets' runs, with bounded concurrency, and report as responses arrive.

        Each target ends in exactly one PipelinesSynced or PipelinesFailed, after its last RecordBatch.
        """
        ...

    async def recent(self, targets: Sequence[SyncTarget]) -> Sequence[RecordBatch] | None:
        """Records since the targets' watermarks, or the first of them, from a few requests; None if it takes more.

        Only a hint that there is something to sync: errors, single runs and later pages are left out. Raises
        RemoteError.
        """
        ...

    async def check(self, external_id: str | None = None) -> Probe:
        """Send a cheap request that needs our credentials. Never raises RemoteError.

        `external_id` is a pipeline whose runs may be requested if the partner has nothing else to check.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection's sockets."""
        ...


class PipelineList(Protocol):
    """A feed that can list the partner's pipelines."""

    async def discover(self) -> Sequence[SourcePipeline]:
        """All pipelines that our credentials may see. Raises RemoteError."""
        ...


class MapRecord(Protocol):
    """Turns one raw record into what CHM knows. Pure: same arguments, same result; never raises on bad data."""

    def __call__(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation | Rejection:
        """The run in the record, or why there is none."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Partner:
    """One connection, ready for use. Call `open_feed` in the event loop that will use the feed.

    `platform` is whose pipelines it reads by default, None for any; `is_default` prefers it among several. `overlap` is
    that of its feed. A complete sync says for as long as `fresh_for` how a pipeline is.
    """

    name: str
    open_feed: Callable[[], RunFeed]
    map_record: MapRecord
    platform: Platform | None = None
    is_default: bool = False
    capabilities: Capabilities = Capabilities()
    overlap: timedelta = DEFAULT_OVERLAP
    fresh_for: timedelta = FRESH_FOR
