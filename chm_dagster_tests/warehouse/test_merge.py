"""The ledger is exact: it ends up the same for any order and repetition of deliveries."""

import random
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from chm_dagster.domain.runs import Counts, Observation, RunKind, RunStatus
from chm_dagster.errors import Busy, DatabaseUnavailable
from chm_dagster.warehouse.ledger import staging
from chm_dagster.warehouse.ledger.merge import BATCH, MERGE, PART, RunMerge, merge_runs
from chm_dagster.warehouse.ledger.syncs import CompletedSync, complete_syncs, ledger_writer
from chm_dagster_tests.factories import T0, add_pipeline, minutes, observation, rows

LEDGER = (
    "SELECT external_run_id, status, started_at, finished_at, duration_seconds, rows_processed, error_message,"
    " status_reason, source_url, payload, attempt, progress, source_version, queued_at, kind, will_retry FROM runs ORDER BY external_run_id"
)
PHYSICAL = "SELECT ctid::text, xmin::text, external_run_id FROM runs ORDER BY external_run_id"


def merge(engine: sa.Engine, *observations: Observation) -> Counts:
    """Merge in one transaction and add up the counts of all pipelines."""
    total = Counts()
    with engine.begin() as connection:
        for tally in merge_runs(connection, observations).values():
            total.add(tally)
    return total


@pytest.fixture
def pipeline_id(engine: sa.Engine) -> UUID:
    return add_pipeline(engine).id


def test_replaying_writes_no_rows_and_hardly_any_wal(engine: sa.Engine, pipeline_id: UUID) -> None:
    batch = [observation(pipeline_id, f"r{n}") for n in range(500)]
    assert merge(engine, *batch) == Counts(inserted=500)
    before = rows(engine, PHYSICAL)
    written = []
    for _ in range(5):
        [position] = rows(engine, "SELECT pg_current_wal_insert_lsn() AS lsn")
        later = [msgspec.structs.replace(o, observed_at=o.observed_at + minutes(5)) for o in batch]
        assert merge(engine, *later) == Counts(unchanged=500)
        [wal] = rows(engine, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :lsn) AS wal", lsn=position["lsn"])
        written.append(wal["wal"])
    assert rows(engine, PHYSICAL) == before
    # The server writes for itself as well, now and then; hence the least. 500 rewritten rows are over 100,000 bytes.
    assert min(written) < 10_000


def test_running_becomes_success_in_place(engine: sa.Engine, pipeline_id: UUID) -> None:
    running = observation(pipeline_id, status=RunStatus.RUNNING, source_version=T0)
    assert merge(engine, running) == Counts(inserted=1)
    (first,) = rows(engine, "SELECT id, created_at FROM runs")
    assert merge(engine, observation(pipeline_id, progress=1)) == Counts(updated=1)
    (row,) = rows(engine, "SELECT id, created_at, status, finished_at FROM runs")
    assert (row["id"], row["created_at"]) == (first["id"], first["created_at"])
    assert (row["status"], row["finished_at"]) == ("success", T0 + minutes(10))


def test_a_finished_run_does_not_go_back_where_the_platform_never_reopens(engine: sa.Engine, pipeline_id: UUID) -> None:
    merge(engine, observation(pipeline_id, progress=1))
    late = observation(
        pipeline_id, status=RunStatus.RUNNING, source_version=T0 + minutes(99), observed_at=T0 + minutes(99)
    )
    assert merge(engine, late) == Counts(stale=1)
    assert rows(engine, LEDGER)[0]["status"] == "success"


def test_a_newer_version_reopens_a_run_and_takes_its_end_and_error_away(engine: sa.Engine, pipeline_id: UUID) -> None:
    merge(engine, observation(pipeline_id, status=RunStatus.FAILED, error_message="no disk"))
    again = observation(pipeline_id, status=RunStatus.RUNNING, source_version=T0 + minutes(20))
    assert merge(engine, again) == Counts(updated=1)
    row = rows(engine, LEDGER)[0]
    assert (row["status"], row["finished_at"], row["duration_seconds"], row["error_message"]) == (
        "running",
        None,
        None,
        None,
    )


def test_a_new_attempt_reopens_even_a_run_that_never_reopens(engine: sa.Engine, pipeline_id: UUID) -> None:
    merge(engine, observation(pipeline_id, status=RunStatus.FAILED, progress=1))
    assert merge(engine, observation(pipeline_id, status=RunStatus.RUNNING, attempt=1, progress=0)) == Counts(updated=1)


def test_without_a_version_the_later_request_wins(engine: sa.Engine, pipeline_id: UUID) -> None:
    merge(engine, observation(pipeline_id, status=RunStatus.FAILED, source_version=None))
    older = observation(pipeline_id, source_version=None, observed_at=T0)
    assert merge(engine, older) == Counts(stale=1)
    newer = observation(pipeline_id, source_version=None, observed_at=T0 + minutes(61))
    assert merge(engine, newer) == Counts(updated=1)


def test_a_version_beats_none(engine: sa.Engine, pipeline_id: UUID) -> None:
    merge(engine, observation(pipeline_id))
    assert merge(
        engine, observation(pipeline_id, rows_processed=9, source_version=None, observed_at=T0 + minutes(99))
    ) == Counts(stale=1)


def test_a_flip_that_a_later_sync_saw_undone_stays_undone(engine: sa.Engine, pipeline_id: UUID) -> None:
    # success, failed, success, all of one version; the middle one is delivered last, from a remapped landing.
    good, bad = (
        observation(pipeline_id),
        observation(pipeline_id, status=RunStatus.FAILED, observed_at=T0 + minutes(62)),
    )
    merge(engine, good)
    with engine.begin() as connection:
        merge_runs(connection, [msgspec.structs.replace(good, observed_at=T0 + minutes(64))])
        complete_syncs(connection, [CompletedSync(pipeline_id, T0 + minutes(58), T0 + minutes(63))])
    assert merge(engine, bad) == Counts(stale=1)
    assert rows(engine, LEDGER)[0]["status"] == "success"


def test_a_run_twice_in_one_batch_is_one_row(engine: sa.Engine, pipeline_id: UUID) -> None:
    running = observation(pipeline_id, status=RunStatus.RUNNING, source_version=T0)
    done = observation(pipeline_id)
    assert merge(engine, done, running, done) == Counts(inserted=1, stale=1, unchanged=1)
    assert [row["status"] for row in rows(engine, LEDGER)] == ["success"]


def test_two_records_of_one_run_with_the_same_time_always_give_the_same_result(
    engine: sa.Engine, pipeline_id: UUID
) -> None:
    one, other = observation(pipeline_id, rows_processed=1), observation(pipeline_id, payload={"id": "r1", "n": 2})
    results = []
    for batch in ([one, other], [other, one], [other, one, other]):
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM runs"))
        tally = merge(engine, *batch)
        assert tally.inserted + tally.updated + tally.unchanged + tally.stale == len(batch)
        results.append(rows(engine, LEDGER))
    for order in ((one, other), (other, one)):
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM runs"))
        for o in order:
            merge(engine, o)
        results.append(rows(engine, LEDGER))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    "change", [{"queued_at": T0 - minutes(5)}, {"kind": RunKind.BACKFILL}, {"will_retry": True}], ids=str
)
def test_when_a_run_was_queued_why_it_ran_and_whether_it_will_be_retried_are_news(
    engine: sa.Engine, pipeline_id: UUID, change: dict[str, Any]
) -> None:
    failed: dict[str, Any] = {"status": RunStatus.FAILED, "error_message": "no disk"}
    assert merge(engine, observation(pipeline_id, **failed)) == Counts(inserted=1)
    said = observation(pipeline_id, **failed, **change, observed_at=T0 + minutes(61))
    assert merge(engine, said) == Counts(updated=1)
    assert merge(engine, said) == Counts(unchanged=1)
    (row,) = rows(engine, LEDGER)
    (name,) = change
    assert row[name] == change[name]
    assert merge(engine, observation(pipeline_id, **failed, observed_at=T0 + minutes(62))) == Counts(updated=1)
    assert rows(engine, LEDGER)[0][name] == getattr(observation(pipeline_id), name)


@pytest.mark.parametrize(
    "known", [("started_at", "queued_at", "finished_at"), ("queued_at", "finished_at"), ("finished_at",), ()]
)
def test_the_effective_time_is_the_first_that_is_known(
    engine: sa.Engine, pipeline_id: UUID, known: tuple[str, ...]
) -> None:
    times = {"started_at": T0, "queued_at": T0 - minutes(5), "finished_at": T0 + minutes(9)}
    run = observation(pipeline_id, **{name: time if name in known else None for name, time in times.items()})
    assert merge(engine, run) == Counts(inserted=1)
    (row,) = rows(engine, "SELECT effective_at, created_at FROM runs")
    assert row["effective_at"] == (times[known[0]] if known else row["created_at"])


def test_hostile_text_is_stored_unchanged(engine: sa.Engine, pipeline_id: UUID) -> None:
    nasty = "tab\there, line\nthere, \\N, \\., quote\", 'x'; DROP TABLE runs; --, \u202e, 漢字, \x7f"
    o = observation(
        pipeline_id, nasty, status=RunStatus.FAILED, error_message=nasty, status_reason=nasty, payload={nasty: nasty}
    )
    assert merge(engine, o) == Counts(inserted=1)
    row = rows(engine, LEDGER)[0]
    assert (row["external_run_id"], row["error_message"], row["payload"]) == (nasty, nasty, {nasty: nasty})
    assert merge(engine, o) == Counts(unchanged=1)


def test_ids_that_differ_in_one_byte_are_different_runs(engine: sa.Engine, pipeline_id: UUID) -> None:
    ids = ["run", "Run", "run ", "rún", "ru\u0301n", "run\u200b", "ｒｕｎ"]
    assert merge(engine, *(observation(pipeline_id, i) for i in ids)) == Counts(inserted=len(ids))


def test_the_same_run_id_in_two_pipelines_is_two_runs(engine: sa.Engine) -> None:
    one, other = add_pipeline(engine, "a").id, add_pipeline(engine, "b").id
    assert merge(engine, observation(one), observation(other)) == Counts(inserted=2)


# --- a stream of any length -----------------------------------------------------------------------------------------


def test_a_run_that_arrives_again_much_later_is_decided_again(engine: sa.Engine, pipeline_id: UUID) -> None:
    running = observation(pipeline_id, "r0", status=RunStatus.RUNNING, source_version=T0)
    others = [observation(pipeline_id, f"r{n}") for n in range(1, PART + 1)]
    late = [observation(pipeline_id, "r0"), running, *others]
    assert merge(engine, running, *others, *late) == Counts(inserted=PART + 1, updated=1, stale=1, unchanged=PART)
    assert {row["status"] for row in rows(engine, LEDGER)} == {"success"}


def test_a_stream_is_written_in_statements_of_a_size_that_memory_can_hold(engine: sa.Engine, pipeline_id: UUID) -> None:
    many = [observation(pipeline_id, f"r{n}") for n in range(2 * BATCH + 1)]
    with engine.begin() as connection, RunMerge(connection) as stream:
        stream.add(many)
        assert (
            stream.counts[pipeline_id].inserted == BATCH
        )  # the second statement is running, the third is still to come
    assert stream.counts == {pipeline_id: Counts(inserted=len(many))}
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == len(many)


@pytest.mark.parametrize(
    "before", [0, 1, PART, BATCH + PART], ids=["at once", "early", "while staging", "while merging"]
)
def test_a_failing_source_leaves_nothing_behind_and_the_session_usable(
    engine: sa.Engine, pipeline_id: UUID, before: int
) -> None:
    with engine.connect() as session:
        with pytest.raises(ValueError, match="the source broke"), session.begin(), RunMerge(session) as stream:
            for n in range(before):
                stream.add([observation(pipeline_id, f"r{n}")])
            raise ValueError("the source broke")
        with session.begin():
            assert merge_runs(session, [observation(pipeline_id, "r1")]) == {pipeline_id: Counts(inserted=1)}
    assert rows(engine, "SELECT external_run_id FROM runs") == [{"external_run_id": "r1"}]


def test_an_error_from_postgres_is_raised_unchanged(engine: sa.Engine, pipeline_id: UUID) -> None:
    good, stranger = observation(pipeline_id), observation(uuid4())
    with pytest.raises(psycopg.errors.ForeignKeyViolation), ledger_writer(engine) as writer:
        writer.merge([[good], [stranger]])
    with pytest.raises(psycopg.errors.InvalidTextRepresentation), ledger_writer(engine) as writer:
        writer.merge([[good], [observation(pipeline_id, "r2", attempt="first")]])
    with ledger_writer(engine) as writer:
        assert writer.merge([[good]]) == {pipeline_id: Counts(inserted=1)}


# --- the plan --------------------------------------------------------------------------------------------------------


def look_up_plan(connection: sa.Connection) -> dict[str, Any]:
    """How the merge would look staged rows up in `runs`, planned by the statistics as they are."""
    statements = [statement.strip() for statement in MERGE.split(";")]
    number = next(n for n, statement in enumerate(statements) if statement.startswith("WITH"))
    for setting in statements[:number]:
        connection.exec_driver_sql(setting)
    (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statements[number]}").scalar_one()
    for setting in statements[number + 1 :]:
        connection.exec_driver_sql(setting)
    (look_up,) = (
        node
        for node in nodes(plan["Plan"])
        if node.get("Relation Name") == "runs" and node["Node Type"] != "ModifyTable"
    )
    return look_up


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_the_merge_looks_runs_up_by_the_unique_index_whatever_the_statistics_say(
    engine: sa.Engine, pipeline_id: UUID
) -> None:
    # A first load whose transaction is still open: an autovacuum sees pages, and not one row. The ids are so long that
    # the unique index is a level deeper than the one of latest runs, and looks more expensive.
    load = sa.text(
        "INSERT INTO runs (pipeline_id, external_run_id, status, started_at) SELECT :id, repeat('x', 400) || n,"
        " 'success', now() - n * interval '1 minute' FROM generate_series(1, 20000) AS n"
    )
    with engine.begin() as connection:
        connection.execute(load, {"id": pipeline_id})
        connection.exec_driver_sql(staging.CREATE)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            other.execute(sa.text("VACUUM ANALYZE runs"))
        seen = connection.execute(sa.text("SELECT reltuples, relpages FROM pg_class WHERE relname = 'runs'")).one()
        assert seen.reltuples == 0
        assert seen.relpages > 100
        look_up = look_up_plan(connection)
        assert look_up["Index Name"] == "uq_runs_pipeline_id_external_run_id"
        assert "external_run_id" in look_up["Index Cond"]


def test_a_merge_leaves_the_planner_of_its_transaction_as_it_was(engine: sa.Engine, pipeline_id: UUID) -> None:
    with engine.begin() as connection:
        names = ("enable_sort", "enable_incremental_sort", "jit", "work_mem")
        before = [connection.scalar(sa.text(f"SHOW {name}")) for name in names]
        merge_runs(connection, [observation(pipeline_id)])
        assert [connection.scalar(sa.text(f"SHOW {name}")) for name in names] == before


# --- any order, any duplication -------------------------------------------------------------------------------------

STATUSES = list(RunStatus)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """What a partner returns for a run, in the order of requests: (attempt, version in minutes, state).

    A partner does not return to an earlier state within one attempt and version; what happens if it does is
    the subject of `test_a_flip_that_a_later_sync_saw_undone_stays_undone`.
    """
    count = draw(st.integers(1, 5))
    triples = st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 4)), min_size=count, max_size=count
    )
    return sorted(draw(triples))


@given(
    run_histories=st.lists(histories(), min_size=1, max_size=3),
    versioned=st.booleans(),
    shuffles=st.lists(st.randoms(use_true_random=False), min_size=2, max_size=2),
)
@settings(max_examples=40)
def test_any_order_and_duplication_of_the_same_observations_gives_the_same_ledger(
    engine: sa.Engine, run_histories: list[list[tuple[int, int, int]]], versioned: bool, shuffles: list[random.Random]
) -> None:
    pipeline = add_pipeline(engine).id
    seen = [
        observation(
            pipeline,
            f"r{n}",
            status=STATUSES[said],
            rows_processed=said,
            kind=[None, *RunKind][said],
            queued_at=T0 - minutes(said) if said else None,
            will_retry=STATUSES[said] is RunStatus.FAILED,
            attempt=attempt,
            source_version=T0 + minutes(version) if versioned else None,
            # Without a version, two versions are one: only the state distinguishes the requests then.
            observed_at=T0 + minutes(100 + step),
        )
        for n, history in enumerate(run_histories)
        for step, (attempt, version, said) in enumerate(history if versioned else _unversioned(history))
    ]
    ledgers = []
    for shuffle in [None, *shuffles]:
        deliveries = list(seen)
        if shuffle is not None:
            deliveries += shuffle.choices(seen, k=len(seen) // 2)
            shuffle.shuffle(deliveries)
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM runs"))
        for one in _in_batches(deliveries, shuffle):
            tally = merge(engine, *one)
            assert tally.inserted + tally.updated + tally.unchanged + tally.stale == len(one)
        ledgers.append(rows(engine, LEDGER))
    assert ledgers[1:] == ledgers[:1] * len(shuffles)


def _unversioned(history: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return sorted(history, key=lambda triple: (triple[0], triple[2]))


def _in_batches(deliveries: list[Observation], shuffle: random.Random | None) -> list[list[Observation]]:
    if shuffle is None:
        return [[o] for o in deliveries]
    cut = shuffle.randint(0, len(deliveries))
    return [batch for batch in ([*deliveries[:cut]], *([o] for o in deliveries[cut:])) if batch]


# --- one writer, one transaction ------------------------------------------------------------------------------------


def synced_through(engine: sa.Engine) -> object:
    return rows(engine, "SELECT synced_through FROM pipelines")[0]["synced_through"]


def test_runs_and_watermark_commit_together_or_not_at_all(engine: sa.Engine, pipeline_id: UUID) -> None:
    def write() -> None:
        with ledger_writer(engine, "default") as writer:
            writer.merge([[observation(pipeline_id, "r1")]])
            writer.complete([CompletedSync(pipeline_id, T0, T0)])
            if broken:
                raise KeyboardInterrupt

    broken = True
    with pytest.raises(KeyboardInterrupt):
        write()
    assert (rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"], synced_through(engine)) == (0, None)
    broken = False
    write()
    assert (rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"], synced_through(engine)) == (1, T0)


def test_a_dry_run_counts_and_writes_nothing(engine: sa.Engine, pipeline_id: UUID) -> None:
    with ledger_writer(engine, "default", dry_run=True) as writer:
        assert writer.merge([[observation(pipeline_id, "r1")]]) == {pipeline_id: Counts(inserted=1)}
        writer.complete([CompletedSync(pipeline_id, T0, T0)])
    assert (rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"], synced_through(engine)) == (0, None)


def test_the_watermark_never_moves_back(engine: sa.Engine, pipeline_id: UUID) -> None:
    for time in (T0 + minutes(5), T0):
        with engine.begin() as connection:
            complete_syncs(connection, [CompletedSync(pipeline_id, time, time)])
    assert synced_through(engine) == T0 + minutes(5)


def test_a_second_writer_of_a_connection_is_refused_and_one_of_another_is_not(engine: sa.Engine) -> None:
    with (
        ledger_writer(engine, "default"),
        ledger_writer(engine, "elsewhere"),
        pytest.raises(Busy, match="default: its runs are being written"),
        ledger_writer(engine, "default"),
    ):
        pass
    with ledger_writer(engine, "default"):
        pass


def test_a_writer_whose_session_died_cannot_write_any_more(
    engine: sa.Engine, database_url: str, pipeline_id: UUID
) -> None:
    with pytest.raises(DatabaseUnavailable), ledger_writer(engine, "default") as writer:
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        # The claim is free again at once.
        with ledger_writer(engine, "default"):
            writer.merge([[observation(pipeline_id)]])
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 0


def test_writers_of_the_same_keys_do_not_deadlock(engine: sa.Engine, pipeline_id: UUID) -> None:
    problems: list[BaseException] = []
    merge(engine, *(observation(pipeline_id, f"r{n}") for n in range(100)))

    def write(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for step in range(12):
                at: datetime = T0 + minutes(100 + step)
                ids = rng.sample(range(100), 60)
                merge(
                    engine,
                    *(
                        observation(pipeline_id, f"r{n}", rows_processed=step, source_version=at, observed_at=at)
                        for n in ids
                    ),
                )
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert rows(engine, "SELECT count(*) AS n FROM runs")[0]["n"] == 100
