"""The sandbox's world: every run of every pipeline at any time, computed and never stored.

Run `k` of a pipeline has its slot at ANCHOR + offset + k * period. Everything about it (start, outcome, re-run, when it
becomes visible) comes from a hash of (seed, pipeline, k); a listing at some time shows the run as it is at that time.
Times are integers in microseconds since 1970 internally, and ISO 8601 in records.
"""

import hashlib
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.runs import RunStatus
from chm_dagster.partners.sandbox import catalogue
from chm_dagster.partners.sandbox.catalogue import (
    DAY_US,
    JITTER_US,
    LATENESS_US,
    RERUN_DELAY_US,
    SECOND_US,
    Habit,
    SandboxPipeline,
    error_message,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ANCHOR_US = (datetime(2020, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
_PLAIN_EPOCH = datetime(1970, 1, 1)
_PACK = struct.Struct("<Qq")
_UNPACK = struct.Struct("<8I")
_NO_ROWS = frozenset({Platform.CRON, Platform.DAGSTER})


class Listing(NamedTuple):
    """What a listing covers: its time, the oldest change in it, and the index of one pipeline or None for all."""

    as_of_us: int
    since_us: int
    pipeline: int | None


class Position(NamedTuple):
    """The place of a run in a listing, which is sorted by pipeline, then by run number."""

    pipeline: int
    run: int


class _Dice(NamedTuple):
    """The random numbers of one run, each in [0, 1)."""

    jitter: float
    lateness: float
    outcome: float
    duration: float
    rows: float
    text: float
    rerun: float
    again: float


class _Stage(NamedTuple):
    at: int
    status: RunStatus
    attempt: int
    started: int


class _Run(NamedTuple):
    """A run at some time: its newest stage by then, and when that became visible."""

    pipeline: SandboxPipeline
    number: int
    created: int
    stage: _Stage
    updated: int
    dice: _Dice


class World:
    """A fictional world of `pipelines` pipelines; equal arguments make equal worlds.

    With `period_seconds` the world is quiet: all pipelines share that period, their slots are spread evenly over it,
    and each run appears once, finished, at its slot. The changes in a window are then arithmetic (see `bench`).
    `history` is how far back runs are listed. `generated` counts the runs computed so far, a measure of work.
    """

    def __init__(
        self,
        seed: int,
        pipelines: int = 24,
        *,
        period_seconds: float | None = None,
        history: timedelta = timedelta(days=14),
    ) -> None:
        if pipelines < 1:
            raise ValueError("a world has at least one pipeline")
        period_us = None if period_seconds is None else round(period_seconds * SECOND_US)
        if period_us is not None and period_us < pipelines:
            raise ValueError("the period is too short to spread the pipelines over it")
        self.seed = seed
        self.quiet = period_us is not None
        self.generated = 0
        self._history_us = history // timedelta(microseconds=1)
        self._pipelines = catalogue.build(seed, pipelines, period_us)
        self._by_id = {p.external_id: p for p in self._pipelines}

    @classmethod
    def bench(
        cls,
        seed: int,
        pipelines: int = 10_000,
        *,
        runs_per_pipeline: int = 10,
        new_runs: int = 500,
        window: timedelta = timedelta(minutes=5),
    ) -> "World":
        """A quiet world in which every window (t, t + `window`] has exactly `new_runs` runs, for any t.

        A full listing holds exactly `runs_per_pipeline` runs of each pipeline, at any time. Raises ValueError if
        `window` is not a multiple of `new_runs` microseconds: the spacing of the runs would be uneven.
        """
        spacing_us, rest = divmod(window // timedelta(microseconds=1), new_runs)
        if rest or spacing_us < 1:
            raise ValueError("window must be a multiple of new_runs microseconds")
        period = timedelta(microseconds=spacing_us * pipelines)
        return cls(seed, pipelines, period_seconds=period / timedelta(seconds=1), history=period * runs_per_pipeline)

    def pipelines(self) -> list[SandboxPipeline]:
        """All pipelines, in the order of listings."""
        return list(self._pipelines)

    def pipeline(self, external_id: str) -> SandboxPipeline | None:
        """The pipeline with this external id, None if there is none."""
        return self._by_id.get(external_id)

    def records(
        self, pipeline: SandboxPipeline | None, updated_since: datetime | None, now: datetime, base_url: str = ""
    ) -> list[dict[str, Any]]:
        """All records with `updated_since` <= updated_at <= `now` of one pipeline, or of all (None)."""
        listing = self.listing(pipeline, updated_since, now)
        return [_record(run, base_url) for run in self._runs(listing, None)]

    def news(self, since: datetime, until: datetime) -> int:
        """How many runs changed in (since, until], as seen at `until`."""
        return sum(1 for _ in self._runs(self.listing(None, since + timedelta(microseconds=1), until), None))

    def listing(self, pipeline: SandboxPipeline | None, updated_since: datetime | None, now: datetime) -> Listing:
        """The listing to page through. Raises TypeError for naive times."""
        since_us = 0 if updated_since is None else max(0, microseconds(updated_since))
        return Listing(microseconds(now), since_us, None if pipeline is None else pipeline.index)

    def page(
        self, listing: Listing, start: Position | None, limit: int, base_url: str = ""
    ) -> tuple[list[dict[str, Any]], Position | None]:
        """At most `limit` records from `start` on, and the position of the next page, None after the last."""
        records: list[dict[str, Any]] = []
        for run in self._runs(listing, start):
            if len(records) == limit:
                return records, Position(run.pipeline.index, run.number)
            records.append(_record(run, base_url))
        return records, None

    def record(
        self, pipeline: SandboxPipeline, number: int, now: datetime, base_url: str = ""
    ) -> dict[str, Any] | None:
        """One run as of `now`; None if it does not exist yet, or no longer."""
        listing = self.listing(pipeline, None, now)
        if number not in self._numbers(pipeline, listing):
            return None
        run = self._run(pipeline, number, listing.as_of_us)
        return None if run is None else _record(run, base_url)

    def _runs(self, listing: Listing, start: Position | None) -> Iterator[_Run]:
        if listing.pipeline is None:
            pipelines = self._pipelines[start.pipeline if start else 0 :]
        else:
            pipelines = [self._pipelines[listing.pipeline]]
        for pipeline in pipelines:
            numbers = self._numbers(pipeline, listing)
            if start and start.pipeline == pipeline.index:
                numbers = range(max(numbers.start, start.run), numbers.stop)
            for number in numbers:
                run = self._run(pipeline, number, listing.as_of_us)
                if run and run.updated >= listing.since_us:
                    yield run

    def _numbers(self, pipeline: SandboxPipeline, listing: Listing) -> range:
        """The runs that can be in the listing: their slot is within the history and close enough to its changes."""
        slot_0 = ANCHOR_US + pipeline.offset_us
        oldest = max(listing.as_of_us - self._history_us + 1, listing.since_us - pipeline.span_us)
        first = -((slot_0 - oldest) // pipeline.period_us)
        return range(max(0, first), (listing.as_of_us - slot_0) // pipeline.period_us + 1)

    def _run(self, pipeline: SandboxPipeline, number: int, as_of_us: int) -> _Run | None:
        self.generated += 1
        digest = hashlib.blake2b(_PACK.pack(pipeline.salt, number), digest_size=32).digest()
        dice = _Dice(*[n * 2**-32 for n in _UNPACK.unpack(digest)])
        slot = ANCHOR_US + pipeline.offset_us + number * pipeline.period_us
        if self.quiet:
            started = slot - _duration(pipeline, dice.duration)
            stage = _Stage(slot, _outcome(pipeline, number, slot, dice), 0, started)
            return _Run(pipeline, number, started, stage, slot, dice)
        start = slot + int(dice.jitter * min(JITTER_US, pipeline.period_us // 20))
        visible = start + _lateness(dice.lateness)
        if as_of_us < visible:
            return None
        *_, stage = (s for s in _stages(pipeline, number, slot, start, dice) if s.at <= as_of_us)
        return _Run(pipeline, number, start, stage, max(stage.at, visible), dice)


def microseconds(when: datetime) -> int:
    """Microseconds since 1970 of an aware time. Raises TypeError for a naive one."""
    return (when - EPOCH) // timedelta(microseconds=1)


def iso(us: int) -> str:
    """Microseconds since 1970 as ISO 8601 with microseconds and Z."""
    return (_PLAIN_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds") + "Z"


def _lateness(chance: float) -> int:
    """Four in five runs become visible within three seconds, the others within a minute and a half."""
    return int(chance / 0.8 * 3 * SECOND_US) if chance < 0.8 else int((chance - 0.8) / 0.2 * LATENESS_US)


def _duration(pipeline: SandboxPipeline, chance: float) -> int:
    if pipeline.habit is Habit.SLOW:
        return int(pipeline.typical_us * (2.5 if chance < 0.05 else 0.7 + chance / 2))
    return int(pipeline.typical_us * (0.5 + chance))


def _stages(pipeline: SandboxPipeline, number: int, slot: int, start: int, dice: _Dice) -> Iterator[_Stage]:
    """All stages of the run, the oldest first."""
    outcome = _outcome(pipeline, number, slot, dice)
    if outcome is RunStatus.SKIPPED:
        yield _Stage(start, outcome, 0, start)
        return
    yield _Stage(start, RunStatus.RUNNING, 0, start)
    finish = start + _duration(pipeline, dice.duration)
    yield _Stage(finish, outcome, 0, start)
    if pipeline.habit is Habit.REOPENING and outcome is RunStatus.FAILED:
        restart = finish + RERUN_DELAY_US // 4 + int(dice.rerun * RERUN_DELAY_US * 3 / 4)
        yield _Stage(restart, RunStatus.RUNNING, 1, restart)
        second = RunStatus.FAILED if dice.again < 0.1 else RunStatus.SUCCESS
        yield _Stage(restart + _duration(pipeline, dice.again), second, 1, restart)


def _outcome(pipeline: SandboxPipeline, number: int, slot: int, dice: _Dice) -> RunStatus:
    chance, habit = dice.outcome, pipeline.habit
    if habit is Habit.FLAKY:
        return RunStatus.FAILED if (number % 2 == 1) != (chance < 0.1) else RunStatus.SUCCESS
    if habit is Habit.BROKEN:
        day = (slot - ANCHOR_US) // DAY_US + 3 * (pipeline.index % 3)
        return RunStatus.FAILED if day % 9 >= 3 else RunStatus.SUCCESS
    if habit is Habit.CANCELED and chance < 0.35:
        return RunStatus.CANCELED
    if habit is Habit.SKIPPING and chance < 0.4:
        return RunStatus.SKIPPED
    if chance > (0.75 if habit is Habit.REOPENING else 0.985):
        return RunStatus.FAILED
    return RunStatus.SUCCESS


def _record(run: _Run, base_url: str) -> dict[str, Any]:
    pipeline, stage = run.pipeline, run.stage
    finished = stage.at if stage.status.finished else None
    rows = _rows(pipeline, stage.status, run.dice)
    return {
        "id": _run_id(pipeline, run.number),
        "pipeline_id": pipeline.external_id,
        "status": stage.status.value,
        "created_at": iso(run.created),
        "started_at": iso(stage.started),
        "finished_at": None if finished is None else iso(finished),
        "updated_at": iso(run.updated),
        "duration_seconds": None if finished is None else (finished - stage.started) / SECOND_US,
        "rows_processed": rows,
        "error_message": _error(pipeline, run.dice, rows) if stage.status is RunStatus.FAILED else None,
        "status_reason": _reason(stage, run.dice),
        "attempt": stage.attempt,
        "url": f"{base_url}/ui/{pipeline.external_id}/{run.number}",
        "run_number": run.number,
    }


def _run_id(pipeline: SandboxPipeline, number: int) -> str | int:
    if pipeline.platform is Platform.AIRFLOW:
        slot = ANCHOR_US + pipeline.offset_us + number * pipeline.period_us
        return f"scheduled__{iso(slot)}"
    if pipeline.platform in (Platform.DBT, Platform.AIRBYTE):
        return (pipeline.index + 1) * 100_000_000 + number
    return f"{pipeline.external_id}-{number}"


def _rows(pipeline: SandboxPipeline, status: RunStatus, dice: _Dice) -> int | None:
    usual = int(10 ** (2 + 4 * (pipeline.salt % 1000) / 1000))
    rows = int(usual * (0.8 + 0.4 * dice.rows))
    if pipeline.platform in _NO_ROWS:
        return None
    if status is RunStatus.SUCCESS:
        return rows
    return int(rows * dice.text) if status is RunStatus.FAILED and dice.rows < 0.3 else None


def _error(pipeline: SandboxPipeline, dice: _Dice, rows: int | None) -> str:
    # A broken pipeline fails for the same reason until somebody fixes it.
    chance = (pipeline.salt % 997) / 997 if pipeline.habit is Habit.BROKEN else dice.text
    return error_message(pipeline.platform, pipeline.name, chance, rows or 0)


def _reason(stage: _Stage, dice: _Dice) -> str | None:
    if stage.status is RunStatus.CANCELED:
        return "canceled by an operator" if dice.text < 0.6 else "superseded by a newer run"
    if stage.status is RunStatus.SKIPPED:
        return "no new files since the last run"
    return "re-run" if stage.attempt else None
