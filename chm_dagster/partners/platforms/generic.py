"""A fast mapper for the records of CHM's own API.

A record with a bad `id`, `status`, `attempt` or time is rejected: these identify and order runs. Other fields are left
out if they are bad.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from chm_dagster.domain import values
from chm_dagster.domain.runs import Observation, RunKind, RunStatus
from chm_dagster.errors import InputError
from chm_dagster.partners.engine.mapping import CLOCKS_DIFFER, PLAIN_WORDS, SYNONYMS, Mapper, normalise_status

_MORE_WORDS: Mapping[RunStatus, str] = {
    RunStatus.RUNNING: "queued pending starting scheduled submitted created waiting paused suspended deferred resuming "
    "restarting retrying up_for_retry awaiting_retry up_for_reschedule incomplete finishing stopping terminating "
    "canceling cancelling",
    RunStatus.SUCCESS: "warning warn success_with_warnings succeeded_with_warnings completed_with_warnings",
    RunStatus.FAILED: "timed_out timedout timeout crashed internal_error system_error upstream_failed "
    "failed_to_start startup_failure out_of_memory",
    RunStatus.CANCELED: "aborted stopped killed terminated revoked interrupted cancelled_by_user canceled_by_user",
    RunStatus.SKIPPED: "upstream_skipped not_run no_op noop ignored excluded",
}

DEFAULT_STATUS_MAP: Mapping[str, RunStatus] = {
    word: status for table in (SYNONYMS, _MORE_WORDS) for status, words in table.items() for word in words.split()
}
"""The usual words for a run's state. Words that leave the outcome open (`finished`, `partial`) are not among them."""


_KINDS = {kind.value: kind for kind in RunKind}
_LEAVES_OPEN = frozenset({"completed", "complete", "done", "COMPLETED", "Completed"})
"""Words that say nothing about the outcome if a `conclusion` or `result` is beside them."""


class GenericMapper(Mapper):
    """Maps records of the generic API. `reopens`: a finished run may run again under its id at this partner.

    `status_map` replaces the table of status words; `{**DEFAULT_STATUS_MAP, "word": RunStatus.FAILED}` extends it.
    """

    def __init__(self, reopens: bool = False, status_map: Mapping[str, RunStatus] = DEFAULT_STATUS_MAP) -> None:
        self._reopens = reopens
        self._statuses = {normalise_status(word): status for word, status in status_map.items()}

    def _observation(self, pipeline_id: UUID, record: dict[str, Any], observed_at: datetime) -> Observation:
        field = record.get
        run_id = values.run_id(field("id"))
        word = field("status")
        if (
            isinstance(word, str)
            and word in _LEAVES_OPEN
            and (outcome := field("conclusion") or field("result")) is not None
        ):
            word = outcome
        status, reason, unknown = self._status(word, field("status_reason"))
        latest = observed_at + values.SLACK
        done = status is not RunStatus.RUNNING
        started_at, finished_at, updated_at, queued_at = _times(record, done, observed_at, latest)
        failed = status is RunStatus.FAILED or status is RunStatus.CANCELED
        masked = values.masked_record(record)
        return Observation(
            pipeline_id=pipeline_id,
            external_run_id=run_id,
            status=status,
            started_at=started_at,
            finished_at=finished_at,
            duration_seconds=values.duration(started_at, finished_at, field("duration_seconds")) if done else None,
            rows_processed=values.row_count(field("rows_processed")),
            error_message=values.error_text(masked.get("error_message"), harmless=True) if failed else None,
            status_reason=reason,
            source_url=values.link(field("url"), harmless=masked is record),
            payload=values.fitting_record(masked),
            attempt=values.attempt(field("attempt")),
            progress=0 if self._reopens or not done else 1,
            source_version=updated_at,
            observed_at=observed_at,
            unknown_status=unknown,
            queued_at=queued_at,
            kind=None if (kind := field("kind")) is None else _kind(kind),
            will_retry=status is RunStatus.FAILED and field("will_retry") is True,
        )

    def _status(self, word: object, own_reason: object) -> tuple[RunStatus, str | None, bool]:
        """Status, reason, and whether the word is unknown. Raises InputError if there is no word."""
        if not isinstance(word, str):
            raise InputError("status", "missing; every run needs one" if word is None else "not a text; send a word")
        status = self._statuses.get(word)
        if status is not None and own_reason is None and word in PLAIN_WORDS:
            return status, None, False
        said = values.reason_text(word)
        if said is None:
            raise InputError("status", "empty; every run needs one")
        # Words are short: a long text is none.
        plain = normalise_status(word) if len(word) <= 100 else ""
        status = self._statuses.get(plain)
        if status is None:
            # A person has to map the word, so the word is what they must see.
            return RunStatus.RUNNING, said, True
        return status, values.reason_text(own_reason) or (None if plain in PLAIN_WORDS else said), False


def _times(
    record: dict[str, Any], done: bool, observed_at: datetime, latest: datetime
) -> tuple[datetime | None, datetime | None, datetime | None, datetime | None]:
    """Start, finish, last change, and when it was queued. Raises InputError for a time that cannot be used.

    A run that is not finished has no finish, whatever the record says: it may have been reopened.
    """
    started = values.parse_time(record.get("started_at"), "started_at", latest)
    finished = values.parse_time(record.get("finished_at"), "finished_at", latest) if done else None
    updated_at = record.get("updated_at")
    # Most finished runs were last changed when they finished.
    same = finished is not None and updated_at == record["finished_at"]
    updated = finished if same else values.parse_time(updated_at, "updated_at", latest)
    created_at = record.get("created_at")
    queued = None if created_at is None else _queued(record, started, observed_at, latest)
    if started is None and finished is None and queued is None and done:
        raise InputError("started_at", "missing, as are finished_at and created_at; a finished run needs one of them")
    return started, finished, updated, queued


def _queued(
    record: dict[str, Any], started: datetime | None, observed_at: datetime, latest: datetime
) -> datetime | None:
    """When the run was created; None for the future. Raises InputError for a bad time if there is no start."""
    created_at = record["created_at"]
    if started is not None and created_at == record["started_at"]:
        return started
    try:
        queued = values.parse_time(created_at, "created_at", latest)
    except InputError:
        if started is None:
            raise
        return None
    return queued if queued is not None and queued <= observed_at + CLOCKS_DIFFER else None


def _kind(word: object) -> RunKind | None:
    return _KINDS.get(word) if isinstance(word, str) else None
