"""What all scripted platforms have in common: pipelines, runs in stages, faults, and the requests received."""

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, ClassVar

from chm_dagster_tests.http.fault_server import Reply, Request, json_reply, status_reply

NOW = datetime.now(UTC).replace(microsecond=0)
"""The time of the servers' clocks, close to that of our own."""
DATE = {"Date": format_datetime(NOW, usegmt=True)}
ABSENT = status_reply(404)


def minutes_ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run: `word` is queued, running, success, failed, canceled, or the platform's own."""

    word: str
    started: datetime | None
    finished: datetime | None
    changed: datetime
    attempt: int = 0


def stage(word: str, *, started: float | None = 60, finished: float | None = None, attempt: int = 0) -> Stage:
    """A stage by minutes before now: when it started, and when it ended, if it has."""
    start = None if started is None else minutes_ago(started)
    end = None if finished is None else minutes_ago(finished)
    return Stage(word, start, end, end or start or minutes_ago(61), attempt)


@dataclasses.dataclass
class Run:
    """A run at the partner. `extra` replaces fields of its record."""

    pipeline: str
    id: str
    stage: Stage
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class Script:
    """A scripted platform. Subclasses define the format of runs, responses and errors.

    `page` is the number of records per page, whatever was requested (None: as requested).
    """

    credentials: ClassVar[dict[str, str]] = {"token": "good-secret"}
    wrong_credentials: ClassVar[dict[str, str]] = {}
    """Credentials that the server refuses, if any text does not do."""
    options: ClassVar[dict[str, Any]] = {}
    pipelines: ClassVar[tuple[str, ...]] = ("p1", "p2", "p3")
    """External ids."""
    words: ClassVar[dict[str, str]] = {}
    """The platform's words for queued, running, success, failed, canceled."""
    reopens: ClassVar[bool] = True
    passes: ClassVar[int] = 1
    """The maximum number of requests for runs in an account-wide sync without news."""
    names_the_pipeline: ClassVar[bool] = True
    """Whether a record names its pipeline."""
    error_inline: ClassVar[bool] = True
    """Whether a record contains the reason of a failure."""
    answers_403_as: ClassVar[str] = "AuthError"
    filters_by_time: ClassVar[bool] = True
    """Whether requests say from when on runs are wanted."""

    def __init__(self, *, page: int | None = None) -> None:
        self.page = page
        self.runs: list[Run] = []
        self.junk: list[Any] = []
        self.fault: Callable[[Request], Reply | None] = lambda request: None
        self.requests: list[Request] = []

    # --- defined by subclasses

    def accepts(self, request: Request) -> bool:
        """Whether the request is authenticated."""
        return request.headers.get("authorization") == "Bearer good-secret"

    def record(self, run: Run) -> dict[str, Any]:
        """The run in the platform's format."""
        raise NotImplementedError

    def route(self, request: Request) -> Reply:
        """The response to an accepted request."""
        raise NotImplementedError

    def unproven(self, request: Request) -> Reply | None:
        """The response to a request that needs no authentication: versions and logins."""
        return None

    # --- shared

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        fault = self.fault(request)
        if fault is not None:
            return fault
        open_door = self.unproven(request)
        if open_door is not None:
            return open_door
        if not self.accepts(request):
            return status_reply(401, DATE)
        return self.route(request)

    def add(self, pipeline: str, run_id: str, at: Stage, extra: dict[str, Any] | None = None) -> Run:
        run = Run(pipeline, run_id, at, extra or {})
        self.runs.append(run)
        return run

    def spelled(self, at: Stage) -> str:
        return self.words.get(at.word, at.word)

    @property
    def list_size(self) -> int:
        """How many pipelines a page of its list has: short pages, unless that makes too many."""
        return 2 if len(self.pipelines) < 10 else 100

    def rows(self, chosen: Callable[[Run], bool], order: Callable[[Run], Any] = lambda run: run.id) -> list[Any]:
        return [
            *({**self.record(run), **run.extra} for run in sorted(filter(chosen, self.runs), key=order)),
            *self.junk,
        ]

    def cut(self, rows: Sequence[Any], offset: int, limit: int) -> list[Any]:
        return list(rows[offset : offset + min(limit, self.page or limit)])

    @property
    def for_runs(self) -> list[Request]:
        """The requests for lists of runs."""
        return [request for request in self.requests if self.is_for_runs(request)]

    def is_for_runs(self, request: Request) -> bool:
        raise NotImplementedError


def iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def epoch(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def epoch_ms(moment: datetime | None) -> int:
    return 0 if moment is None else round(moment.timestamp() * 1000)


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def ok(body: Any, status: int = 200) -> Reply:
    return json_reply(body, status, DATE)
