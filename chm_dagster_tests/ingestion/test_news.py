"""Partners are asked what is new, and the ledger decides whether it is. Over real sockets, on a real database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import sqlalchemy as sa

from chm_dagster.defs.automation import ASK_AGAIN, requests_for
from chm_dagster.domain.runs import RunStatus
from chm_dagster.ingestion.news import News, ask_partners
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.ledger.merge import merge_runs
from chm_dagster.warehouse.ledger.runs import unknown_runs
from chm_dagster_tests.factories import add_pipeline, observation, record
from chm_dagster_tests.http.fault_server import Reply, Request, runs_reply, status_reply
from chm_dagster_tests.ingestion.scene import Answer, Held, Scene, serving

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def stamped(run: str, status: str = "success", **changes: Any) -> dict[str, Any]:
    return record(run, status, updated_at=(datetime.now(UTC) - timedelta(minutes=1)).isoformat(), **changes)


@contextmanager
def scene(engine: sa.Engine, folder: Path, **answers: Answer) -> Iterator[Scene]:
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(serving(answer)).base_url for name, answer in answers.items()}
        yield Scene(engine, folder, addresses)


class Runs:
    """A partner whose list of runs the test changes."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self.records = list(records)
        self.requests = 0

    def __call__(self, _: Request) -> Reply:
        self.requests += 1
        return runs_reply(self.records)


def ask(found: Scene, seconds: float = 60.0) -> News:
    return ask_partners(found.engine, found.partners, ingested_pipelines(found.engine), datetime.now(UTC), seconds)


def test_only_what_the_ledger_does_not_know_is_news(engine: sa.Engine, tmp_path: Path) -> None:
    runs = Runs(stamped("r1", "running"))
    with scene(engine, tmp_path, one=runs, two=Runs(stamped("q1"))) as found:
        assert set(ask(found).unknown) == {"one", "two"}
        assert runs.requests == 0, "a pipeline that was never read needs no question"
        found.ingest()
        assert (ask(found).unknown, sorted(ask(found).nothing)) == ({}, ["one", "two"])
        runs.records.append(stamped("r2"))
        assert set(ask(found).unknown) == {"one"}
        assert ask(found).unknown == ask(found).unknown, "the same news has the same digest"
        first = ask(found).unknown
        runs.records[0] = stamped("r1", "failed")
        assert ask(found).unknown.keys() == first.keys() and ask(found).unknown != first
        found.ingest()
        assert ask(found).nothing == ["one", "two"]


def test_an_end_without_any_version_is_news_if_it_was_seen_later(engine: sa.Engine) -> None:
    """As of a platform whose runs may start again under their id and say nothing of when they changed."""
    pipeline = add_pipeline(engine, "a")
    at = datetime(2026, 3, 2, 12, tzinfo=UTC)
    known = observation(pipeline.id, "r1", status=RunStatus.RUNNING, observed_at=at)
    with engine.begin() as connection:
        merge_runs(connection, [known])
    ended = msgspec.structs.replace(known, status=RunStatus.FAILED, observed_at=at + timedelta(seconds=30))
    assert unknown_runs(engine, [ended]) == {ended.key}
    assert unknown_runs(engine, [known]) == set()
    earlier = msgspec.structs.replace(ended, observed_at=at - timedelta(seconds=1))
    assert unknown_runs(engine, [earlier]) == set()


def test_asking_stores_nothing(engine: sa.Engine, tmp_path: Path) -> None:
    runs = Runs(stamped("r1"))
    with scene(engine, tmp_path, one=runs) as found:
        found.ingest()
        before = found.pipeline("one")
        runs.records.append(stamped("r2", "failed"))
        assert ask(found).unknown
        assert found.runs("one") == ["r1"]
        assert found.pipeline("one") == before


def test_a_partner_that_does_not_answer_or_failed_lately_keeps_nobody_waiting(
    engine: sa.Engine, tmp_path: Path
) -> None:
    good, bad = Runs(stamped("r1")), Runs(stamped("r1"))
    state: dict[str, Callable[[Request], Reply]] = {"bad": bad, "slow": Runs(stamped("r1"))}
    held = Held(runs_reply([]))
    with scene(engine, tmp_path, good=good, bad=lambda r: state["bad"](r), slow=lambda r: state["slow"](r)) as found:
        found.ingest()
        good.records.append(stamped("r2"))
        state["slow"], state["bad"] = held, lambda _: status_reply(401)
        # It ends, although the slow one never answers.
        news = ask(found, 1.0)
        assert (set(news.unknown), sorted(news.unanswered)) == ({"good"}, ["bad", "slow"])
        assert held.asked.is_set()
        found.engine.dispose()
        held.let_go()
        found.ingest()
        asked = bad.requests
        state["bad"] = bad
        assert ask(found).unanswered == ["bad"], "it is left alone until its next attempt is due"
        assert bad.requests == asked


@pytest.mark.parametrize(
    ("cursor", "unknown", "due"),
    [
        (None, {"a": "1"}, ["a"]),
        ({"a": ["1", 1, NOW.timestamp()]}, {"a": "1"}, []),
        ({"a": ["1", 1, NOW.timestamp()]}, {"a": "2"}, ["a"]),
        ({"a": ["1", 1, (NOW - ASK_AGAIN).timestamp()]}, {"a": "1"}, ["a"]),
        ({"a": ["1", 2, (NOW - 9 * ASK_AGAIN).timestamp()]}, {"a": "1"}, []),
        ({"a": ["1", 2, NOW.timestamp()]}, {"a": "1", "b": "1"}, ["b"]),
        ({"a": ["1", 1, NOW.timestamp()]}, {}, []),
    ],
)
def test_the_same_news_starts_a_sync_once_and_once_more(
    cursor: dict[str, Any] | None, unknown: dict[str, str], due: list[str]
) -> None:
    found, after = requests_for(News(unknown=unknown), cursor and orjson.dumps(cursor).decode(), NOW)
    assert found == due
    assert orjson.loads(after).keys() == unknown.keys()
    assert requests_for(News(unknown=unknown), after, NOW)[0] == []


def test_news_of_a_partner_that_does_not_answer_for_a_while_is_not_new_again() -> None:
    _, cursor = requests_for(News(unknown={"a": "1"}), None, NOW)
    _, cursor = requests_for(News(unanswered=["a"]), cursor, NOW)
    assert requests_for(News(unknown={"a": "1"}), cursor, NOW)[0] == []
