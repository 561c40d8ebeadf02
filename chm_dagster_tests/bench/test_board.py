"""The board's part of the benchmark on a small ledger: it measures every page, and a page that fails is no figure."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from bench import board
from chm_dagster.api.pages import _LISTS
from chm_dagster.warehouse.warehouse import Warehouse


@pytest.mark.alone
@pytest.mark.slow
def test_every_page_is_measured(small_ledger: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    found = board.run(small_ledger, quick=True)
    assert len(found) == len(_LISTS) + len({"overview, a week ago", "client", "pipeline", "run"})
    printed = capsys.readouterr().out
    for name, page in found.items():
        assert name in printed
        assert page["bytes"] > 1_000 and page["ratio_to_query"] > 0, name
        for way in ("served", "nothing_kept", "query"):
            assert page[way]["p50_ms"] > 0 and page[way]["p95_ms"] > 0, name


def test_every_list_of_the_board_has_a_figure(engine: sa.Engine) -> None:
    now = datetime.now(UTC)
    paths = {page.path(None) for page in board._pages(Warehouse(engine), now) if page.name not in board.ABOUT_ONE}
    assert set(_LISTS) == {path.split("?")[0] for path in paths}


def test_a_page_that_fails_stops_the_benchmark(engine: sa.Engine) -> None:
    nowhere = board.Page("nowhere", lambda _: "/clients/nobody", lambda _: None)
    with board.served(Warehouse(engine)) as (client, kept, unkept), pytest.raises(AssertionError, match="nowhere: 404"):
        board._measure(nowhere, client, kept, unkept, [None, None])
