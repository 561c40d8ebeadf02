"""The warehouse with a migrated, empty database, and helpers that call it from several threads."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.domain.pipelines import Pipeline
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows


@pytest.fixture
def warehouse(engine: sa.Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture
def orders(warehouse: Warehouse) -> Pipeline:
    """acme/orders: a pipeline that no partner reports."""
    warehouse.clients.create("Acme")
    return warehouse.pipelines.create("acme", {"name": "Orders", "platform": "cron", "pipeline_type": "ingestion"})


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results or exceptions of calls that start simultaneously, each in its own thread."""
    answers: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(n: int) -> None:
        start.wait(timeout=30)
        try:
            answers[n] = calls[n]()
        except Exception as error:
            answers[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return answers


def once_it_waits(engine: sa.Engine, call: Callable[[], Any], then: Callable[[], None]) -> Any:
    """The result or exception of a call that has to wait for a lock; `then` runs as soon as it waits."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(at_once([call])))
    thread.start()
    waiting = (
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(500):
        if rows(engine, waiting)[0]["n"]:
            break
        threading.Event().wait(0.02)
    else:
        raise AssertionError(f"nobody waited: {answers}")
    then()
    thread.join(timeout=30)
    (answer,) = answers
    return answer
