"""Usage errors are reported in one line with the fix and exit code 2, without a traceback."""

from pathlib import Path

import pytest

from chm_dagster_tests.cli.conftest import Chm


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("statsu", "statsu: no such command; did you mean status?"),
        ("xyzzy", "xyzzy: no such command; see `chm --help`"),
        ("client lst", "lst: no such command; did you mean list?"),
        ("client list --al", "--al: no such option; did you mean --all?"),
        ("pipeline create a b --cron x", "--cron: no such option; did you mean --schedule-cron?"),
        ("client list --xyzzy", "--xyzzy: no such option; see `chm client list --help`"),
        ("client list --limit", "--limit: requires an argument"),
        ("client list --limit many", "--limit: must be a whole number; see `chm client list --help`"),
        ("client list --limit 0", "--limit: must be at least 1; see `chm client list --help`"),
        ("client get", "CLIENT: is required; see `chm client get --help`"),
        ("client get a b", "got unexpected extra argument(s) (b); see `chm client get --help`"),
        ("client list --format xml", "--format: must be one of table, json, yaml; see `chm client list --help`"),
        (
            "pipeline list --platform airflo",
            "--platform: must be one of airflow, dbt, cron, vendor_api, custom, prefect, dagster, airbyte, "
            "fivetran, databricks, github_actions; did you mean airflow?",
        ),
        (
            "rule create --type on_failure --destination x",
            "--channel: is required: one of slack, email, webhook, apprise, inbox; see `chm rule create --help`",
        ),
        (
            "run record a/b --status success --duration-seconds long",
            "--duration-seconds: must be a number; see `chm run record",
        ),
        ("flaky --threshold 2", "--threshold: must be at most 1; see `chm flaky --help`"),
    ],
)
def test_a_usage_error_is_reported_in_one_line(call: Chm, words: str, said: str) -> None:
    answer = call(*words.split())
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith(said)


@pytest.mark.parametrize("words", ["", "client", "run", "inventory"])
def test_without_a_command_the_list_of_commands_is_shown(call: Chm, words: str) -> None:
    answer = call(*words.split())
    assert (answer.code, answer.err) == (2, "")
    assert "Commands" in answer.out or "Health" in answer.out


def test_a_name_in_a_message_is_not_interpreted_as_markup(acme: Chm) -> None:
    assert acme("client", "get", "[red]x[/red]").errors[0].startswith("no client '[red]x[/red]'")
    acme("client", "update", "acme", "--name", "[red]Acme[/red]")
    assert "[red]Acme[/red]" in acme("client", "list", "--format", "table").out


def test_control_characters_are_not_printed_to_the_terminal(acme: Chm) -> None:
    for words in (("client", "get", "a\x1b[2Jb"), ("pipeline", "get", "a\x07/b"), ("a\x1b[2Jb",), ("--a\x1b[2Jb",)):
        answer = acme(*words)
        assert answer.code == 2
        assert answer.errors[0].isprintable()


def test_all_invalid_settings_are_reported_at_once_without_their_values(
    call: Chm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHM_DATABASE_URL", "mysql://u:hunter2@h/d")
    monkeypatch.setenv("CHM_DAGSTER_DATABASE_URL", "sqlite://hunter3")
    answer = call("client", "list")
    assert answer.code == 2
    assert [error.split()[0] for error in answer.errors] == ["CHM_DATABASE_URL", "CHM_DAGSTER_DATABASE_URL"]
    assert "hunter" not in answer.err


def test_an_unreachable_database_is_reported_in_one_line(
    call: Chm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CHM_DATABASE_URL", "CHM_DAGSTER_DATABASE_URL"):
        monkeypatch.setenv(name, f"postgresql://u:hunter2@/d?host={tmp_path}")
    answer = call("client", "list")
    assert answer.code == 2
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith("the database does not answer: ")
    assert "hunter2" not in answer.err


def test_an_unmigrated_database_is_reported_with_the_fix(
    call: Chm, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHM_DATABASE_URL", "CHM_DAGSTER_DATABASE_URL"):
        monkeypatch.setenv(name, empty_database_url)
    answer = call("status")
    assert answer.code == 2
    assert ["`chm migrate`" in error for error in answer.errors] == [True]
    assert call("migrate").code == 0
    assert call("status").code == 0
