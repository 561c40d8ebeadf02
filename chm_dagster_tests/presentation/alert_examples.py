"""The page docs/alert-messages.md: every kind of message as it is sent. Made-up clients; real rendering.

`python -m chm_dagster_tests.presentation.alert_examples` rewrites the page. A test compares the two.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from chm_dagster.domain.alerts import Evidence, NoticeKind
from chm_dagster.domain.blindness import ConnectionState, Watch, look
from chm_dagster.domain.messages import Item, Message
from chm_dagster.domain.pipelines import Platform
from chm_dagster.domain.rules import Channel, RuleType
from chm_dagster.presentation.alerts import plain, subject

PAGE = Path(__file__).parents[2] / "docs" / "alert-messages.md"
BOARD = "https://chm.example.com"
NOW = datetime(2026, 3, 2, 3, 4, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

HEAD = """# How alert messages read

Every kind of message as an email shows it as text; the first line is the subject. Slack, HTML and webhooks carry the same sentences.
[Alerts](alerts.md) says when each is sent.

![An alert as an HTML email](images/alert-email.png)
"""


def item(client: str, pipeline: str, number: int = 1, **changes: Any) -> Item:
    """A notice about a pipeline of a made-up client: a failure, unless `changes` say otherwise."""
    slug = pipeline.lower().replace(" ", "-")
    fields: dict[str, Any] = {
        "key": f"{client}-{slug}-{number}",
        "kind": NoticeKind.OPENED,
        "rule_id": UUID(int=0xA1E7),
        "rule_type": RuleType.ON_FAILURE,
        "threshold": None,
        "window_minutes": None,
        "episode_id": UUID(int=0xE915 + number),
        "client_slug": client.lower(),
        "client_name": client,
        "pipeline_slug": slug,
        "pipeline_name": pipeline,
        "platform": Platform.AIRFLOW,
        "environment": "prod",
        "since": NOW - 58 * MINUTE,
        "evidence": Evidence(("r1", "r2"), "r2", 2),
    }
    return Item(**(fields | changes))


FAILED = {"error": "KeyError: 'price'", "source_url": "https://airflow.acme.example/dags/orders/runs/r2"}
HOUR_WINDOW = {"threshold": 3, "window_minutes": 60}


def message(*items: Item, **more: Any) -> Message:
    """What one receiver gets at once."""
    return Message(UUID(int=1), Channel.EMAIL, "oncall@example.com", NOW, items, NOW, **more)


def _flaky(client: str, pipeline: str) -> Item:
    return item(client, pipeline, error="OperationalError: warehouse.example.net:5439 refused the connection")


def _blind() -> Message:
    down = ConnectionState("airflow_eu", 42, NOW - 40 * MINUTE, NOW - 35 * MINUTE, "credentials refused (401)")
    watch, _ = look(Watch(NOW - 60 * MINUTE), [], NOW - 55 * MINUTE)
    for minutes in range(50, 0, -5):
        watch, notes = look(watch, [down], NOW - minutes * MINUTE)
        if notes:
            return message(notes=tuple(notes))
    raise AssertionError("an unreadable connection is announced")


EXAMPLES: dict[str, Message] = {
    "A pipeline fails": message(item("Acme", "Orders", **FAILED)),
    "Several failures in a row": message(
        item("Acme", "Orders", rule_type=RuleType.CONSECUTIVE_FAILURES, threshold=2, **FAILED)
    ),
    "Too many failures within an hour": message(
        item(
            "Zeta",
            "Clicks",
            rule_type=RuleType.FAILURES_IN_WINDOW,
            evidence=Evidence(("r1", "r3", "r4"), "r4", 3),
            error="Task ingest exited with 137",
            **HOUR_WINDOW,
        )
    ),
    "No success for too long": message(
        item(
            "Zeta",
            "Billing",
            rule_type=RuleType.NO_SUCCESS_IN_WINDOW,
            window_minutes=1440,
            evidence=Evidence(last_success=NOW - timedelta(days=1, hours=1)),
        )
    ),
    "A run takes too long": message(
        item(
            "Acme",
            "Backup",
            rule_type=RuleType.RUNNING_TOO_LONG,
            evidence=Evidence(("r9",), "r9", 1, limit_minutes=45),
            source_url="https://airflow.acme.example/dags/backup/runs/r9",
        )
    ),
    "A run is missing": message(
        item(
            "Zeta",
            "Export",
            rule_type=RuleType.MISSED_RUN,
            evidence=Evidence(count=2, slot=NOW - timedelta(hours=2)),
        )
    ),
    "A reminder": message(item("Acme", "Orders", kind=NoticeKind.REMINDER, **FAILED)),
    "Recovered": message(
        item("Acme", "Orders", kind=NoticeKind.RECOVERED, until=NOW, source_url=FAILED["source_url"]),
    ),
    "A missing run came late": message(
        item(
            "Zeta",
            "Export",
            kind=NoticeKind.RECOVERED,
            rule_type=RuleType.MISSED_RUN,
            evidence=Evidence(count=1, slot=NOW - timedelta(hours=2)),
            until=NOW,
        )
    ),
    "Corrected": message(
        item("Zeta", "Export", kind=NoticeKind.CORRECTED, rule_type=RuleType.MISSED_RUN, evidence=Evidence(count=1))
    ),
    "No longer watched": message(item("Acme", "Orders", kind=NoticeKind.ENDED, reason="the rule was deleted")),
    "Several at once": message(
        item("Acme", "Orders", **FAILED),
        item("Zeta", "Export", 2, rule_type=RuleType.MISSED_RUN, evidence=Evidence(count=2, slot=NOW - 73 * MINUTE)),
        item("Zeta", "Billing", 3, kind=NoticeKind.RECOVERED, until=NOW),
    ),
    "The same error at many clients": message(
        *(_flaky(client, name) for client, name in (("Acme", "Orders"), ("Beta", "Sales"), ("Zeta", "Export"))),
    ),
    "The same error as shortly before": message(
        item("Zeta", "Export", error=FAILED["error"], same_error_at=("Acme", "Beta")),
    ),
    "Too many messages within an hour": message(
        item("Acme", "Orders", **FAILED), held_until=NOW + 20 * MINUTE, unannounced=3
    ),
    "A test (`chm rule send-test`)": message(item("Acme", "Orders", kind=NoticeKind.TEST)),
    "To the operator: a connection cannot be read": _blind(),
}


def page() -> str:
    """The whole page."""
    parts = [
        f"## {title}\n\n```text\nSubject: {subject(what)}\n\n{plain(what, BOARD).strip()}\n```\n"
        for title, what in EXAMPLES.items()
    ]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
