"""OpenLineage: the content of one event, and the combined state of all events of a run. Pure.

Events arrive late, twice and in any order, and the events of a run's tasks are about the run as well. So each event is
joined into a `LineageState`, and every part of the join is a maximum or a minimum: the same events give the same state
in any order and repetition, and the run is derived from the state.

Recorded facts that this depends on (Airflow's provider 2.20 and dbt's 1.54): clearing an Airflow run keeps its run id,
increments `clear_number` and starts a new OpenLineage run id; the error that a person wants to see is in the event of
the failed task, not in that of the run; "manually set" in the text is the only sign that somebody ended a run.
"""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from chm_dagster.domain import values
from chm_dagster.domain.limits import MAX_RUN_ID_CHARS
from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import InputError

_ENDS = {"COMPLETE": RunStatus.SUCCESS, "ABORT": RunStatus.CANCELED, "FAIL": RunStatus.FAILED}
# Of two ends at the same time, the worse one wins.
_RANK = {status: rank for rank, status in enumerate(_ENDS.values())}
_GOES_ON = frozenset({"START", "RUNNING"})
_MANUAL = "manually set to"
_ENDLESS = frozenset({"STREAMING", "SERVICE"})


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a run ended, according to its own last event. `at` is in UTC."""

    at: datetime
    status: RunStatus
    error: str | None = None
    reason: str | None = None
    rows: int | None = None

    @property
    def order(self) -> tuple[datetime, int, str, str, int]:
        """The largest end counts. It compares every part, so that ties do not depend on arrival."""
        rows = -1 if self.rows is None else self.rows
        return (self.at, _RANK.get(self.status, 0), self.error or "", self.reason or "", rows)


@dataclasses.dataclass(frozen=True, slots=True)
class LineageEvent:
    """What one event says about its run, which is the root run for the event of a task.

    `airflow_run_id` is the id that Airflow's own API uses; `run_id` is OpenLineage's. `child_error` is a task's.
    """

    namespace: str
    job: str
    run_id: str
    airflow_run_id: str | None
    attempt: int
    at: datetime
    is_root: bool
    started_at: datetime | None = None
    end: End | None = None
    child_error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Ignored:
    """A valid event that says nothing about the status of a run; `reason` says why."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class LineageState:
    """Everything that events say about one run. `seen` is the newest event time; the rest is of the newest attempt."""

    attempt: int
    seen: datetime
    run_id: str
    started_at: datetime | None = None
    child_at: datetime | None = None
    end: End | None = None
    child_error: tuple[datetime, str] | None = None

    @classmethod
    def of(cls, event: LineageEvent) -> Self:
        """The state after this single event."""
        error = event.child_error
        return cls(
            attempt=event.attempt,
            seen=event.at,
            run_id=event.run_id,
            started_at=event.started_at,
            child_at=None if event.is_root else event.at,
            end=event.end,
            child_error=None if error is None else (event.at, error),
        )

    def join(self, other: Self) -> Self:
        """The combined state. The join is commutative, associative and idempotent."""
        if other.attempt != self.attempt:
            newer = self if self.attempt > other.attempt else other
            return dataclasses.replace(newer, seen=max(self.seen, other.seen))
        ends = [end for end in (self.end, other.end) if end is not None]
        errors = [error for error in (self.child_error, other.child_error) if error is not None]
        return dataclasses.replace(
            self,
            seen=max(self.seen, other.seen),
            run_id=min(self.run_id, other.run_id),
            started_at=_earliest(self.started_at, other.started_at),
            child_at=_earliest(self.child_at, other.child_at),
            end=max(ends, key=lambda end: end.order, default=None),
            child_error=max(errors, default=None),
        )

    @property
    def status(self) -> RunStatus:
        """A run for which only task events have arrived is running."""
        return RunStatus.RUNNING if self.end is None else self.end.status

    @property
    def first_sign(self) -> datetime | None:
        """When the run started, as far as its events say."""
        return self.started_at or self.child_at

    @property
    def error(self) -> str | None:
        """The message of the failed task, which is more specific than the run's own; None unless the run failed."""
        if self.end is None or self.end.status not in (RunStatus.FAILED, RunStatus.CANCELED):
            return None
        return self.end.error if self.end.reason or self.child_error is None else self.child_error[1]

    def as_json(self) -> dict[str, Any]:
        """The state as JSON values, for `from_json`."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a stored state."""
        end, error = data.get("end"), data.get("child_error")
        return cls(
            attempt=data["attempt"],
            seen=_time(data["seen"]),
            run_id=data["run_id"],
            started_at=_time_or_none(data.get("started_at")),
            child_at=_time_or_none(data.get("child_at")),
            end=None if end is None else End(**{**end, "at": _time(end["at"]), "status": RunStatus(end["status"])}),
            child_error=None if error is None else (_time(error[0]), error[1]),
        )


def read_event(event: Any, latest: datetime) -> LineageEvent | Ignored:
    """Parse an OpenLineage event. Raises InputError with the field if it violates the specification."""
    sent = _object(event, "body")
    if "run" not in sent:
        return Ignored("it is about a job or a dataset, not about a run")
    job, run = _object(sent.get("job"), "job"), _object(sent["run"], "run")
    kind = _word(sent.get("eventType"))
    at = values.parse_time(sent.get("eventTime"), "eventTime", latest)
    if at is None:
        raise InputError("eventTime", "missing; send ISO 8601 with an offset")
    namespace, name = _text(job, "namespace", "job.namespace"), _text(job, "name", "job.name")
    run_id = values.run_id(run.get("runId"), "run.runId")
    about = _facet(job, "jobType")
    if _word(about.get("processingType")) in _ENDLESS:
        return Ignored("a stream has no runs")
    if kind not in _ENDS and kind not in _GOES_ON:
        return Ignored("its eventType says nothing about a status")
    parent = _facet(run, "parent")
    if parent and about.get("jobType") != "DAG":
        return _of_a_task(kind, at, run, parent)
    return _of_a_run(kind, at, LineageEvent(namespace, name, run_id, *_airflow(run), at, True), sent)


def _of_a_run(kind: str, at: datetime, event: LineageEvent, sent: Mapping[str, Any]) -> LineageEvent:
    run = sent["run"]
    own_start = _maybe_time(_dag_run(run, "airflowDagRun").get("start_date"), at)
    if kind in _GOES_ON:
        return dataclasses.replace(event, started_at=own_start or at)
    error = values.error_text(_facet(run, "errorMessage").get("message"))
    status, reason = _ENDS[kind], None
    if status is RunStatus.FAILED and event.airflow_run_id is not None and _MANUAL in (error or ""):
        status, reason = RunStatus.CANCELED, "ended by hand"
    tasks = _facet(run, "airflowState").get("tasksState")
    all_skipped = isinstance(tasks, dict) and tasks and all(task == "skipped" for task in tasks.values())
    if status is RunStatus.SUCCESS and all_skipped:
        status, reason = RunStatus.SKIPPED, "all tasks skipped"
    end = End(at, status, error, reason, _rows(sent.get("outputs")))
    return dataclasses.replace(event, started_at=own_start, end=end)


def _of_a_task(kind: str, at: datetime, run: Mapping[str, Any], parent: Mapping[str, Any]) -> LineageEvent | Ignored:
    root = parent.get("root") if isinstance(parent.get("root"), dict) else parent
    job, of = _facet_part(root, "job"), _facet_part(root, "run")
    try:
        namespace, name = _text(job, "namespace", "root.job.namespace"), _text(job, "name", "root.job.name")
        run_id = values.run_id(of.get("runId"), "root.run.runId")
    except InputError as refused:
        return Ignored(f"a task event that does not name its run: {refused}")
    error = values.error_text(_facet(run, "errorMessage").get("message")) if kind == "FAIL" else None
    return LineageEvent(namespace, name, run_id, *_airflow(run), at, False, child_error=error)


def _airflow(run: Mapping[str, Any]) -> tuple[str | None, int]:
    """Airflow's own run id and how often the run was cleared; None and 0 for what does not come from Airflow."""
    dag_run = _dag_run(run, "airflowDagRun") or _dag_run(run, "airflow")
    run_id, cleared = dag_run.get("run_id"), dag_run.get("clear_number")
    try:
        return (None if run_id is None else values.run_id(run_id)), values.attempt(cleared)
    except InputError:
        return None, 0


def _dag_run(run: Mapping[str, Any], facet: str) -> Mapping[str, Any]:
    return _facet_part(_facet(run, facet), "dagRun")


def _rows(outputs: Any) -> int | None:
    """The rows that all outputs count together; None if none counts them."""
    counts = [
        values.row_count(_facet_part(_facet_part(output, "outputFacets"), "outputStatistics").get("rowCount"))
        for output in (outputs if isinstance(outputs, list) else ())
    ]
    known = [count for count in counts if count is not None]
    return values.row_count(sum(known)) if known else None


def _facet(thing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _facet_part(_facet_part(thing, "facets"), name)


def _facet_part(thing: Any, name: str) -> Mapping[str, Any]:
    # Facets are free-form: what has not the usual form is as good as not there.
    part = thing.get(name) if isinstance(thing, dict) else None
    return part if isinstance(part, dict) else {}


def _word(value: Any) -> str | None:
    # A list or an object could not even be looked up among the words that are known.
    return value if isinstance(value, str) else None


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(field, "missing or not an object; see the OpenLineage specification")
    return value


def _text(thing: Mapping[str, Any], name: str, field: str) -> str:
    value = thing.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_RUN_ID_CHARS:
        raise InputError(field, f"missing, or not a text of at most {MAX_RUN_ID_CHARS} characters")
    return values.clean_text(value)


def _maybe_time(value: Any, latest: datetime) -> datetime | None:
    try:
        return values.parse_time(value, "start_date", latest)
    except InputError:
        return None


def _earliest(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((moment for moment in (one, other) if moment is not None), default=None)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _time_or_none(text: str | None) -> datetime | None:
    return None if text is None else _time(text)
