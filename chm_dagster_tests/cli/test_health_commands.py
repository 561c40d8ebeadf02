"""`chm failing|changed|flaky|latest|status`."""

import pytest

from chm_dagster_tests.cli.conftest import Chm


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


def test_the_table_of_what_fails_says_since_when_and_why(acme: Chm) -> None:
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
        "--since: not a time; write a time such as 2026-01-31 or 2026-01-31T06:00:00+00:00, or a span such as 90m, 24h or 7d"
    ]


def test_flaky_is_what_comes_and_goes_not_what_is_broken(acme: Chm) -> None:
    history(acme, "acme/orders", "SFSFSFSFSFSS")
    history(acme, "acme/invoices", "FFFFFFFFFFFF")
    answer = acme("flaky")
    assert (answer.code, keys(answer.json)) == (0, ["acme/orders"])
    assert "SFSFSFSFSFSS" in acme("flaky", "--format", "table").out
    assert acme("flaky", "--threshold", "1").json == []
    assert acme("flaky", "--threshold", "2").code == 2


def test_latest_tells_of_every_active_pipeline_also_of_one_that_never_ran(acme: Chm) -> None:
    history(acme, "acme/orders", "SF")
    history(acme, "acme/invoices", "SR")
    acme("pipeline", "disable", "cafe-nord/feed")
    acme("pipeline", "create", "cafe-nord", "New", "--platform", "cron", "--type", "export")
    rows = {f"{r['client_slug']}/{r['pipeline_slug']}": r["status"] for r in acme("latest").json}
    assert rows == {"acme/orders": "failed", "acme/invoices": "running", "cafe-nord/new": None}
    assert keys(acme("latest", "--status", "failed").json) == ["acme/orders"]
    assert keys(acme("latest", "--client", "cafe-nord").json) == ["cafe-nord/new"]
    assert "never ran" in acme("latest", "--format", "table").out


def test_status_is_all_of_it_in_one_look(acme: Chm) -> None:
    history(acme, "acme/orders", "SF")
    answer = acme("status")
    assert answer.code == 0
    assert list(answer.json) == ["clients", "failing_now", "changed_since_yesterday"]
    assert {c["client_slug"]: c["health"] for c in answer.json["clients"]} == {
        "acme": "failing",
        "cafe-nord": "unknown",
    }
    table = acme("status", "--format", "table").out
    for part in ("Café Nord", "Failing now", "acme/orders", "Changed in the last 24 hours"):
        assert part in table


@pytest.mark.parametrize("command", ["failing", "changed", "flaky", "latest"])
def test_a_client_that_is_not_there_is_not_a_healthy_one(acme: Chm, command: str) -> None:
    answer = acme(command, "--client", "acm")
    assert (answer.code, answer.errors) == (2, ["no client 'acm'; did you mean acme?"])
