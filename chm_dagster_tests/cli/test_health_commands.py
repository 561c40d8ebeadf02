"""`chm failing|changed|errors|flaky|latest|status`."""

from pathlib import Path

import pytest

from chm_dagster_tests.cli.conftest import Answer, Chm


def history(chm: Chm, pipeline: str, letters: str) -> None:
    """Runs of a pipeline, the oldest first, an hour apart, the last one an hour ago: S success, F failed, R running."""
    statuses = {"S": "success", "F": "failed", "R": "running"}
    for number, letter in enumerate(letters):
        words = ["--status", statuses[letter], "--started-at", f"{len(letters) - number}h"]
        words += ["--duration-seconds", "60"] if letter != "R" else []
        words += ["--error", f"boom {number}"] if letter == "F" else []
        assert chm("run", "record", pipeline, "--run", f"r{number}", *words).code == 0


def keys(answer: object) -> list[str]:
    assert isinstance(answer, list)
    return [f"{row['client_slug']}/{row['pipeline_slug']}" for row in answer]


def test_failing_exits_with_1_only_while_something_fails(acme: Chm) -> None:
    history(acme, "acme/orders", "S")
    answer = acme("failing")
    assert (answer.code, answer.json) == (0, [])
    history(acme, "acme/invoices", "SFF")
    answer = acme("failing")
    assert (answer.code, keys(answer.json)) == (1, ["acme/invoices"])
    assert (answer.json[0]["failures"], answer.json[0]["error_message"]) == (2, "boom 2")
    assert acme("failing", "--exit-zero").code == 0
    assert keys(acme("failing", "--exit-zero").json) == ["acme/invoices"]
    assert acme("failing", "--client", "cafe-nord").code == 0
    assert acme("failing", "--environment", "dev").code == 0


def test_the_table_of_failing_pipelines_shows_since_when_and_why(acme: Chm) -> None:
    history(acme, "acme/invoices", "SFF")
    answer = acme("failing", "--format", "table")
    header, row = answer.out.splitlines()
    assert header.split() == ["pipeline", "since", "in", "a", "row", "last", "success", "why"]
    assert row.split() == ["acme/invoices", "2", "h", "ago", "2", "3", "h", "ago", "boom", "2"]
    assert answer.code == 1


def test_changed_compares_with_a_time(acme: Chm) -> None:
    history(acme, "acme/orders", "SSF")
    history(acme, "acme/invoices", "FFS")
    history(acme, "cafe-nord/feed", "S")

    def changes(*words: str) -> dict[str, str]:
        rows = acme("changed", *words).json
        return {row["pipeline_slug"]: row["change"] for row in rows}

    assert changes() == {"orders": "new", "invoices": "new", "feed": "new"}
    assert changes("--since", "90m") == {"orders": "regression", "invoices": "fixed", "feed": "new"}
    assert changes("--since", "90m", "--client", "acme") == {"orders": "regression", "invoices": "fixed"}
    assert changes("--since", "2020-01-01") == {"orders": "new", "invoices": "new", "feed": "new"}
    assert acme("changed", "--since", "lunch").errors == [
        "--since: must be a time such as 2026-01-31T08:00:00Z, or 90m, 24h, 7d, yesterday"
    ]


def test_errors_are_grouped_whatever_numbers_they_contain(acme: Chm) -> None:
    history(acme, "acme/orders", "SFF")
    history(acme, "cafe-nord/feed", "FS")
    (error,) = acme("errors").json
    assert (error["fingerprint"], error["failures"], error["clients"], error["still_failing"]) == ("boom <n>", 3, 2, 1)
    assert acme("errors", "--client", "cafe-nord").json[0]["failures"] == 1
    assert acme("errors", "--platform", "dagster", "--format", "table").out.strip() == "No run failed."
    assert acme("run", "record", "acme/invoices", "--status", "failed", "--error", "lost").code == 0
    assert "1 error more: see --limit." in acme("errors", "--limit", "1", "--format", "table").out
    assert acme("errors", "--since", "2999-01-01").errors == [
        "--since: must not be in the future; name the beginning of the time to look at"
    ]


def test_flaky_pipelines_flip_and_broken_ones_are_not_flaky(acme: Chm) -> None:
    history(acme, "acme/orders", "SFSFSFSFSFSS")
    history(acme, "acme/invoices", "FFFFFFFFFFFF")
    answer = acme("flaky")
    assert (answer.code, keys(answer.json)) == (0, ["acme/orders"])
    assert "●✕●✕●✕●✕●✕●●" in acme("flaky", "--format", "table").out
    assert acme("flaky", "--threshold", "1").json == []
    assert acme("flaky", "--threshold", "2").code == 2


def test_latest_lists_every_active_pipeline_including_those_that_never_ran(acme: Chm) -> None:
    history(acme, "acme/orders", "SF")
    history(acme, "acme/invoices", "SR")
    acme("pipeline", "disable", "cafe-nord/feed")
    acme("pipeline", "create", "cafe-nord", "New", "--platform", "cron", "--type", "export")
    rows = {f"{r['client_slug']}/{r['pipeline_slug']}": r["status"] for r in acme("latest").json}
    assert rows == {"acme/orders": "failed", "acme/invoices": "running", "cafe-nord/new": None}
    assert keys(acme("latest", "--status", "failed").json) == ["acme/orders"]
    assert keys(acme("latest", "--client", "cafe-nord").json) == ["cafe-nord/new"]
    assert "never ran" in acme("latest", "--format", "table").out


def test_status_shows_everything_at_a_glance(acme: Chm) -> None:
    history(acme, "acme/orders", "SF")
    answer = acme("status")
    assert answer.code == 1
    assert acme("status", "--exit-zero").code == 0
    parts = ["clients", "needs_attention", "changed_since_yesterday", "failing_now", "connections"]
    alerts = ["open_episodes", "waiting_messages"]
    assert list(answer.json) == [*parts, *alerts, "last_sync_at", "freshness"]
    assert [row["health"] for row in answer.json["needs_attention"]] == ["failing", "unknown", "unknown"]
    assert keys(answer.json["failing_now"]) == ["acme/orders"]
    assert {c["client_slug"]: c["health"] for c in answer.json["clients"]} == {
        "acme": "failing",
        "cafe-nord": "unknown",
    }
    table = acme("status", "--format", "table").out
    for part in (
        "Café Nord",
        "Needs attention",
        "no run has settled yet",
        "acme/orders",
        "Changed in the last 24 hours",
    ):
        assert part in table


def test_status_and_attention_exit_with_0_only_while_nothing_needs_attention(acme: Chm) -> None:
    history(acme, "acme/orders", "FS")
    answer = acme("attention")
    assert (answer.code, keys(answer.json)) == (1, ["acme/invoices", "cafe-nord/feed"])
    assert acme("status").code == 1
    assert acme("attention", "--exit-zero").code == acme("status", "--exit-zero").code == 0
    assert acme("attention", "--client", "cafe-nord").code == 1
    acme("pipeline", "disable", "acme/invoices")
    acme("pipeline", "disable", "cafe-nord/feed")
    assert acme("attention").code == acme("status").code == acme("status", "--format", "table").code == 0
    assert "Nothing needs attention." in acme("status", "--format", "table").out


def test_status_says_when_partners_were_last_read(acme: Chm) -> None:
    assert acme("status", "--format", "table").out.splitlines()[-1] == "No pipeline is read from a partner."
    acme("pipeline", "update", "acme/orders", "--external-id", "orders_daily")
    answer = acme("status").json
    assert (answer["freshness"], answer["last_sync_at"]) == ("No partner has been read yet: is CHM running?", None)
    assert acme("status", "--format", "table").out.splitlines()[-1] == answer["freshness"]


def test_changed_refuses_a_time_in_the_future(acme: Chm) -> None:
    answer = acme("changed", "--since", "2999-01-01")
    assert (answer.code, answer.errors) == (2, ["--since: must not be in the future; name the time to compare with"])


def test_a_table_of_runs_shows_ids_whole_for_run_get(acme: Chm) -> None:
    run = "scheduled__2026-03-01T06:00:00.123456+00:00"
    assert acme("run", "record", "acme/orders", "--run", run, "--status", "failed", "--started-at", "1h").code == 0
    shown = "".join(line.strip() for line in acme("run", "list", "acme/orders", "--format", "table").out.splitlines())
    assert "…" not in shown
    assert run in shown
    assert acme("run", "get", "acme/orders", run).code == 0


@pytest.mark.parametrize("command", ["attention", "failing", "changed", "flaky", "latest"])
def test_an_unknown_client_is_an_error_and_not_healthy(acme: Chm, command: str) -> None:
    answer = acme(command, "--client", "acm")
    assert (answer.code, answer.errors) == (2, ["no client 'acm'; did you mean acme?"])


# --- chm doctor ------------------------------------------------------------------------------------------------------

PARTNERS = """
connections:
  acme:
    api: airflow
    base_url: https://airflow.example
    credentials: {username: ACME_USER, password: ACME_PASSWORD}
"""


def checks(answer: Answer) -> dict[str, bool]:
    return {row["check"]: row["ok"] for row in answer.json}


def test_doctor_finds_nothing_wrong_with_a_sound_installation(acme: Chm) -> None:
    answer = acme("doctor", "--json")
    assert answer.code == 0
    assert checks(answer) == {"settings": True, "partners file": True, "database": True, "last sync": True}
    lines = acme("doctor", "--format", "table").out.splitlines()
    assert len(lines) == 4 and all(line.startswith("ok ") for line in lines)


def test_doctor_names_what_was_not_read_and_the_fix(acme: Chm) -> None:
    acme("pipeline", "update", "acme/orders", "--external-id", "orders_daily")
    answer = acme("doctor")
    assert answer.code == 1
    sync, connection = (row for row in answer.json if not row["ok"])
    assert "of its 1 pipeline, the one furthest behind was never read" in connection["found"]
    assert sync["check"] == "last sync" and "is CHM running?" in sync["found"] and "chm up" in sync["fix"]
    assert "problem  last sync: No partner has been read yet" in acme("doctor", "--format", "table").out


def test_doctor_names_missing_credentials_and_shows_no_value(
    acme: Chm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "partners.yaml"
    file.write_text(PARTNERS)
    monkeypatch.setenv("CHM_PARTNERS_FILE", str(file))
    monkeypatch.setenv("ACME_USER", "hunter2-user")
    answer = acme("doctor")
    assert answer.code == 1
    (missing,) = [row for row in answer.json if not row["ok"]]
    assert (missing["check"], missing["found"]) == ("credentials of acme", "not set: ACME_PASSWORD")
    monkeypatch.setenv("ACME_PASSWORD", "hunter2")
    answer = acme("doctor")
    assert answer.code == 0 and "hunter2" not in answer.out
    file.write_text("connections: [")
    answer = acme("doctor")
    assert (answer.code, checks(answer)["partners file"]) == (1, False)


def test_doctor_reports_a_database_that_does_not_answer_and_a_wrong_setting(
    acme: Chm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHM_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    answer = acme("doctor")
    assert (answer.code, checks(answer)["database"]) == (1, False)
    monkeypatch.setenv("CHM_DATABASE_URL", "mysql://x")
    answer = acme("doctor")
    assert (answer.code, checks(answer)) == (1, {"settings": False})


def test_every_question_can_be_about_a_time(acme: Chm) -> None:
    history(acme, "acme/orders", "SFFS")
    assert (acme("failing").code, acme("attention", "--client", "acme").json[0]["health"]) == (0, "unknown")
    then = acme("failing", "--at", "90m")
    assert (then.code, keys(then.json), then.json[0]["failures"]) == (1, ["acme/orders"], 2)
    assert keys(acme("attention", "--at", "90m").json)[0] == "acme/orders"
    assert acme("changed", "--at", "90m", "--since", "2h").json[0]["change"] == "regression"
    assert [row["settled_status"] for row in acme("latest", "--at", "90m").json if row["settled_status"]] == ["failed"]
    assert acme("flaky", "--at", "yesterday", "--timezone", "Europe/Berlin").json == []
    assert [row["failures"] for row in acme("errors", "--at", "90m").json] == [2]
    assert [row["failures"] for row in acme("errors", "--at", "150m").json] == [1]
    found = acme("status", "--at", "90m")
    assert (found.code, sum(row["failing"] for row in found.json["clients"])) == (1, 1)
    assert "connections" not in found.json and "open_episodes" not in found.json and "at" in found.json
    assert "from what is known now" in acme("status", "--at", "90m", "--format", "table").out


def test_a_local_time_is_read_in_its_zone_and_nothing_is_said_of_what_is_to_come(acme: Chm) -> None:
    words = ["--run", "r", "--status", "failed", "--started-at", "2026-11-24T07:30:00Z", "--duration-seconds", "60"]
    assert acme("run", "record", "acme/orders", *words).code == 0
    for time, zone, code in (("09:00", "Europe/Berlin", 1), ("08:00", "Europe/Berlin", 0), ("08:00", "UTC", 1)):
        assert acme("failing", "--at", f"2026-11-24 {time}", "--timezone", zone).code == code
    for command in ("failing", "attention", "changed", "flaky", "latest", "status", "errors"):
        answer = acme(command, "--at", "2999-01-01")
        assert (answer.code, answer.errors) == (2, ["--at: must not be in the future"])
    late = acme("changed", "--at", "2026-11-24", "--since", "2026-11-25")
    assert late.errors == ["--since: must not be after --at; name the time to compare with"]
    late = acme("errors", "--at", "2026-11-24", "--since", "2026-11-25")
    assert late.errors == ["--since: must not be after --at; name the beginning of the time to look at"]
