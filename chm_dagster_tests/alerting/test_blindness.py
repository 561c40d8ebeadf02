"""CHM stopped or blind: no client is blamed, and the operator is notified once."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster.alerting.delivering import deliver
from chm_dagster.alerting.operator import Operator
from chm_dagster.domain.blindness import ConnectionState, NoteKind, Watch, look
from chm_dagster.domain.rules import Channel
from chm_dagster.errors import Permanent, Transient
from chm_dagster.warehouse.api_uptime import api_state, mark_api_up
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.alerting.test_delivering import Receiver
from chm_dagster_tests.factories import rows
from chm_dagster_tests.unit.test_alert_evaluation import at

MINUTE = timedelta(minutes=1)


class Monitor:
    """CHM on a clock of its own, with two partners, a job that reports its own runs, rules that need coverage, and
    everybody who is notified. A report that is sent while the API is down is lost.
    """

    def __init__(self, engine: sa.Engine, home: Path) -> None:
        self.world, self.receiver = World(engine), Receiver()
        self.operator = Operator(home, (Channel.INBOX, "operator"))
        self.now = self.heard = at(4)
        self.gaps: list[tuple[datetime, datetime]] = []
        self.job = self.world.pipeline("acme/backup", pushed=True, schedule_cron="*/10 * * * *")
        self.world.rule("missed_run", pipeline_id="acme/backup", window_minutes=15)
        self.pipelines = {}
        for name in ("airflow_eu", "dbt_us"):
            key = f"acme/{name.replace('_', '-')}"
            self.pipelines[name] = self.world.pipeline(key, connection=name, schedule_cron="*/10 * * * *")
            for kind, window in (("missed_run", 15), ("no_success_in_window", 30), ("running_too_long", 20)):
                self.world.rule(kind, pipeline_id=key, window_minutes=window)

    def run(
        self,
        minutes: float,
        *,
        evaluates: bool = True,
        hears: bool = True,
        works: bool = True,
        reads: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Let time pass. Pipelines run every ten minutes; partners are read every five minutes, if they can be.

        The daemon `evaluates` and reads, the API `hears` the job that reports its runs, if that `works`.
        """
        end = self.now + minutes * MINUTE
        while self.now < end:
            self.now += 5 * MINUTE
            self._hear(hears, works)
            for name, pipeline in self.pipelines.items():
                if evaluates and reads(name):
                    self._read(pipeline)
                elif evaluates:
                    self._fail(pipeline)
            if evaluates:
                since = None if hears else self.heard
                api = ConnectionState("CHM's API", 1, self.heard, since, "", is_api=True)
                self.operator.look(self.world.warehouse.ask("connections"), self.now, api)
                self.world.evaluate((self.now - at(0)) / timedelta(hours=1))
                deliver(self.world.engine, self.receiver, lambda: self.now, operator=self.operator)

    def _hear(self, hears: bool, works: bool) -> None:
        """What the API's processes note every few seconds, and the job's reports: ten minutes apart, if they arrive."""
        if hears:
            if self.now - self.heard > 5 * MINUTE:
                self.gaps.append((self.heard, self.now))
            self.heard = self.now
            if works and self.now.minute % 10 == 0:
                earlier = rows(self.world.engine, "SELECT started_at FROM runs WHERE pipeline_id = :id", id=self.job)
                starts = [*(row["started_at"] for row in earlier), self.now]
                self.world.runs(self.job, " ".join(f"S{(start - at(0)) / (60 * MINUTE):.4f}" for start in starts))
                self.world.set("pipelines", self.job, due_at=self.now + 10 * MINUTE)
        gaps = json.dumps([{"lost": lost.isoformat(), "heard": heard.isoformat()} for lost, heard in self.gaps])
        (owner,) = rows(self.world.engine, "SELECT client_id FROM pipelines WHERE id = :id", id=self.job)
        self.world.set("clients", owner["client_id"], heard_through=self.heard, api_gaps=gaps)

    def _read(self, pipeline: object) -> None:
        """A complete sync brings every run so far: one every ten minutes, each took a minute."""
        hours = (self.now - at(0)) / timedelta(hours=1)
        starts = [n / 6 for n in range(int((hours - 2 / 60) * 6) + 1)]
        self.world.runs(pipeline, " ".join(f"S{start:.4f}" for start in starts))  # type: ignore[arg-type]
        state = {"observed_through": self.now, "sync_attempted_at": self.now, "sync_failing_since": None}
        due = at(int(hours * 6) / 6) + 10 * MINUTE
        self.world.set("pipelines", pipeline, **state, sync_error_code=None, sync_error=None, due_at=due)  # type: ignore[arg-type]

    def _fail(self, pipeline: object) -> None:
        sql = (
            "UPDATE pipelines SET sync_attempted_at = :now, sync_failing_since = coalesce(sync_failing_since, :now),"
            " sync_error_code = 'unreachable', sync_error = 'no answer' WHERE id = :id"
        )
        with self.world.engine.begin() as connection:
            connection.execute(sa.text(sql), {"now": self.now, "id": pipeline})

    @property
    def about_clients(self) -> list[str]:
        return [f"{item.kind} {item.pipeline_key}" for m in self.receiver.accepted for item in m.items]

    @property
    def about_chm(self) -> list[tuple[NoteKind, str]]:
        return [(note.kind, note.text) for m in self.receiver.accepted for note in m.notes]


@pytest.fixture
def monitor(engine: sa.Engine, tmp_path: Path) -> Monitor:
    found = Monitor(engine, tmp_path)
    found.run(30)
    assert (found.about_clients, found.about_chm) == ([], [])
    return found


@pytest.mark.parametrize("hears", [False, True], ids=["everything", "only the daemon"])
def test_stopping_chm_for_an_hour_blames_no_client_and_is_announced_once(monitor: Monitor, hears: bool) -> None:
    monitor.run(60, evaluates=False, hears=hears)
    monitor.run(60)
    assert monitor.about_clients == []
    [(kind, text)] = monitor.about_chm
    assert kind is NoteKind.WAS_STOPPED
    assert text.startswith("CHM did not look from 2026-03-02 04:30 UTC to 2026-03-02 05:35 UTC (1 h 5 min).")


def test_stopping_the_api_for_an_hour_blames_no_client_and_is_announced_once(monitor: Monitor) -> None:
    monitor.run(60, hears=False)
    monitor.run(60)
    assert monitor.about_clients == []
    assert [kind for kind, _ in monitor.about_chm] == [NoteKind.BLIND, NoteKind.SEES_AGAIN]
    assert "CHM's API has been down since" in monitor.about_chm[0][1]


def test_a_job_that_fell_silent_while_only_the_daemon_was_stopped_is_announced(monitor: Monitor) -> None:
    """The API was up: had the job reported, it would have been heard."""
    monitor.run(60, evaluates=False, works=False)
    monitor.run(5, works=False)
    assert monitor.about_clients == ["opened acme/backup"]


def test_one_blind_partner_blames_no_client_and_is_announced_once_and_once_when_it_is_over(monitor: Monitor) -> None:
    monitor.run(60, reads=lambda name: name != "dbt_us")
    assert monitor.about_clients == []
    [(kind, text)] = monitor.about_chm
    assert (kind, "dbt_us has not been read since" in text, "no answer" in text) == (NoteKind.BLIND, True, True)
    monitor.run(60)
    assert monitor.about_clients == []
    assert [kind for kind, _ in monitor.about_chm] == [NoteKind.BLIND, NoteKind.SEES_AGAIN]
    assert "dbt_us can be read again" in monitor.about_chm[1][1]


@pytest.mark.parametrize(("silent", "is_announced"), [(9, False), (20, True)])
def test_an_api_that_is_down_is_announced_once_and_once_when_it_is_up_again(
    world: World, tmp_path: Path, silent: int, is_announced: bool
) -> None:
    operator = Operator(tmp_path, (Channel.INBOX, "operator"))
    world.pipeline("acme/reports", pushed=True)
    now = datetime.now(UTC)
    assert api_state(world.engine) is None, "an API that never was up is not missed"
    mark_api_up(world.engine)
    assert operator.look([], now - 120 * MINUTE, api_state(world.engine)) == []
    sql = "UPDATE clients SET heard_through = now() - make_interval(mins => :silent)"
    with world.engine.begin() as connection:
        connection.execute(sa.text(sql), {"silent": silent})
    looks = [operator.look([], now - minutes * MINUTE, api_state(world.engine)) for minutes in range(119, -1, -1)]
    announced = [note.text for notes in looks for note in notes]
    assert len(announced) == is_announced
    mark_api_up(world.engine)
    again = [note.text for note in operator.look([], datetime.now(UTC), api_state(world.engine))]
    assert len(again) == is_announced
    if is_announced:
        assert "CHM's API has been down since" in announced[0]
        assert "What 1 pipeline would report to it is lost" in announced[0]
        assert "CHM's API is up again" in again[0]


def test_what_happened_while_nobody_looked_is_announced_afterwards(monitor: Monitor) -> None:
    """The silence is not bought by looking away."""
    monitor.run(60, reads=lambda name: name != "dbt_us")
    pipeline = monitor.pipelines["dbt_us"]
    monitor._read = lambda _: None  # type: ignore[method-assign]
    state = {"observed_through": monitor.now + 5 * MINUTE, "sync_failing_since": None}
    monitor.world.set("pipelines", pipeline, **state, sync_error_code=None, sync_error=None)
    monitor.run(5)
    assert "opened acme/dbt-us" in monitor.about_clients


def test_a_notice_to_the_operator_is_sent_until_it_is_accepted(monitor: Monitor) -> None:
    monitor.receiver.errors = [Transient("down")]
    monitor.run(60, evaluates=False)
    monitor.run(5)
    [message] = monitor.operator.messages()
    assert (message.attempts, message.error) == (1, "down")
    monitor.run(5)
    assert [m.id for m in monitor.receiver.accepted] == [message.id]
    assert monitor.operator.messages() == []


def test_an_undeliverable_notice_stays_until_the_next_one_arrives(monitor: Monitor) -> None:
    monitor.receiver.errors = [Permanent("no such channel")]
    monitor.run(60, evaluates=False)
    monitor.run(10)
    assert [m.next_at for m in monitor.operator.messages()] == [None]
    monitor.run(60, evaluates=False)
    monitor.run(10)
    assert monitor.operator.messages() == []
    assert len(monitor.about_chm) == 1


def test_a_crash_after_the_look_loses_no_notice(tmp_path: Path) -> None:
    receiver = Channel.INBOX, "operator"
    Operator(tmp_path, receiver).look([], at(4))
    Operator(tmp_path, receiver).look([], at(5))
    Operator(tmp_path, receiver).look([], at(5.01))
    [message] = Operator(tmp_path, receiver).messages()
    assert [note.kind for note in message.notes] == [NoteKind.WAS_STOPPED]


def test_a_state_that_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "operator.json").write_text("{")
    operator = Operator(tmp_path, (Channel.INBOX, "operator"))
    assert operator.messages() == []
    assert operator.look([], at(4)) == []


def state(
    read_at: datetime | None, failing_since: datetime | None = None, stale_at: datetime | None = None
) -> ConnectionState:
    error = "refused" if failing_since else ""
    return ConnectionState("airflow", 3, read_at, failing_since, error, stale_at=stale_at)


@pytest.mark.parametrize(
    ("one", "announced"),
    [
        (state(at(3.6)), False),
        (state(at(3.4)), True),
        (state(at(1), stale_at=at(4.1)), False),
        (state(at(1), stale_at=at(3.9)), True),
        (state(at(3.9), at(3.9)), False),
        (state(at(3.9), at(3.8)), True),
        (state(at(3.8), at(3.9), at(3.95)), False),
        (state(None), True),
    ],
)
def test_a_connection_is_announced_after_a_while_only(one: ConnectionState, announced: bool) -> None:
    running = Watch(looked_at=at(3.99), running_since=at(0))
    _, notes = look(running, [one], at(4))
    assert [note.kind for note in notes] == ([NoteKind.BLIND] if announced else [])


def test_a_new_connection_has_time_to_be_read() -> None:
    assert look(Watch(), [state(None)], at(4))[1] == []


def test_after_a_stop_connections_have_time_to_be_read() -> None:
    before = Watch(looked_at=at(3), running_since=at(0))
    watch, notes = look(before, [state(at(3)), state(at(2.9), at(2.95))], at(4))
    assert [note.kind for note in notes] == [NoteKind.WAS_STOPPED]
    assert watch.blind == {}
