"""The page of example messages is what CHM sends."""

from chm_dagster.domain.alerts import NoticeKind
from chm_dagster.domain.rules import RuleType
from chm_dagster_tests.presentation.alert_examples import EXAMPLES, PAGE, page


def test_the_page_shows_what_is_sent() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_kind_and_every_type_has_an_example() -> None:
    items = [item for message in EXAMPLES.values() for item in message.items]
    assert {item.kind for item in items} == set(NoticeKind)
    assert {item.rule_type for item in items} == set(RuleType)
