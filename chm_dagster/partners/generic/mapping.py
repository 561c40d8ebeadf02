"""A run record of the generic partner API, as CHM knows it.

What says which run it is, what state it is in and when that became so must be right, or the record is rejected:
`id`, `status`, `attempt`, `updated_at`, and the times that are used. The rest is kept as far as it is any good.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from chm_dagster.domain import values
from chm_dagster.domain.runs import Observation, Rejection, RunStatus
from chm_dagster.errors import InputError

_SYNONYMS: Mapping[RunStatus, str] = {
    RunStatus.RUNNING: "running started in_progress executing active",
    RunStatus.SUCCESS: "success succeeded successful completed complete ok pass passed done",
    RunStatus.FAILED: "failed failure fail error errored",
    RunStatus.CANCELED: "canceled cancelled",
    RunStatus.SKIPPED: "skipped",
}
_TELLING: Mapping[RunStatus, str] = {
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
    word: status for table in (_SYNONYMS, _TELLING) for status, words in table.items() for word in words.split()
}
"""The usual words for a run's state. A word that leaves the outcome open (`finished`, `partial`) is not among them."""

SAYS_NO_MORE = frozenset(word for words in _SYNONYMS.values() for word in words.split())


def normalise_status(word: str) -> str:
    """`" Up-for Retry "` -> `up_for_retry`: how the words of a status map are spelled."""
    return re.sub(r"[\s_-]+", "_", word.strip().casefold())


class GenericMapping:
    """Maps records of the generic API. `reopens`: a finished run may run again under its id at this partner.

    `status_map` replaces the table of status words; `{**DEFAULT_STATUS_MAP, "word": RunStatus.FAILED}` extends it.
    """

    def __init__(self, reopens: bool = False, status_map: Mapping[str, RunStatus] = DEFAULT_STATUS_MAP) -> None:
        self._reopens = reopens
        self._statuses = {normalise_status(word): status for word, status in status_map.items()}

    def __call__(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation | Rejection:
        """The run that the record tells of, or why it tells of none. Never raises on bad data."""
        try:
            return self._observation(pipeline_id, record, observed_at)
        except InputError as refused:
            return Rejection(pipeline_id, str(refused), values.clean_record(record))

    def _observation(self, pipeline_id: UUID, record: Any, observed_at: datetime) -> Observation:
        if not isinstance(record, dict):
            raise InputError("record", "not an object; send one JSON object for each run")
        field = record.get
        run_id = values.run_id(field("id"))
        status, reason, unknown = self._status(field("status"), field("status_reason"))
        latest = observed_at + values.SLACK
        done = status is not RunStatus.RUNNING
        started_at, finished_at, updated_at, duration = _times(record, done, latest)
        failed = status is RunStatus.FAILED or status is RunStatus.CANCELED
        masked = values.masked_record(record)
        return Observation(
            pipeline_id=pipeline_id,
            external_run_id=run_id,
            status=status,
            started_at=started_at,
            finished_at=finished_at,
            duration_seconds=duration,
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
        )

    def _status(self, word: object, own_reason: object) -> tuple[RunStatus, str | None, bool]:
        """Status, reason, and whether the word is unknown. Raises InputError where there is no word."""
        if not isinstance(word, str):
            raise InputError("status", "missing; every run needs one" if word is None else "not a text; send a word")
        status = self._statuses.get(word)
        if status is not None and own_reason is None and word in SAYS_NO_MORE:
            return status, None, False
        said = values.reason_text(word)
        if said is None:
            raise InputError("status", "empty; every run needs one")
        # Words are short: a long text is not looked through for one.
        plain = normalise_status(word) if len(word) <= 100 else ""
        status = self._statuses.get(plain)
        if status is None:
            # A person has to map the word, so the word is what they must see.
            return RunStatus.RUNNING, said, True
        return status, values.reason_text(own_reason) or (None if plain in SAYS_NO_MORE else said), False


def _times(
    record: dict[str, Any], done: bool, latest: datetime
) -> tuple[datetime | None, datetime | None, datetime | None, float | None]:
    """Start, finish, last change, and duration in seconds. Raises InputError for a time that cannot be used.

    A run that is not finished has neither finish nor duration, whatever the record says: it may have been reopened.
    """
    started = values.parse_time(record.get("started_at"), "started_at", latest)
    finished = values.parse_time(record.get("finished_at"), "finished_at", latest) if done else None
    updated_at = record.get("updated_at")
    # Most finished runs were last touched when they finished.
    same = finished is not None and updated_at == record["finished_at"]
    updated = finished if same else values.parse_time(updated_at, "updated_at", latest)
    duration = values.duration(started, finished, record.get("duration_seconds")) if done else None
    if started is None:
        # Stands in for the start where it orders runs, but the time in the queue is no part of the duration.
        started = values.parse_time(record.get("created_at"), "created_at", latest)
    if started is None and finished is None and done:
        raise InputError("started_at", "missing, as are finished_at and created_at; a finished run needs one of them")
    return started, finished, updated, duration
