"""A writer that dies or is stopped does not keep its claim."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.errors import Busy
from chm_dagster.warehouse.ledger.syncs import is_ingesting, ledger_writer, reading_claims
from chm_dagster_tests.factories import add_pipeline, rows

WRITER = """
import sys
from uuid import UUID
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.ledger.syncs import ledger_writer
from chm_dagster_tests.factories import observation

url, pipeline_id, count = sys.argv[1], UUID(sys.argv[2]), int(sys.argv[3])

def batches():
    yield [observation(pipeline_id, f"r{n}") for n in range(count)]
    print("sent", flush=True)
    sys.stdin.read()

with ledger_writer(make_engine(url), "default") as writer:
    writer.merge(batches())
"""
COPYING, MERGING = 100, 5_100
"""Runs after which a writer is in the middle of a COPY, and after which it has a merge running."""
ACTIVITY = (
    "SELECT pid, wait_event FROM pg_stat_activity"
    " WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid() AND query LIKE :like"
)


@contextmanager
def writer(engine: sa.Engine, url: str, runs: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the claim and has sent this many runs."""
    command = [sys.executable, "-c", WRITER, url, str(add_pipeline(engine).id), str(runs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"sent\n"
            yield process
        finally:
            process.kill()


def eventually(what: Callable[[], bool], seconds: float = 60) -> float:
    """How long it took until something holds."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() - begin < seconds, "it never came true"
        time.sleep(0.1)
    return time.monotonic() - begin


def is_free(engine: sa.Engine) -> bool:
    try:
        with ledger_writer(engine, "default"):
            return True
    except Busy:
        return False


def test_a_writer_that_is_killed_in_the_middle_of_a_copy_frees_its_claim(engine: sa.Engine, database_url: str) -> None:
    with writer(engine, database_url, COPYING) as process:
        eventually(lambda: any(r["wait_event"] == "ClientRead" for r in rows(engine, ACTIVITY, like="COPY%")))
        assert not is_free(engine)
        process.kill()
        eventually(lambda: is_free(engine))
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 0


def test_a_writer_that_is_killed_in_the_middle_of_a_merge_frees_its_claim(engine: sa.Engine, database_url: str) -> None:
    with psycopg.connect(database_url) as other:
        # The merge waits for as long as the table is locked: nothing but the death of its client can end it.
        other.execute("LOCK TABLE runs IN EXCLUSIVE MODE")
        with writer(engine, database_url, MERGING) as process:
            eventually(
                lambda: any(r["wait_event"] == "relation" for r in rows(engine, ACTIVITY, like="%WITH decided%"))
            )
            assert not is_free(engine)
            process.kill()
            eventually(lambda: is_free(engine))
        other.rollback()
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 0


def test_a_writer_that_is_stopped_in_the_middle_of_a_copy_loses_its_claim_to_the_next_one(
    engine: sa.Engine, database_url: str
) -> None:
    with writer(engine, database_url, COPYING) as process:
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: any(r["wait_event"] == "ClientRead" for r in rows(engine, ACTIVITY, like="COPY%")))
        with pytest.raises(Busy), ledger_writer(engine, "default", stopped_after=timedelta(hours=1)):
            pass
        with (
            ledger_writer(engine, "elsewhere", stopped_after=timedelta(0)),
            pytest.raises(Busy),
            ledger_writer(engine, "default"),
        ):
            pass
        with ledger_writer(engine, "default", stopped_after=timedelta(0)):
            pass
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 0


def test_a_writer_that_is_at_work_keeps_its_claim_however_long_its_merge_takes(
    engine: sa.Engine, database_url: str
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE runs IN EXCLUSIVE MODE")
        with writer(engine, database_url, MERGING) as process:
            eventually(
                lambda: any(r["wait_event"] == "relation" for r in rows(engine, ACTIVITY, like="%WITH decided%"))
            )
            with pytest.raises(Busy), ledger_writer(engine, "default", stopped_after=timedelta(0)):
                pass
            other.rollback()
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=60) == 0
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == MERGING


INGESTION = """
import sys
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.ledger.syncs import reading_claims

with reading_claims(make_engine(sys.argv[1]), "its-id") as claims:
    assert claims.take("default")
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_an_ingestion_that_is_killed_is_known_to_be_gone_and_its_connection_is_free(
    engine: sa.Engine, database_url: str
) -> None:
    command = [sys.executable, "-c", INGESTION, database_url]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        reading_claims(engine) as mine,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        assert is_ingesting(engine, "its-id")
        assert not mine.take("default")
        process.kill()
        eventually(lambda: not is_ingesting(engine, "its-id"))
        eventually(lambda: mine.take("default"))


def test_a_claim_is_taken_in_a_new_session_if_the_old_one_has_ended(engine: sa.Engine) -> None:
    end = (
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    )
    with reading_claims(engine) as mine, reading_claims(engine) as theirs:
        assert mine.take("one")
        assert rows(engine, end)
        assert theirs.take("one"), "the server has given the claim back"
        assert mine.take("two")
        assert not mine.take("one")
