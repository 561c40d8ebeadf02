"""The dashboards' part of the benchmark on a small ledger: it measures every panel and card, as the BI role."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from bench import dashboards
from chm_dagster.presentation import grafana, metabase
from chm_dagster.presentation.dashboards import DASHBOARDS
from chm_dagster.warehouse.named_queries import queries
from chm_dagster_tests.dashboards.test_grafana import filled
from chm_dagster_tests.dashboards.test_metabase import compiled

NOW = datetime(2026, 3, 2, tzinfo=UTC)
TIMES = {"since": NOW - timedelta(days=1), "until": NOW}


@pytest.mark.alone
@pytest.mark.slow
def test_every_panel_and_card_is_measured(small_ledger: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    found = dashboards.run(small_ledger, quick=True)
    assert set(found) == {panel.query for _, panels in DASHBOARDS.values() for panel in panels}
    printed = capsys.readouterr().out
    for name, one in found.items():
        assert name in printed
        assert one["ratio"]["panel"] > 0 and one["ratio"]["card"] > 0, name


@pytest.mark.parametrize("name", queries())
def test_statements_are_those_that_the_tools_send(name: str) -> None:
    query = queries()[name]
    grafana_text = grafana.statement(query)
    for macro, time in (("$__timeFrom()", TIMES["since"]), ("$__timeTo()", TIMES["until"])):
        grafana_text = grafana_text.replace(macro, f"'{time.isoformat()}'")
    assert dashboards.panel(grafana.statement(query), TIMES) == filled(grafana_text).replace("%", "%%")
    text, values = compiled(metabase.statement(query), TIMES)
    for value in values:
        text = text.replace("%s", f"'{value.isoformat()}'", 1)
    assert dashboards.card(metabase.statement(query), TIMES) == text
