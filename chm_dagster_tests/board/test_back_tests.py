"""Back-tests of rules on the board: the same answers as those of the API, with a form beside them."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.board.answers import Answers
from chm_dagster.domain.rules import AlertRule
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.board.conftest import browser, served
from chm_dagster_tests.board.test_pages import Links, page, words
from chm_dagster_tests.contracts.histories import watch

ORDERS = "SFSFFSFFFSSFSFF"
"""Failures in a row: 1, 2, 3, 1, 2; the last two go on."""


@pytest.fixture
def rule(warehouse: Warehouse, engine: Engine) -> AlertRule:
    """Two failures in a row, of a client with two pipelines; another client's fail as well."""
    watch(engine, ORDERS, "orders", "Acme")
    watch(engine, "SSSFFS", "stock", "Acme")
    watch(engine, "FFFF", "sales", "Bolt")
    return warehouse.rules.create(
        {
            "client_id": "acme",
            "rule_type": "consecutive_failures",
            "threshold": 2,
            "channel": "slack",
            "destination": "#d",
        }
    )


def address(rule: AlertRule, query: str = "") -> str:
    return f"/rules/{rule.id}/test{query}"


def tiles(text: str) -> list[str]:
    return [words(tile) for tile in re.findall(r'<a class="tile".*?</a>', text)]


def test_the_page_of_rules_links_to_a_back_test_of_each(board: httpx.Client, rule: AlertRule) -> None:
    text = page(board, "/rules")
    assert address(rule) in Links(text).hrefs
    assert 'aria-label="Back-test acme: 2 failures in a row"' in text


def test_rules_come_in_pages_and_their_number_is_that_of_all(
    board: httpx.Client, rule: AlertRule, engine: sa.Engine
) -> None:
    more = (
        "INSERT INTO alert_rules (client_id, rule_type, channel, destination)"
        " SELECT client_id, 'on_failure', 'slack', '#' || n FROM alert_rules, generate_series(1, 1000) AS n"
    )
    with engine.begin() as connection:
        connection.execute(sa.text(more))
    first = page(board, "/rules")
    assert "1 to 50 of 1,000 rules." in words(first)
    assert "These are the first 1,000 rules" in words(first)
    assert "951 to 1,000 of 1,000 rules." in words(page(board, "/rules?from=950"))
    beyond = words(page(board, "/rules?from=2000&client=acme"))
    assert "There are 1,000 rules, fewer than this page begins after." in beyond
    assert "nobody is notified" not in beyond
    assert "No alert rules" in words(page(board, "/rules?client=bolt"))


def test_the_page_shows_what_the_api_answers(board: httpx.Client, rule: AlertRule) -> None:
    answer = board.post(f"/api/v1/alert_rules/{rule.id}/test", json={"days": 30}).json()
    assert (answer["episodes"], answer["pipelines"], answer["still_open"]) == (4, 2, 1)
    text = page(board, address(rule))
    assert tiles(text)[:3] == [
        "4 episodes, 1 still open",
        f"{answer['messages']} messages",
        f"{answer['short_episodes']} over within 15 min",
    ]
    assert f"{answer['unknown_share']:.1%} of the time nothing is known" in tiles(text)
    shown = words(text)
    assert "Back-test: 2 failures in a row" in shown
    assert "acme / orders 3" in shown
    assert "2 active pipelines of acme" in shown
    assert all(sentence in shown for sentence in answer["not_considered"])
    assert "bolt" not in shown
    episodes = text[text.index('<h2 id="episodes">') : text.index('<h2 id="noisiest">')]
    assert re.findall(r'href="/clients/acme/(\w+)"', episodes) == [
        one["pipeline"].removeprefix("acme/") for one in answer["latest"]
    ]


def test_an_episode_links_to_its_pipeline_as_it_was(board: httpx.Client, rule: AlertRule) -> None:
    episodes = page(board, address(rule)).partition('<h2 id="episodes">')[2]
    addresses = re.findall(r'<td><a href="(/clients/acme/\w+\?at=[^"]+)"', episodes)
    assert len(addresses) == 4
    for one in addresses:
        assert "✕ failing" in words(page(board, one)).partition("Back to now")[2]


def test_other_parameters_are_compared_with_the_rule_as_it_is(board: httpx.Client, rule: AlertRule) -> None:
    text = page(board, address(rule, "?threshold=3&days=7"))
    shown = words(text)
    assert "Back-test: 3 failures in a row" in shown
    assert "as it is: 2 failures in a row 4 " in shown
    assert "as tested: 3 failures in a row 1 " in shown
    assert "0 episodes would be new: the rule as it is was silent at those times. 3 episodes would be gone." in shown
    assert {address(rule), address(rule, "?days=7")} <= set(Links(text).hrefs)
    assert "Compared with" not in page(board, address(rule, "?threshold=2&days=7"))


@pytest.mark.parametrize(
    ("query", "field", "issue"),
    [
        ("?days=91", "days", "must be at most 90"),
        ("?days=0", "days", "must be at least 1"),
        ("?days=-1", "days", "must be a whole number, not negative"),
        ("?days=lunch&threshold=3", "days", "must be a whole number, not negative"),
        ("?threshold=99999999999", "threshold", "must be a whole number of at most 2,147,483,647"),
        ("?window_minutes=5", "window_minutes", "has no meaning for a rule of type consecutive_failures"),
    ],
)
def test_a_value_that_is_refused_is_named_beside_the_form(
    board: httpx.Client, rule: AlertRule, query: str, field: str, issue: str
) -> None:
    text = page(board, address(rule, query), 400)
    (alert,) = re.findall(r'<p id="problem" role="alert">(.*?)</p>', text)
    assert alert.startswith(f"{field}: {issue}")
    inputs = {attributes.get("name"): attributes for tag, attributes in Links(text).tags if tag == "input"}
    assert [name for name, attributes in inputs.items() if "aria-invalid" in attributes] == (
        [field] if field in inputs else []
    )
    assert tiles(text) == []


def test_a_field_that_is_empty_stands_for_the_rules_own_value(board: httpx.Client, rule: AlertRule) -> None:
    assert tiles(page(board, address(rule, "?days=&threshold="))) == tiles(page(board, address(rule)))


def test_a_rule_that_does_not_exist_is_not_found(board: httpx.Client, rule: AlertRule) -> None:
    for wrong in ("none", "01900000-0000-7000-8000-00000000ffff"):
        assert "Not found" in words(page(board, f"/rules/{wrong}/test", 404))


def test_a_rule_about_very_many_pipelines_is_tested_for_fewer_days(
    warehouse: Warehouse, engine: Engine, rule: AlertRule
) -> None:
    """All of them failed twice, and each is played."""
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "WITH more AS ("
                " INSERT INTO pipelines (client_id, name, slug, platform, pipeline_type)"
                " SELECT id, 'p' || n, 'p' || n, 'custom', 'ingestion' FROM clients, generate_series(1, 3998) AS n"
                " WHERE slug = 'acme' RETURNING id)"
                " INSERT INTO runs (pipeline_id, external_run_id, status, started_at, finished_at)"
                " SELECT id, 'r' || n, 'failed', now() - n * interval '1 day', now() - n * interval '23 hours'"
                " FROM more, generate_series(1, 2) AS n"
            )
        )
    answers = Answers(warehouse, costly=float("inf"), longest=float("inf"))
    with served(warehouse, answers=answers) as url, browser(url) as board:
        text = page(board, address(rule))
        assert "25" in re.findall(r'name="days" value="(\d+)"', text)
        assert tiles(text)[0] == "4,002 episodes, 3,999 still open"
        refused = words(page(board, address(rule, "?days=26"), 400))
    assert "days: must be at most 25 on this page, because the rule is about 4,000 pipelines" in refused


def test_a_back_test_that_takes_too_long_ends_with_what_to_do(warehouse: Warehouse, rule: AlertRule) -> None:
    with served(warehouse, answers=Answers(warehouse, longest=0.0)) as url, browser(url) as board:
        text = page(board, address(rule, "?days=7&threshold=1"), 400)
    (alert,) = re.findall(r'<p id="problem" role="alert">(.*?)</p>', text)
    assert alert.startswith("days: take longer than 0 s here; test fewer")
    assert f"`chm rule test {str(rule.id)[-12:]}`" in alert
    assert tiles(text) == []


def test_other_pages_answer_while_back_tests_are_at_work(board: httpx.Client, engine: Engine, rule: AlertRule) -> None:
    """Whoever holds the runs holds a back-test; the others are asked to come back, and no page waits for it."""
    own = board.post(
        "/api/v1/alert_rules",
        json={"pipeline_id": "acme/orders", "rule_type": "on_failure", "channel": "slack", "destination": "#d"},
    ).json()["id"]
    with ThreadPoolExecutor(4) as people:
        with engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE"))
            asked = [people.submit(board.get, f"/rules/{own}/test?days={days}", timeout=120) for days in range(1, 5)]
            while _waiting(engine) + sum(one.done() for one in asked) < len(asked):
                time.sleep(0.05)
            assert "Alert rules" in words(page(board, "/rules"))
        found = sorted((one.result() for one in asked), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in found] == [200, 503, 503, 503]
    assert "Another back-test is running. Reload this page in a few seconds." in words(found[1].text)
    assert found[1].headers["Retry-After"] == "5"
    assert board.get(f"/rules/{own}/test?days=2").status_code == 200


def _waiting(engine: Engine) -> int:
    """How many sessions wait for the runs."""
    asked = "SELECT count(*) FROM pg_locks WHERE relation = CAST('runs' AS regclass) AND NOT granted"
    with engine.connect() as connection:
        found: int = connection.execute(sa.text(asked)).scalar_one()
    return found
