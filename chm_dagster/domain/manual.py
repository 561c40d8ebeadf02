"""Runs that people and programs record themselves: what they may say, and the observation that it makes.

A partner tells of a run as a whole every time; people tell it bit by bit: first that it started, then how it ended.
What they do not say again stays as the ledger knows it, as long as it is the same attempt of the same run.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from chm_dagster.domain import values
from chm_dagster.domain.fields import Field, Form, Problem, moment, read_new, refuse, whole_number, word
from chm_dagster.domain.runs import BIGINT_MAX, Observation, Run, RunStatus
from chm_dagster.errors import InputError

RESERVED = "chm_idempotency"
"""The name in a payload under which CHM itself remembers the keys that a run was recorded with."""


def _seconds(value: object, field: str) -> float:
    seconds = values.duration(None, None, value)
    if seconds is None:
        raise InputError(field, "not a duration; send a number of seconds from 0 to ten years")
    return seconds


def _error(value: object, field: str) -> str | None:
    return values.error_text(_text(value, field))


def _reason(value: object, field: str) -> str | None:
    return values.reason_text(_text(value, field))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(field, f"{values.kind(value)}; send a text")
    return value


def _link(value: object, field: str) -> str:
    safe = values.link(value)
    if safe is None:
        raise InputError(field, "not a link that is safe to show; send http:// or https:// without a user or a secret")
    return safe


def _payload(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(field, f"{values.kind(value)}; send an object")
    if RESERVED in value:
        raise InputError(field, f"the name {RESERVED} is CHM's own; choose another one")
    cleaned: dict[str, Any] = values.clean_record(value)
    return cleaned


def run_form(latest: datetime) -> Form:
    """The fields of a run; no time may be after `latest`."""
    return {
        "external_run_id": Field(values.run_id),
        "status": Field(word(RunStatus), required=True),
        "started_at": Field(moment(latest)),
        "finished_at": Field(moment(latest)),
        "duration_seconds": Field(_seconds),
        "rows_processed": Field(whole_number(0, BIGINT_MAX)),
        "error_message": Field(_error),
        "status_reason": Field(_reason),
        "source_url": Field(_link),
        "payload": Field(_payload),
        "attempt": Field(whole_number(0)),
    }


def read_run(fields: Mapping[str, object], now: datetime) -> dict[str, Any]:
    """What was said of a run, fit to be stored; None counts as not said. Raises InputError with all problems."""
    given = read_new(fields, run_form(now + values.SLACK))
    given = {name: value for name, value in given.items() if value is not None}
    refuse(_problems(given))
    return given


def _problems(given: Mapping[str, Any]) -> list[Problem]:
    status: RunStatus = given["status"]
    problems: list[Problem] = []
    if not status.finished:
        late = [name for name in ("finished_at", "duration_seconds") if name in given]
        problems.extend((name, "has no meaning for a run that is still running; leave it out") for name in late)
    if "error_message" in given and not _may_fail(status):
        problems.append(("error_message", f"has no meaning for a run that is {status}; send it as status_reason"))
    return problems


def _may_fail(status: RunStatus) -> bool:
    return status in (RunStatus.FAILED, RunStatus.CANCELED)


def key_digest(pipeline_id: UUID, key: str) -> str:
    """How an idempotency key of a pipeline is remembered: keys are their senders' business, so not as they are."""
    return hashlib.sha256(f"{pipeline_id}\n{key}".encode()).hexdigest()[:32]


def body_digest(given: Mapping[str, Any]) -> str:
    """Equal for two recordings that say the same."""
    return hashlib.sha256(orjson.dumps(dict(given), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def is_late_start(given: Mapping[str, Any], known: Run) -> bool:
    """Whether it says that a run is running of which the ledger knows that it has ended."""
    running = not given["status"].finished
    return running and known.status.finished and given.get("attempt", known.attempt) <= known.attempt


def observe(
    pipeline_id: UUID, run_id: str, given: Mapping[str, Any], known: Run | None, now: datetime, *, fed: bool
) -> Observation:
    """The observation that a recording makes, where `known` is the run as it stands.

    On a pipeline that a partner feeds (`fed`) it never counts as final and has no version, so that what the partner
    says of the same run has the last word. Of two recordings that contradict each other the later one holds. Raises
    InputError for an end before the start.
    """
    status: RunStatus = given["status"]
    attempt = given.get("attempt", known.attempt if known else 0)
    if known is not None and known.attempt != attempt:
        known = None
    started_at, finished_at, duration = _times(given, known, now)
    same = known if known is not None and known.status is status else None
    kept = {name: given.get(name, getattr(known, name, None)) for name in ("rows_processed", "source_url", "payload")}
    return Observation(
        pipeline_id=pipeline_id,
        external_run_id=run_id,
        status=status,
        started_at=started_at,
        finished_at=finished_at,
        duration_seconds=duration,
        rows_processed=kept["rows_processed"],
        error_message=given.get("error_message", same.error_message if same else None),
        status_reason=given.get("status_reason", same.status_reason if same else None),
        source_url=kept["source_url"],
        payload=kept["payload"] or {},
        attempt=attempt,
        progress=int(status.finished and not fed),
        source_version=known.source_version if known is not None and not fed else None,
        observed_at=now,
    )


def _times(
    given: Mapping[str, Any], known: Run | None, now: datetime
) -> tuple[datetime, datetime | None, float | None]:
    """Start, finish and duration in seconds. Whoever names no time means now."""
    started: datetime | None = given.get("started_at", known.started_at if known else None)
    if not given["status"].finished:
        return started or now, None, None
    # The start of a finished run without a duration only stands in for the true one, which nobody told.
    true_start = "started_at" in given or (
        known is not None and (not known.status.finished or known.duration_seconds is not None)
    )
    claimed: float | None = given.get("duration_seconds")
    finished: datetime | None = given.get("finished_at", known.finished_at if known else None)
    if started is None or not true_start:
        finished = finished or now
        stand_in = finished if started is None else min(started, finished)
        return (finished - timedelta(seconds=claimed), finished, claimed) if claimed else (stand_in, finished, claimed)
    if finished is None:
        finished = max(now, started) if claimed is None else started + timedelta(seconds=claimed)
    if finished < started:
        raise InputError("finished_at", f"before the run started at {started.isoformat()}; check the two times")
    return started, finished, (finished - started).total_seconds()
