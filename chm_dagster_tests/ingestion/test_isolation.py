"""One connection delays, loses or breaks nothing of another, whatever its partner does. Over real sockets.

What counts is the order of events: a partner is held until the test has seen what must happen meanwhile.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.sync import SyncErrorCode
from chm_dagster.errors import DatabaseUnavailable
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.ledger.syncs import ledger_writer, reading_claims
from chm_dagster_tests.factories import record
from chm_dagster_tests.http.fault_server import (
    Reply,
    Request,
    drip,
    head,
    page_reply,
    respond,
    runs_reply,
    status_reply,
    then_close,
)
from chm_dagster_tests.ingestion.scene import Answer, Held, Scene, serving


def now(**ago: float) -> str:
    return (datetime.now(UTC) - timedelta(**ago)).isoformat()


def healthy(_: Request) -> Reply:
    return runs_reply([record("r1", updated_at=now(minutes=1))])


@contextmanager
def scene(engine: sa.Engine, folder: Path, **answers: Answer) -> Iterator[Scene]:
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(serving(answer)).base_url for name, answer in answers.items()}
        yield Scene(engine, folder, addresses)


def endless(delivered: Callable[[], None] = lambda: None) -> Answer:
    """Answers every page in time, and always has one more."""
    numbers = itertools.count(1)

    def answer(_: Request) -> Reply:
        number = next(numbers)
        if number == 3:
            delivered()
        return runs_reply([record(f"e{number}", updated_at=now(minutes=1))], f"c{number}", after=0.01)

    return answer


def trickle(_: Request) -> Reply:
    """A body that goes on for ever, a byte at a time."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"runs": [')
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    return Reply(send)


# --- a partner that does not answer, or never ends


def test_a_partner_that_does_not_answer_keeps_no_other_waiting(engine: sa.Engine, tmp_path: Path) -> None:
    dead = Held(runs_reply([record("late", updated_at=now())]))
    with scene(engine, tmp_path, aaa=dead, good=healthy) as stage, stage.ingesting() as ingestion:
        stage.wait_until(dead.asked.is_set)
        stage.wait_until(lambda: stage.pipeline("good")["observed_through"])
        assert (stage.runs("good"), stage.runs("aaa"), ingestion.done()) == (["r1"], [], False)
        dead.let_go()
        report = ingestion.result()
    assert report.failed == []
    assert stage.runs("aaa") == ["late"]


def test_forty_silent_partners_keep_no_other_waiting(engine: sa.Engine, tmp_path: Path) -> None:
    dead = {f"dead{n}": Held(runs_reply([])) for n in range(40)}
    with scene(engine, tmp_path, **dead, good=healthy) as stage, stage.ingesting() as ingestion:
        stage.wait_until(lambda: stage.pipeline("good")["observed_through"])
        assert (stage.runs("good"), ingestion.done()) == (["r1"], False)
        for held in dead.values():
            held.let_go()
        assert ingestion.result().failed == []


@pytest.mark.parametrize("answer", [trickle, endless()], ids=["trickling", "endless"])
def test_a_partner_that_never_ends_is_cut_at_its_deadline_and_keeps_no_other_waiting(
    engine: sa.Engine, tmp_path: Path, answer: Answer
) -> None:
    with scene(engine, tmp_path, bad=answer, good=healthy) as stage:
        report = stage.ingest(deadline=1.0)
        assert [p.key for p in report.failed] == ["acme/bad"]
        assert report.pipelines["acme/bad"].error_code is SyncErrorCode.DEADLINE
        assert "what has arrived is kept" in (report.pipelines["acme/bad"].error or "")
        assert stage.runs("good") == ["r1"]
        # The healthy connection was committed long before the deadline of the other one.
        good, bad = stage.pipeline("good"), stage.pipeline("bad")
        assert (good["sync_error_code"], bad["sync_error_code"]) == (None, "deadline")
        assert bad["synced_through"] is None


def test_what_an_endless_partner_delivered_is_kept_and_the_next_sync_goes_on(engine: sa.Engine, tmp_path: Path) -> None:
    limit = [10**9]
    numbers = itertools.count(1)

    def answer(_: Request) -> Reply:
        number = next(numbers)
        more = f"c{number}" if number < limit[0] else None
        return runs_reply([record(f"e{number:06}", updated_at=now(minutes=1))], more, after=0.01)

    with scene(engine, tmp_path, bad=answer) as stage:
        report = stage.ingest(deadline=1.0)
        kept = stage.runs("bad")
        assert len(kept) >= 2
        assert report.pipelines["acme/bad"].accounted_for
        assert report.counts.inserted == len(kept)
        limit[0] = 0
        assert stage.ingest().failed == []
        assert len(stage.runs("bad")) == len(kept) + 1
        assert stage.pipeline("bad")["sync_failing_since"] is None


def test_of_a_connection_that_is_cut_the_finished_pipelines_keep_their_watermark(
    engine: sa.Engine, tmp_path: Path
) -> None:
    slow = Held(runs_reply([]))

    def answer(request: Request) -> Reply:
        return slow(request) if "acme-slow" in request.path else healthy(request)

    with scene(engine, tmp_path, slow=answer) as stage:
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO pipelines (client_id, name, slug, platform, connection, external_id, pipeline_type)"
                    " SELECT client_id, 'quick', 'quick', platform, 'slow', 'acme-quick', pipeline_type FROM pipelines"
                )
            )
        report = stage.ingest(deadline=2.0)
        slow.let_go()
        assert [p.key for p in report.failed] == ["acme/slow"]
        assert stage.runs("quick") == ["r1"]
        assert stage.pipeline("quick")["synced_through"] is not None
        assert stage.pipeline("slow")["synced_through"] is None


# --- the database


def test_a_session_that_ends_while_a_partner_is_read_costs_no_news(engine: sa.Engine, tmp_path: Path) -> None:
    quiet = Held(runs_reply([record("r1", updated_at=now(minutes=1))]))
    with scene(engine, tmp_path, quiet=quiet) as stage, stage.ingesting() as ingestion:
        stage.wait_until(quiet.asked.is_set)
        with engine.begin() as connection:
            ended = connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND datname = current_database()"
                )
            )
            assert len(ended.all()) >= 1
        engine.dispose()
        quiet.let_go()
        assert ingestion.result().failed == []
    assert stage.runs("quiet") == ["r1"]


def test_no_transaction_is_open_while_a_partner_is_read(engine: sa.Engine, tmp_path: Path) -> None:
    quiet = Held(runs_reply([]))
    with scene(engine, tmp_path, quiet=quiet) as stage, stage.ingesting() as ingestion:
        stage.wait_until(quiet.asked.is_set)
        with engine.connect() as connection:
            states = connection.scalars(
                sa.text(
                    "SELECT state FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            ).all()
        assert set(states) <= {"idle"}
        quiet.let_go()
        assert ingestion.result().failed == []


def test_without_a_database_there_is_one_clear_error(engine: sa.Engine, database_url: str, tmp_path: Path) -> None:
    held = Held(runs_reply([record()]))
    with scene(engine, tmp_path, one=held, two=healthy) as stage:
        lost = make_engine(database_url.replace("port=5432", "port=1"))
        whole, stage.engine = stage.engine, lost
        with pytest.raises(DatabaseUnavailable, match="the database does not answer"):
            ingest_with(stage, whole)


def ingest_with(stage: Scene, inventory: sa.Engine) -> None:
    """Ingest what one database lists into another one."""
    from chm_dagster.ingestion.ingest import ingest
    from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines

    ingest(stage.engine, stage.partners, ingested_pipelines(inventory), stage.zone.open("lost"))


def test_a_connection_whose_runs_cannot_be_written_now_costs_no_other_its_news(
    engine: sa.Engine, tmp_path: Path
) -> None:
    with scene(engine, tmp_path, blocked=healthy, good=healthy) as stage, ledger_writer(engine, "blocked"):
        report = stage.ingest(patience=0.1)
        assert [p.key for p in report.failed] == ["acme/blocked"]
        assert "being written by another process" in (report.failed[0].error or "")
        assert (stage.runs("good"), report.unwritten) == (["r1"], ["blocked"])
        assert all(p.accounted_for for p in report.pipelines.values())


# --- the disk


def test_a_full_disk_is_one_clear_message_and_stops_no_other_connection(engine: sa.Engine, tmp_path: Path) -> None:
    with scene(engine, tmp_path, full=healthy, good=healthy) as stage:
        records = stage.zone.open("n0").folder / "records"
        records.mkdir(parents=True)
        (records / "full.jsonl.gz").symlink_to("/dev/full")
        report = stage.ingest()
        assert [p.key for p in report.failed] == ["acme/full"]
        assert "No space left on device; check free space and rights" in (report.failed[0].error or "")
        assert (stage.runs("good"), stage.runs("full")) == (["r1"], [])


# --- a connection that another process reads


def test_a_busy_connection_does_not_hold_up_a_sync_by_hand_of_another(engine: sa.Engine, tmp_path: Path) -> None:
    with scene(engine, tmp_path, busy=healthy, good=healthy) as stage, reading_claims(engine) as other:
        assert other.take("busy")
        with stage.ingesting() as ingestion:
            stage.wait_until(lambda: stage.runs("good"))
            assert not ingestion.done()
            other.give_back("busy")
            assert ingestion.result().failed == []


def test_a_scheduled_sync_leaves_a_connection_that_another_one_still_reads(engine: sa.Engine, tmp_path: Path) -> None:
    with scene(engine, tmp_path, busy=healthy, good=healthy) as stage, reading_claims(engine) as other:
        assert other.take("busy")
        report = stage.ingest(scheduled=True)
        assert (stage.runs("good"), stage.runs("busy"), report.failed) == (["r1"], [], [])
        assert report.pipelines["acme/busy"].deferred


# --- partners that lie

FUTURE = "2099-01-01T00:00:00Z"
HTTP_FUTURE = {"Date": "Thu, 01 Jan 2099 00:00:00 GMT"}
BODY = json.dumps({"runs": [record("r1")], "next_cursor": None}).encode()
JSON = {"Content-Type": "application/json"}


def of_others(request: Request) -> Reply:
    """Runs of a pipeline of another connection, whichever list is requested."""
    return runs_reply([record("stolen", pipeline_id="acme-good"), record("r1", pipeline_id="acme-liar")])


LIARS: dict[str, Answer] = {
    "its clock is in the future": lambda _: runs_reply([record("r1")], headers=HTTP_FUTURE),
    "its records are from the future": lambda _: runs_reply([record("r1", updated_at=FUTURE, finished_at=FUTURE)]),
    "its records are from before time": lambda _: runs_reply([record("r1", updated_at="0001-01-01T00:00:00Z")]),
    "more bytes are announced than sent": lambda _: then_close(head(200, {**JSON, "Content-Length": "99999"}) + BODY),
    "fewer bytes are announced than sent": lambda _: then_close(head(200, {**JSON, "Content-Length": "20"}) + BODY),
    "a size that is none": lambda _: then_close(head(200, {**JSON, "Content-Length": "-1"}) + BODY),
    "gzip that is none": lambda _: respond(BODY, headers={"Content-Encoding": "gzip"}),
    "an encoding that nobody knows": lambda _: respond(BODY, headers={"Content-Encoding": "rot13"}),
    "a charset that it does not use": lambda _: respond(
        BODY.replace(b"r1", b"r\xe9"), headers={"Content-Type": "application/json; charset=utf-16"}
    ),
    "pages in a circle": lambda request: runs_reply([record("r1")], "b" if request.query.get("cursor") == "a" else "a"),
    "one run with every status": lambda _: runs_reply(
        [record("r1", status) for status in ("success", "running", "failed", "skipped", "success", "no word")]
    ),
    "a later page denies an earlier one": lambda request: (
        runs_reply([]) if request.query.get("cursor") else runs_reply([record(f"r{n}") for n in range(50, 0, -1)], "a")
    ),
    "runs of another connection's pipeline": of_others,
}


@pytest.mark.parametrize("lie", LIARS)
def test_a_partner_that_lies_changes_nothing_that_is_not_its_own(lie: str, engine: sa.Engine, tmp_path: Path) -> None:
    with scene(engine, tmp_path, liar=LIARS[lie], good=healthy) as stage:
        for _ in range(2):
            report = stage.ingest()
            good = report.pipelines["acme/good"]
            assert (good.error, good.warning, stage.runs("good")) == (None, None, ["r1"])
            assert all(row.accounted_for for row in report.pipelines.values())
        through = stage.pipeline("liar")["synced_through"]
        assert through is None or through < datetime.now(UTC), "the next sync would miss what is new"
        assert "stolen" not in stage.runs("liar")


# --- what is known about failures, and back-off


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda _: status_reply(401), "credentials_refused"),
        (lambda _: status_reply(404), "not_at_partner"),
        (lambda _: page_reply(404), "bad_response"),
        (lambda _: status_reply(429, {"Retry-After": "7200"}), "rate_limited"),
        (lambda _: status_reply(302), "bad_response"),
        (lambda _: drip(b"not http", 8), "unreachable"),
    ],
    ids=["401", "404", "404 of a proxy", "429", "302", "garbage"],
)
def test_why_a_pipeline_cannot_be_read_and_since_when_is_kept_until_it_can(
    engine: sa.Engine, tmp_path: Path, answer: Answer, code: str
) -> None:
    answers = [answer]
    with scene(engine, tmp_path, one=lambda request: answers[0](request)) as stage:
        stage.ingest()
        first = stage.pipeline("one")
        assert (first["sync_error_code"], first["observed_through"]) == (code, None)
        assert first["sync_failing_since"] == first["sync_attempted_at"]
        stage.ingest()
        second = stage.pipeline("one")
        assert second["sync_failing_since"] == first["sync_failing_since"]
        assert second["sync_attempted_at"] > first["sync_attempted_at"]
        answers[0] = healthy
        stage.ingest()
        last = stage.pipeline("one")
        assert (last["sync_failing_since"], last["sync_error"], last["sync_error_code"]) == (None, None, None)


def test_scheduled_syncs_leave_a_failing_pipeline_for_a_while_and_say_so(engine: sa.Engine, tmp_path: Path) -> None:
    requests: list[Any] = []

    def refuse(request: Request) -> Reply:
        requests.append(request)
        return status_reply(401)

    with scene(engine, tmp_path, bad=refuse, good=healthy) as stage:
        stage.ingest(scheduled=True)
        asked = len(requests)
        report = stage.ingest(scheduled=True)
        assert len(requests) == asked
        bad = report.pipelines["acme/bad"]
        assert bad.deferred
        assert "failing since" in (bad.error or "")
        stage.ingest()
        assert len(requests) > asked
        asked = len(requests)
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE pipelines SET sync_attempted_at = now() - interval '1 hour' WHERE slug = 'bad'")
            )
        stage.ingest(scheduled=True)
        assert len(requests) > asked


def test_one_wrong_external_id_fails_its_own_pipeline_only(engine: sa.Engine, tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return status_reply(404) if "wrong" in request.path else healthy(request)

    with scene(engine, tmp_path, right=answer) as stage:
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO pipelines (client_id, name, slug, platform, connection, external_id, pipeline_type)"
                    " SELECT client_id, 'wrong', 'wrong', platform, 'right', 'wrong', pipeline_type FROM pipelines"
                )
            )
        report = stage.ingest()
        assert [p.key for p in report.failed] == ["acme/wrong"]
        assert report.failed[0].error_code is SyncErrorCode.NOT_AT_PARTNER
        assert stage.runs("right") == ["r1"]
