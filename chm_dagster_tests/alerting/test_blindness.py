"""CHM stopped or blind: no client is blamed, and the operator is notified once."""

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
from chm_dagster_tests.unit.test_alert_evaluation import at

MINUTE = timedelta(minutes=1)


class Monitor:
    """CHM on a clock of its own, with two partners and rules that need coverage, and everybody who is notified."""

    def __init__(self, engine: sa.Engine, home: Path) -> None:
        self.world, self.receiver = World(engine), Receiver()
        self.operator = Operator(home, (Channel.INBOX, "operator"))
        self.now = at(4)
        self.pipelines = {}
        for name in ("airflow_eu", "dbt_us"):
            key = f"acme/{name.replace('_', '-')}"
            self.pipelines[name] = self.world.pipeline(key, connection=name, schedule_cron="*/10 * * * *")
            for kind, window in (("missed_run", 15), ("no_success_in_window", 30), ("running_too_long", 20)):
                self.world.rule(kind, pipeline_id=key, window_minutes=window)

    def run(self, minutes: float, *, evaluates: bool = True, reads: Callable[[str], bool] = lambda _: True) -> None:
        """Let time pass. Pipelines run every ten minutes; partners are read every five minutes, if they can be."""
        end = self.now + minutes * MINUTE
        while self.now < end:
            self.now += 5 * MINUTE
            for name, pipeline in self.pipelines.items():
                if evaluates and reads(name):
                    self._read(pipeline)
                elif evaluates:
                    self._fail(pipeline)
            if evaluates:
                self.operator.look(self.world.warehouse.ask("connections"), self.now)
                self.world.evaluate((self.now - at(0)) / timedelta(hours=1))
                deliver(self.world.engine, self.receiver, lambda: self.now, operator=self.operator)

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


def test_stopping_everything_for_an_hour_blames_no_client_and_is_announced_once(monitor: Monitor) -> None:
    """The same as stopping the daemon alone: it evaluates, and starts every sync."""
    monitor.run(60, evaluates=False)
    monitor.run(60)
    assert monitor.about_clients == []
    [(kind, text)] = monitor.about_chm
    assert kind is NoteKind.WAS_STOPPED
    assert text.startswith("CHM did not look from 2026-03-02 04:30 UTC to 2026-03-02 05:35 UTC (1 h 5 min).")


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
