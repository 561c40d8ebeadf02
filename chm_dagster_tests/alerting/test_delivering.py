"""Delivery: at least once, under the same id, in order, and no receiver waits for another one."""

import asyncio
import itertools
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from chm_dagster.alerting.delivering import AT_ONCE, DeliveryReport, deliver
from chm_dagster.domain.messages import GIVE_UP_AFTER, Message
from chm_dagster.errors import AuthError, Permanent, RateLimited, Transient
from chm_dagster.http.failures import StatusError
from chm_dagster.warehouse.outbox import Outbox, delivering
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.unit.test_alert_evaluation import at


class Receiver:
    """A fake sender: accepts messages, or raises what it is given, one error for each attempt."""

    def __init__(self, *errors: Exception, slow: str = "") -> None:
        self.errors, self.slow = list(errors), slow
        self.accepted: list[Message] = []
        self.attempts: list[Message] = []

    async def send(self, message: Message, now: datetime) -> None:
        self.attempts.append(message)
        if message.destination == self.slow:
            await asyncio.sleep(1)
        if self.errors:
            raise self.errors.pop(0)
        self.accepted.append(message)


@pytest.fixture
def failing(world: World) -> World:
    """One message waits for #alerts."""
    pipeline = world.pipeline()
    world.rule()
    world.runs(pipeline, "F2")
    world.known(4, pipeline)
    world.evaluate(4)
    return world


def sent(world: World, receiver: Receiver, hour: float) -> DeliveryReport:
    report = deliver(world.engine, receiver, lambda: at(hour))
    assert report is not None
    return report


def test_a_message_is_sent_once(failing: World) -> None:
    receiver = Receiver()
    assert len(sent(failing, receiver, 4).delivered) == 1
    assert sent(failing, receiver, 4) == DeliveryReport()
    assert len(receiver.attempts) == 1
    assert failing.messages() == []


def test_what_fails_is_tried_again_with_growing_waits_under_the_same_id(failing: World) -> None:
    receiver = Receiver(*(Transient("no") for _ in range(4)))
    now, tried = at(4), []
    for _ in range(400):
        report = deliver(failing.engine, receiver, lambda: now)  # noqa: B023
        if len(receiver.attempts) > len(tried):
            tried.append(now)
        if report and report.delivered:
            break
        now += timedelta(seconds=1)
    assert [(b - a).total_seconds() for a, b in itertools.pairwise(tried)] == [15, 30, 60, 120]
    assert len({message.id for message in receiver.attempts}) == 1
    assert [message.attempts for message in receiver.attempts] == [0, 1, 2, 3, 4]


def test_a_receiver_that_asks_to_wait_is_not_tried_before(failing: World) -> None:
    receiver = Receiver(RateLimited("later", 600))
    sent(failing, receiver, 4)
    sent(failing, receiver, 4 + 599 / 3600)
    assert len(receiver.attempts) == 1
    sent(failing, receiver, 4 + 601 / 3600)
    assert len(receiver.accepted) == 1


def test_a_receiver_that_asks_for_days_is_tried_after_an_hour(failing: World) -> None:
    receiver = Receiver(RateLimited("later", 3 * 86_400))
    report = sent(failing, receiver, 4)
    assert (len(report.postponed), report.undeliverable) == (1, ())
    sent(failing, receiver, 4.99)
    assert len(receiver.attempts) == 1
    sent(failing, receiver, 5)
    assert len(receiver.accepted) == 1


def test_after_a_day_a_message_is_undeliverable_and_stays_visible(failing: World) -> None:
    receiver = Receiver(*(AuthError("wrong password") for _ in range(100)))
    hour = 4.0
    while failing.messages()[0].next_at is not None:
        sent(failing, receiver, hour)
        hour += 0.25
    assert timedelta(hours=hour - 4) < GIVE_UP_AFTER + timedelta(hours=1)
    [message] = failing.messages()
    assert message.error == "wrong password"
    attempts = len(receiver.attempts)
    assert sent(failing, receiver, hour + 100) == DeliveryReport()
    assert len(receiver.attempts) == attempts > 20


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (StatusError("bad", 400), True),
        (StatusError("gone", 410), True),
        (StatusError("unknown", 404), False),
        (Permanent("no such user"), True),
        (AuthError("no"), False),
        (Transient("no"), False),
        (ValueError("a mistake of CHM's own"), False),
    ],
)
def test_only_what_nobody_can_mend_is_undeliverable_at_once(failing: World, error: Exception, is_final: bool) -> None:
    report = sent(failing, Receiver(error), 4)
    assert (len(report.undeliverable), len(report.postponed)) == ((1, 0) if is_final else (0, 1))


def test_messages_to_one_receiver_keep_their_order(failing: World) -> None:
    [pipeline] = {episode.pipeline_id for episode in failing.episodes().values()}
    receiver = Receiver(Transient("no"))
    sent(failing, receiver, 4)
    failing.runs(pipeline, "F2 S3.9")
    failing.known(4.001, pipeline)
    failing.evaluate(4.001)
    assert len(failing.messages()) == 2
    sent(failing, receiver, 4.001)
    assert receiver.accepted == []
    sent(failing, receiver, 4.1)
    assert [message.items[0].kind for message in receiver.accepted] == ["opened", "recovered"]


def test_after_a_failed_message_the_next_one_to_that_receiver_waits(failing: World) -> None:
    [pipeline] = {episode.pipeline_id for episode in failing.episodes().values()}
    failing.runs(pipeline, "F2 S3.9")
    failing.known(4.1, pipeline)
    failing.evaluate(4.1)
    receiver = Receiver(Transient("no"))
    sent(failing, receiver, 4.1)
    assert [message.items[0].kind for message in receiver.attempts] == ["opened"]


def test_a_mistake_in_one_message_keeps_no_other_one_from_its_receiver_and_logs_no_text(
    failing: World, caplog: pytest.LogCaptureFixture
) -> None:
    [pipeline] = {episode.pipeline_id for episode in failing.episodes().values()}
    failing.runs(pipeline, "F2 S3.9")
    failing.known(4.1, pipeline)
    failing.evaluate(4.1)
    receiver = Receiver(ValueError("smtp://chm:s3cret@host"))
    sent(failing, receiver, 4.1)
    assert [message.items[0].kind for message in receiver.accepted] == ["recovered"]
    [left] = failing.messages()
    assert (left.items[0].kind, left.error) == ("opened", "internal error: ValueError")
    assert "ValueError in test_delivering.py:" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_slow_receiver_delays_no_other_one(failing: World) -> None:
    failing.rule("consecutive_failures", threshold=1, destination="#slow")
    failing.evaluate(4)
    receiver = Receiver(slow="#slow")
    sent(failing, receiver, 4)
    assert [message.destination for message in receiver.accepted] == ["#alerts", "#slow"]


class Rendezvous(Receiver):
    """A fake sender whose mail server answers only after a message on another channel was accepted."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.other = world, asyncio.Event()

    async def send(self, message: Message, now: datetime) -> None:
        if message.channel == "email":
            # It falls due while the mail server is silent.
            await asyncio.to_thread(self.world.evaluate, 4)
            await asyncio.wait_for(self.other.wait(), 30)
        await super().send(message, now)
        self.other.set()


def test_a_silent_mail_server_delays_no_other_channel_even_later(failing: World) -> None:
    for message in failing.messages():
        Outbox(failing.engine).delivered(message)
    failing.rule("consecutive_failures", threshold=1, channel="email", destination="a@example.com")
    failing.evaluate(4)
    failing.rule("failures_in_window", threshold=1, window_minutes=600, destination="#later")
    receiver = Rendezvous(failing)
    assert len(sent(failing, receiver, 4).delivered) == 2
    assert [message.destination for message in receiver.accepted] == ["#later", "a@example.com"]


def test_a_channel_whose_budget_is_spent_goes_on_in_the_next_delivery(failing: World) -> None:
    for number in range(12):
        failing.rule("consecutive_failures", threshold=1, channel="email", destination=f"n{number}@example.com")
    failing.evaluate(4)
    receiver = Slow()
    report = deliver(failing.engine, receiver, lambda: at(4), budget=0.2)
    assert report is not None
    mails = [m for m in report.delivered if m.channel == "email"]
    assert len(mails) == AT_ONCE
    assert len(sent(failing, receiver, 4).delivered) == 12 - AT_ONCE


class Slow(Receiver):
    """A fake sender whose mail server takes longer than the budget."""

    async def send(self, message: Message, now: datetime) -> None:
        if message.channel == "email":
            await asyncio.sleep(0.3)
        await super().send(message, now)


def test_one_process_delivers_at_a_time(failing: World) -> None:
    with delivering(failing.engine) as mine:
        assert mine is not None
        assert deliver(failing.engine, Receiver(), lambda: at(4)) is None
    assert len(sent(failing, Receiver(), 4).delivered) == 1


def test_an_evaluation_during_a_delivery_loses_nothing(failing: World) -> None:
    """Both write the outbox of the same rule."""
    [pipeline] = {episode.pipeline_id for episode in failing.episodes().values()}
    outbox = Outbox(failing.engine)
    [first] = outbox.messages()
    failing.runs(pipeline, "F2 S3.9")
    failing.known(4.1, pipeline)
    failing.evaluate(4.1)
    outbox.delivered(first)
    [left] = failing.messages()
    assert left.items[0].kind == "recovered"


VICTIM = """
import asyncio, os, signal, sys
from datetime import datetime
from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.alerting.delivering import deliver
from chm_dagster.warehouse.engine import make_engine
import psycopg

url, log, at, now = sys.argv[1], sys.argv[2], int(sys.argv[3]), datetime.fromisoformat(sys.argv[4])
count = 0

def step():
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)

real = psycopg.Connection.wait
def wait(self, *args, **kwargs):
    step()
    found = real(self, *args, **kwargs)
    step()
    return found
psycopg.Connection.wait = wait

class Receiver:
    async def send(self, message, now):
        step()
        with open(log, "a") as file:
            file.write(f"{message.id} {','.join(item.key for item in message.items)}\\n")
            file.flush()
            os.fsync(file.fileno())
        step()

engine = make_engine(url)
evaluate_rules(engine, now)
deliver(engine, Receiver(), lambda: now)
print(count)
"""


def victim(url: str, log: str, at_step: int, hour: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", VICTIM, url, log, str(at_step), at(hour).isoformat()]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path.cwd())


@pytest.mark.slow
def test_killed_at_every_step_nothing_is_lost_and_repeats_have_the_same_id(
    world: World, tmp_path_factory: pytest.TempPathFactory, database_url: str
) -> None:
    """SIGKILL before and after every exchange with the database and every send of an evaluation and its delivery."""
    pipeline, other = world.pipeline(), world.pipeline("zeta/orders")
    world.rule()
    world.rule(pipeline_id="zeta/orders", destination="#zeta")
    folder = tmp_path_factory.mktemp("kills")
    step, repeats, hour = 0, 0, 4.0
    while True:
        step, hour = step + 1, hour + 1
        log = folder / str(step)
        for each in (pipeline, other):
            world.runs(each, f"S1 F{hour - 0.5}")
            world.known(hour, each)
        killed = victim(database_url, str(log), step, hour)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        after = victim(database_url, str(log), 0, hour)
        assert after.returncode == 0, after.stderr
        lines = log.read_text().splitlines()
        keys = [key for line in lines for key in line.split()[1].split(",") if key.endswith("opened")]
        assert len(set(keys)) == 2, "both episodes were announced"
        assert len({line.split()[0] for line in lines}) == len({line.split()[1] for line in lines})
        assert len(lines) - len(set(lines)) <= 2, "one for each receiver at most"
        repeats += len(lines) - len(set(lines))
        assert world.messages() == []
        # Both recover, so that the next round begins anew.
        for each in (pipeline, other):
            world.runs(each, f"S1 F{hour - 0.5} S{hour + 0.1}")
            world.known(hour + 0.5, each)
        assert victim(database_url, str(log), 0, hour + 0.5).returncode == 0
    assert step > 20
    assert repeats >= 1
