"""Runs as CHM knows them: status, observation, rejection, and the order of knowledge."""

import dataclasses
import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

MAX_RUN_ID_CHARS = 512
OWN_IDS = (PING_ID, MANUAL_ID) = ("ping-", "manual-")
"""How the ids begin that CHM makes for runs that come without one."""
MAX_ERROR_BYTES = 8_000
MAX_REASON_CHARS = 200
MAX_URL_CHARS = 2_000
MAX_PAYLOAD_BYTES = 64_000
BIGINT_MAX = 2**63 - 1
INT_MAX = 2**31 - 1
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
"""Times before this are a partner's null value or a wrong unit, never a real run."""
GONE = "deleted at the source"
"""The status_reason of a run that was unfinished when the partner stopped knowing it."""
BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)


class RunStatus(enum.StrEnum):
    """The five states of a run."""

    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"

    @property
    def finished(self) -> bool:
        """True for every state but `running`."""
        return self is not RunStatus.RUNNING


# The one object that is made for every run that is ever ingested: a struct costs a sixth of a frozen dataclass to make,
# and the garbage collector leaves it alone.
class Observation(msgspec.Struct, frozen=True, gc=False):
    """One run of one pipeline, as a partner told of it at one moment. `msgspec.structs.replace` makes changed copies.

    `observed_at` is when the request that brought it started, by our clock; `source_version` is the partner's own
    newest time of the run, None where it gives none. All times are aware and in UTC. `unknown_status` is True where
    the partner used a word that CHM does not know: the run counts as running until the word is mapped.
    """

    pipeline_id: UUID
    external_run_id: str
    status: RunStatus
    started_at: datetime | None
    finished_at: datetime | None
    duration_seconds: float | None
    rows_processed: int | None
    error_message: str | None
    status_reason: str | None
    source_url: str | None
    payload: Mapping[str, Any]
    attempt: int
    progress: int
    source_version: datetime | None
    observed_at: datetime
    unknown_status: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What makes a run the same run; sorts like the database's unique key."""
        return (str(self.pipeline_id), self.external_run_id)

    @property
    def knowledge(self) -> tuple[int, int, datetime, datetime]:
        """The order of knowledge: of two observations of one run, the larger one is the newer truth."""
        return (self.attempt, self.progress, self.source_version or BEFORE_ALL, self.observed_at)


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One execution of a pipeline, as it stands in the ledger. Times are aware and in UTC."""

    id: UUID
    pipeline_id: UUID
    external_run_id: str
    status: RunStatus
    started_at: datetime | None
    finished_at: datetime | None
    duration_seconds: float | None
    rows_processed: int | None
    error_message: str | None
    status_reason: str | None
    source_url: str | None
    payload: dict[str, Any]
    attempt: int
    source_version: datetime | None
    observed_at: datetime
    ingested_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that the ledger believes unfinished, with what it knows of it. All times are aware and in UTC."""

    external_run_id: str
    started_at: datetime | None
    attempt: int
    source_version: datetime | None
    source_url: str | None
    payload: Mapping[str, Any]

    def gone(self, pipeline_id: UUID, observed_at: datetime) -> Observation:
        """What is known of it once the partner has it no more: it ended, and nobody will ever say when or how.

        It keeps the version of what was known, so that whatever the partner may still say of the run wins over it.
        """
        return Observation(
            pipeline_id=pipeline_id,
            external_run_id=self.external_run_id,
            status=RunStatus.CANCELED,
            started_at=self.started_at,
            finished_at=None,
            duration_seconds=None,
            rows_processed=None,
            error_message=None,
            status_reason=GONE,
            source_url=self.source_url,
            payload=self.payload,
            attempt=self.attempt,
            progress=0,
            source_version=self.source_version,
            observed_at=observed_at,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ToldRun:
    """What the ledger knows of a run that ended, beyond what a list of runs says: no need to ask for it again."""

    finished_at: datetime | None
    error_message: str | None
    rows_processed: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """A record that is not a run. `reason` names the field and what was wrong; `record` is the raw record, kept."""

    pipeline_id: UUID
    reason: str
    record: Any
