"""Runs as CHM knows them: status, observation, rejection, the order of knowledge, and the outcome of a record."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from pydantic import ConfigDict, Field, PlainValidator, Strict, WithJsonSchema

from chm_dagster.domain import values
from chm_dagster.domain.error_text import fingerprint
from chm_dagster.domain.fields import RunTime
from chm_dagster.domain.limits import BIGINT_MAX, INT_MAX, MAX_RUN_ID_CHARS, MAX_URL_CHARS
from chm_dagster.domain.nouns import Accepts, New, Noun, Once, ReadOnly, creation_of, without
from chm_dagster.domain.validation import Problem, validator
from chm_dagster.errors import InputError


class Outcome(enum.StrEnum):
    """The outcome of a record: three mean that it was news, two that it was not."""

    INSERTED = "inserted"
    """The ledger had no such run."""
    UPDATED = "updated"
    """It is newer than the stored run, and differs from it."""
    UNCHANGED = "unchanged"
    """It has the same content as the ledger."""
    STALE = "stale"
    """It is older than the stored run."""
    REJECTED = "rejected"
    """It is not a run; the reason is kept with the raw record."""


MergeOutcome = Literal[Outcome.INSERTED, Outcome.UPDATED, Outcome.UNCHANGED, Outcome.STALE]
"""The outcomes of a record that is a run: the merge never rejects one."""


@dataclasses.dataclass(slots=True)
class Counts:
    """How many records ended in each outcome."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    stale: int = 0
    rejected: int = 0

    def add(self, other: "Counts") -> None:
        """Add the counts of another batch."""
        self.inserted += other.inserted
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.stale += other.stale
        self.rejected += other.rejected

    @property
    def total(self) -> int:
        """All records."""
        return self.written + self.unchanged + self.stale + self.rejected

    @property
    def written(self) -> int:
        """The records that changed the ledger."""
        return self.inserted + self.updated

    @property
    def has_news(self) -> bool:
        """Whether there is something to show: a change, or a record that is not a run."""
        return bool(self.written or self.rejected)


OWN_IDS = (PING_ID, MANUAL_ID) = ("ping-", "manual-")
"""Prefixes of the ids that CHM makes for runs that have none."""
RESERVED = "chm_idempotency"
"""The name in a payload under which CHM itself keeps the idempotency keys that a run was recorded with."""
GONE = "deleted at the source"
"""The status_reason of a run that was unfinished when it vanished at the partner."""
UNKNOWN_OUTCOME = "unknown outcome"
"""The status_reason of a run whose job reported its start and never its end."""
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


class RunKind(enum.StrEnum):
    """Why a run was started. Backfills do not count for a pipeline's health."""

    SCHEDULED = "scheduled"
    MANUAL = "manual"
    BACKFILL = "backfill"
    RETRY = "retry"


# One is created for every ingested run: a struct costs a sixth of a frozen dataclass, and no garbage collection.
class Observation(msgspec.Struct, frozen=True, gc=False):
    """One run of one pipeline, as a partner reported it at one time. `msgspec.structs.replace` makes changed copies.

    All times are aware and in UTC. `observed_at` is when the request started, by CHM's clock; `source_version` is the
    partner's newest time of the run, if it has one; `queued_at` is when the run was queued or scheduled, which is never
    a start. `unknown_status`: the partner used a word that CHM does not know, and the run counts as running until the
    word is mapped. `will_retry`: the run failed, and the platform is about to try again; False for any other status.
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
    queued_at: datetime | None = None
    kind: RunKind | None = None
    will_retry: bool = False

    @property
    def error_fingerprint(self) -> str | None:
        """What a failure has in common with others of the same error; None for a run that has not failed."""
        return fingerprint(self.error_message or self.status_reason) if self.status is RunStatus.FAILED else None

    @property
    def key(self) -> tuple[str, str]:
        """What makes a run the same run; sorts like the database's unique key."""
        return (str(self.pipeline_id), self.external_run_id)

    @property
    def knowledge(self) -> tuple[int, int, datetime, datetime]:
        """The order of knowledge: of two observations of one run, the larger one is the newer truth."""
        return (self.attempt, self.progress, self.source_version or BEFORE_ALL, self.observed_at)


# --- what people and programs record -------------------------------------------------------------------------------


def _seconds(value: object, field: str) -> float:
    seconds = values.duration(None, None, value)
    if seconds is None:
        raise InputError(field, "must be a number of seconds from 0 to ten years")
    return seconds


def _link(value: object, field: str) -> str:
    safe = values.link(value)
    if safe is None:
        raise InputError(field, "must be an http:// or https:// link without a user or a secret in it")
    return safe


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(field, f"must be text, not {values.kind(value)}")
    return value


def _error(value: object, field: str) -> str | None:
    return values.error_text(_text(value, field))


def _reason(value: object, field: str) -> str | None:
    return values.reason_text(_text(value, field))


def _payload(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(field, f"must be an object, not {values.kind(value)}")
    if RESERVED in value:
        raise InputError(field, f"must not hold the name {RESERVED}, which is CHM's own; choose another one")
    cleaned: dict[str, Any] = values.clean_record(value)
    return cleaned


def _read(type_: type, read: Callable[[Any, str], Any], schema: Mapping[str, Any]) -> Any:
    return Annotated[type_, PlainValidator(validator(read)), WithJsonSchema(dict(schema))]


_RunId = _read(
    str,
    values.run_id,
    {"anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_RUN_ID_CHARS}, {"type": "integer"}]},
)
_Seconds = _read(float, _seconds, {"type": "number", "minimum": 0})
_Error = _read(str, _error, {"type": "string"})
_Reason = _read(str, _reason, {"type": "string"})
_Link = _read(str, _link, {"type": "string", "maxLength": MAX_URL_CHARS})
_Payload = _read(dict, _payload, {"type": "object", "additionalProperties": True})
_Rows = Annotated[int, Strict(), Field(ge=0, le=BIGINT_MAX)]
_Attempt = Annotated[int, Strict(), Field(ge=0, le=INT_MAX)]


class Run(Noun):
    """One execution of a pipeline, with the record that its partner sent."""

    id: ReadOnly[UUID]
    pipeline_id: ReadOnly[UUID]
    external_run_id: Annotated[Once[str], Accepts(_RunId)] = Field(
        description="The run's id at its partner. Send it again to update the run; CHM makes one if it is left out.",
        examples=["2026-03-01"],
    )
    status: RunStatus = Field(description="The state of the run.")
    started_at: Annotated[datetime | None, Accepts(RunTime)] = Field(
        None, description="When it started; null while it waits. Recorded by hand: now if left out."
    )
    finished_at: Annotated[datetime | None, Accepts(RunTime)] = Field(
        None, description="When it finished; null while it runs. Recorded by hand: now if left out."
    )
    duration_seconds: Annotated[float | None, Accepts(_Seconds)] = Field(
        None, description="How long it took, in seconds. Computed from the two times where both are known."
    )
    rows_processed: Annotated[int | None, Accepts(_Rows)] = Field(None, description="How many rows it processed.")
    error_message: Annotated[str | None, Accepts(_Error)] = Field(
        None, description="Why it failed; secrets are masked."
    )
    status_reason: Annotated[str | None, Accepts(_Reason)] = Field(
        None, description="The partner's own word, where it says more than the status."
    )
    source_url: Annotated[str | None, Accepts(_Link)] = Field(None, description="A link to the run at its partner.")
    payload: Annotated[dict[str, Any], Accepts(_Payload)] = Field(
        {}, description="A JSON object to keep with the run; secrets are masked."
    )
    attempt: Annotated[int, Accepts(_Attempt)] = Field(
        0, description="Which attempt of the run this is. A later attempt starts it over."
    )
    kind: RunKind | None = Field(
        None, description="Why it ran; null if that is not known. Backfills do not count for health."
    )
    queued_at: Annotated[datetime | None, Accepts(RunTime)] = Field(
        None, description="When it was queued or scheduled, if that is known."
    )
    will_retry: bool = Field(False, description="It failed, and the platform is about to try again.")
    effective_at: ReadOnly[datetime] = Field(
        description="The time that orders runs: when it started, or else was queued, finished or first seen."
    )
    source_version: ReadOnly[datetime | None]
    observed_at: ReadOnly[datetime]
    ingested_at: ReadOnly[datetime]
    created_at: ReadOnly[datetime]
    updated_at: ReadOnly[datetime]

    def as_it_was(self, at: datetime) -> "Run | None":
        """The run at a time in the past, from what is known now: it was running until it finished.

        None if it began later.
        """
        if self.effective_at > at:
            return None
        if self.finished_at is None or self.finished_at <= at:
            return self
        return self.model_copy(update=_BEFORE_ITS_END)

    @classmethod
    def conflicts(cls, whole: Mapping[str, Any]) -> Iterable[Problem]:
        """The fields that a status excludes."""
        status: RunStatus = whole["status"]
        if not status.finished:
            for name in ("finished_at", "duration_seconds"):
                if whole.get(name) is not None:
                    yield name, "must not be set for a run that is still running"
        if whole.get("will_retry") and status is not RunStatus.FAILED:
            yield "will_retry", f"must not be true for a run that is {status}"
        if whole.get("error_message") is not None and status not in (RunStatus.FAILED, RunStatus.CANCELED):
            yield "error_message", f"must not be set for a run that is {status}; send it as status_reason"


_BEFORE_ITS_END: Mapping[str, Any] = {
    "status": RunStatus.RUNNING,
    "will_retry": False,
    **dict.fromkeys(("finished_at", "duration_seconds", "rows_processed", "error_message", "status_reason")),
}
"""What a run had of what its end brings; the function latest_runs() of the database says the same."""


@creation_of(Run)
class NewRun(New):
    """A run recorded by hand. Sent again under its `external_run_id`, it adds to what is known."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "external_run_id": "2026-03-01",
                    "status": "success",
                    "started_at": "2026-03-01T06:00:00Z",
                    "finished_at": "2026-03-01T06:10:00Z",
                }
            ]
        }
    )


@without(Run, "payload")
class RunWithoutPayload(Noun):
    """One execution of a pipeline."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is unfinished in the ledger, with what is known of it. All times are aware and in UTC."""

    external_run_id: str
    started_at: datetime | None
    attempt: int
    source_version: datetime | None
    source_url: str | None
    payload: Mapping[str, Any]
    queued_at: datetime | None = None
    kind: RunKind | None = None

    def gone(self, pipeline_id: UUID, observed_at: datetime) -> Observation:
        """The observation after its partner no longer has it: it ended at an unknown time with an unknown outcome.

        It keeps the known version, so that anything that the partner may still send about the run wins.
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
            queued_at=self.queued_at,
            kind=self.kind,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class KnownDetails:
    """What the ledger knows of a run that ended, beyond what a list of runs contains: no need to request it again."""

    finished_at: datetime | None
    error_message: str | None
    rows_processed: int | None
    source_version: datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """A record that is not a run. `reason` names the field and what was wrong; `record` is the raw record, kept."""

    pipeline_id: UUID
    reason: str
    record: Any
