"""`chm alert` and `chm rule send-test`."""

import http.server
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chm_dagster.installation import configured
from chm_dagster_tests.cli.conftest import Chm

START = "2026-03-01T06:00:00Z"


class Hook(http.server.BaseHTTPRequestHandler):
    """Accepts webhooks, or answers with the status that is set."""

    received: list[dict[str, Any]]
    status: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append({**json.loads(body), "id": self.headers["webhook-id"], "path": self.path})
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hook]]:
    """A receiver that is set up as the endpoint `ops-pager`."""
    handler = type("OwnHook", (Hook,), {"received": [], "status": 204})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("CHM_WEBHOOK_URL_OPS_PAGER", f"http://127.0.0.1:{server.server_port}/hooks/k3y")
        monkeypatch.setenv("CHM_WEBHOOK_SECRET_OPS_PAGER", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        yield handler
        server.shutdown()


@pytest.fixture
def failing(acme: Chm) -> Chm:
    """A pipeline without a partner that failed, and a rule about it."""
    acme("pipeline", "create", "acme", "Nightly", "--platform", "cron", "--type", "export")
    acme("run", "record", "acme/nightly", "--status", "failed", "--run", "r1", "--error", "ValueError: no price")
    acme(
        "rule",
        "create",
        "--pipeline",
        "acme/nightly",
        "--type",
        "on_failure",
        "--channel",
        "webhook",
        "--destination",
        "ops-pager",
    )
    return acme


def test_an_alert_opens_is_acknowledged_and_recovers(failing: Chm, hook: type[Hook]) -> None:
    assert failing("alert", "list").json == []
    assert failing("alert", "run").json == {"open_episodes": 1, "delivered": 1, "failed": []}
    [message] = hook.received
    [notice] = message["data"]["notices"]
    assert (notice["kind"], notice["pipeline"], notice["error"]) == ("opened", "acme/nightly", "ValueError: no price")
    answer = failing("alert", "list")
    listed = answer.json
    assert answer.code == 1
    assert [(row["pipeline_slug"], row["rule_type"], row["failures"]) for row in listed] == [
        ("nightly", "on_failure", 1)
    ]
    assert failing("alert", "ack", listed[0]["episode_id"][-8:], "--by", "Sam").json["acknowledged_by"] == "Sam"
    assert failing("alert", "list").json[0]["acknowledged_by"] == "Sam"
    assert failing("alert", "run").json["delivered"] == 0
    assert failing("run", "record", "acme/nightly", "--status", "success", "--run", "r2").code == 0
    assert failing("alert", "run").json == {"open_episodes": 0, "delivered": 1, "failed": []}
    assert hook.received[1]["data"]["notices"][0]["kind"] == "recovered"
    assert failing("alert", "list").json == []


def test_a_message_that_cannot_be_sent_waits_and_keeps_its_id(failing: Chm, hook: type[Hook]) -> None:
    hook.status = 500
    answer = failing("alert", "run")
    failed = answer.json
    assert answer.code == 1
    assert failed["failed"] == ["webhook ops-pager: /: answered 500"]
    [waiting] = failing("alert", "messages").json
    assert (waiting["attempts"], waiting["destination"], waiting["message_id"]) == (
        1,
        "ops-pager",
        hook.received[0]["id"],
    )


def test_a_message_is_retried_at_the_present_receiver_or_dropped(failing: Chm, hook: type[Hook]) -> None:
    hook.status = 410
    assert failing("alert", "run").code == 1
    [waiting] = failing("alert", "messages").json
    assert waiting["state"] == "undeliverable"
    assert "Undeliverable: webhook ops-pager (webhook ops-pager: /: refused (410))" in "".join(
        failing("status", "--format", "table").out.split("\n")
    )
    hook.status = 204
    assert failing("alert", "run").json["delivered"] == 0
    assert failing("alert", "retry", waiting["message_id"][-8:]).json["id"] == waiting["message_id"]
    assert failing("alert", "run").json["delivered"] == 1
    assert failing("alert", "messages").json == []
    assert "no message" in failing("alert", "retry", "abcd1234").err
    hook.status = 410
    failing("run", "record", "acme/nightly", "--status", "success", "--run", "r2")
    failing("alert", "run")
    [waiting] = failing("alert", "messages").json
    assert failing("alert", "drop", waiting["message_id"]).code == 0
    assert failing("alert", "messages").json == []


def test_the_history_shows_what_is_over(failing: Chm, hook: type[Hook]) -> None:
    failing("alert", "run")
    assert failing("alert", "history").json == []
    failing("run", "record", "acme/nightly", "--status", "success", "--run", "r2")
    failing("alert", "run")
    [row] = failing("alert", "history", "--pipeline", "acme/nightly").json
    assert (row["outcome"], row["failures"], row["pipeline_slug"]) == ("recovered", 1, "nightly")
    assert failing("alert", "history", "--client", "acme", "--since", "24h").json == [row]
    assert "No open alerts." in failing("status", "--format", "table").out


def test_a_channel_that_is_not_set_up_is_named(failing: Chm) -> None:
    answer = failing("alert", "run")
    failed = answer.json
    assert answer.code == 1
    assert failed["failed"] == ["webhook ops-pager: CHM_WEBHOOK_URL_OPS_PAGER is not set"]


def test_a_test_message_says_that_it_is_one(failing: Chm, hook: type[Hook]) -> None:
    [rule] = failing("rule", "list").json
    assert failing("rule", "send-test", rule["id"]).json["sent"] is True
    [notice] = hook.received[0]["data"]["notices"]
    assert (notice["kind"], notice["text"]) == ("test", "a test of the rule on_failure; nothing is wrong")
    assert failing("alert", "messages").json == []


def test_an_unknown_episode_is_an_error(failing: Chm) -> None:
    assert "no open episode" in failing("alert", "ack", "abcd1234").err


def test_the_rules_that_apply_to_a_pipeline_and_why_others_do_not(failing: Chm) -> None:
    of_client = ("rule", "create", "--client", "acme", "--channel", "slack", "--destination", "#ops")
    failing(*of_client, "--type", "on_failure")
    failing(*of_client, "--type", "missed_run")
    disabled = failing(*of_client, "--type", "running_too_long", "--window-minutes", "60").json
    failing("rule", "disable", disabled["id"])
    failing(
        "rule",
        "create",
        "--pipeline",
        "acme/orders",
        "--type",
        "missed_run",
        "--channel",
        "slack",
        "--destination",
        "#o",
    )
    rows = failing("rule", "effective", "acme/nightly").json
    assert [(row["rule_type"], row["scope"], row["applies"], row["why"]) for row in rows] == [
        ("on_failure", "pipeline", True, ""),
        ("on_failure", "client", False, "a rule of the pipeline itself takes its place"),
        ("missed_run", "client", True, ""),
        ("running_too_long", "client", False, "the rule is disabled"),
    ]
    failing("pipeline", "disable", "acme/nightly")
    assert {row["why"] for row in failing("rule", "effective", "acme/nightly").json} == {"the pipeline is disabled"}


def test_the_inbox_shows_what_was_sent_to_it(acme: Chm) -> None:
    assert acme("alert", "inbox").json == []
    acme("run", "record", "acme/orders", "--status", "failed", "--run", "r1", "--error", "ValueError: no price")
    acme("rule", "create", "--client", "acme", "--type", "on_failure", "--channel", "inbox", "--destination", "me")
    assert acme("alert", "run").json["delivered"] == 1
    [message] = acme("alert", "inbox").json
    assert "failing since" in message["subject"]
    assert "ValueError: no price" in message["text"]
    shown = acme("alert", "inbox", "--format", "table").out
    assert "ValueError: no price" in shown
    assert "index.html" in shown


def test_a_rule_is_tested_before_it_wakes_anybody(failing: Chm) -> None:
    [rule] = failing("rule", "list").json
    result = failing("rule", "test", rule["id"], "--days", "2").json
    assert (result["condition"], result["pipelines"], result["episodes"]) == ("on_failure//", 1, 1)
    assert (result["still_open"], result["difference"]) == (1, None)
    changed = failing("rule", "test", rule["id"], "--type", "consecutive_failures", "--threshold", "2").json
    assert (changed["episodes"], changed["difference"]["removed"]) == (0, 1)
    new = failing("rule", "test", "--type", "on_failure", "--pipeline", "acme/nightly", "--format", "table")
    assert "1 episode (1 still open, 0 over within 15 min), 1 message" in new.out
    assert "acme/nightly" in new.out
    assert "Not considered: " in new.out
    assert failing("alert", "list").json == failing("alert", "messages").json == []


def test_what_is_to_be_tested_must_be_said(acme: Chm) -> None:
    [said] = acme("rule", "test").errors
    assert said.startswith("--type: is required, unless there is a RULE")
    [said] = acme("rule", "test", "--type", "consecutive_failures").errors
    assert "threshold: is required for a rule of type consecutive_failures" in said


def test_what_waits_for_the_operator_is_listed_last(acme: Chm) -> None:
    operator = configured().operator()
    now = datetime.now(UTC)
    for minutes in (60, 0):  # CHM did not look for an hour.
        operator.look([], now - timedelta(minutes=minutes))
    [row] = acme("alert", "messages").json
    assert (row["channel"], row["destination"], row["state"], row["notices"]) == ("inbox", "operator", "waiting", 1)
    assert row["clients"] is None
    assert acme("alert", "messages", "--client", "acme").json == [], "it is about no client"
