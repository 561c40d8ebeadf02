"""The inbox: a receiver on this machine that needs no configuration."""

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from chm_dagster.alerting import inbox as inbox_module
from chm_dagster.alerting.channels import Channels
from chm_dagster.alerting.delivering import deliver
from chm_dagster.alerting.inbox import Inbox
from chm_dagster.cli.up import add_sandbox_rules
from chm_dagster.domain.rules import Channel
from chm_dagster.errors import ConfigError, Transient
from chm_dagster_tests.alerting.situations import World
from chm_dagster_tests.alerting.test_channels import item, message, send
from chm_dagster_tests.unit.test_alert_evaluation import at

TO_INBOX = message(Channel.INBOX, "operator")


def test_what_is_sent_is_kept_and_shown_on_a_page(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox")
    assert inbox.messages() == []
    send(Channels(inbox=inbox), TO_INBOX)
    assert inbox.messages() == [TO_INBOX]
    page = inbox.page.read_text()
    assert "KeyError: &#x27;price&#x27; &lt;!channel&gt;" in page
    assert "<b>&" not in page
    assert (tmp_path / "inbox").stat().st_mode & 0o077 == 0


def test_a_repeated_message_is_one(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.put(TO_INBOX)
    inbox.put(msgspec.structs.replace(TO_INBOX, attempts=3))
    assert [m.id for m in inbox.messages()] == [TO_INBOX.id]


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "KEPT", 3)
    inbox = Inbox(tmp_path)
    for n in range(5):
        later = message(Channel.INBOX, "operator", item(n))
        inbox.put(msgspec.structs.replace(later, created_at=TO_INBOX.created_at + timedelta(minutes=n)))
    assert [m.items[0].pipeline_slug for m in inbox.messages()] == ["orders-4", "orders-3", "orders-2"]


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "inbox").write_text("a file")
    with pytest.raises(Transient, match="inbox: cannot write"):
        send(Channels(inbox=Inbox(tmp_path / "inbox")), TO_INBOX)
    with pytest.raises(ConfigError):
        send(Channels(), TO_INBOX)


def test_the_sandbox_begins_with_rules_that_notify_the_inbox(engine: sa.Engine, tmp_path: Path) -> None:
    """A newcomer sees an alert open and recover without configuring anything."""
    world = World(engine)
    pipeline = world.pipeline("acme/orders")
    world.pipeline("zeta/orders")
    assert add_sandbox_rules(world.warehouse) == 4
    inbox = Inbox(tmp_path)
    for hour, runs in ((4.0, "S1 F2"), (5.0, "S1 F2 S3")):
        world.runs(pipeline, runs)
        world.known(hour, pipeline)
        world.evaluate(hour)
        report = deliver(engine, Channels(inbox=inbox), lambda: at(hour))  # noqa: B023
        assert report is not None and len(report.delivered) == 1
    assert [m.items[0].kind for m in inbox.messages()] == ["recovered", "opened"]
