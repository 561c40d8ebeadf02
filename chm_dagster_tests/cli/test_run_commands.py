"""`chm run list|latest|get|record`."""

import pytest

from chm_dagster_tests.cli.conftest import Chm

RUN = [
    *("id", "pipeline_id", "external_run_id", "status", "started_at", "finished_at", "duration_seconds"),
    *("rows_processed", "error_message", "status_reason", "source_url", "payload", "attempt", "kind", "queued_at"),
    *("will_retry", "effective_at", "source_version"),
    *("observed_at", "ingested_at", "created_at", "updated_at"),
]


def record(chm: Chm, run: str, status: str = "success", *more: str) -> None:
    answer = chm("run", "record", "acme/orders", "--run", run, "--status", status, *more)
    assert answer.code == 0, answer.err


def test_a_run_is_recorded_step_by_step_with_the_outcome_of_each(acme: Chm) -> None:
    words = ("run", "record", "acme/orders", "--run", "r1")
    begun = acme(*words, "--status", "running", "--started-at", "10m").json
    assert list(begun) == ["outcome", *RUN]
    assert (begun["outcome"], begun["status"], begun["finished_at"]) == ("inserted", "running", None)
    done = acme(*words, "--status", "failed", "--error", "boom", "--rows", "5", "--payload", '{"by": "ann"}').json
    assert (done["outcome"], done["started_at"], done["error_message"]) == ("updated", begun["started_at"], "boom")
    assert (done["rows_processed"], done["payload"]) == (5, {"by": "ann"})
    assert 599 < done["duration_seconds"] < 660
    assert acme(*words, "--status", "failed", "--error", "boom").json["outcome"] == "unchanged"
    assert acme(*words, "--status", "running").json["outcome"] == "stale"
    assert acme("run", "get", "acme/orders", "r1").json == acme("run", "latest", "acme/orders").json


def test_the_same_key_is_one_run(acme: Chm) -> None:
    words = ("run", "record", "acme/orders", "--status", "success", "--idempotency-key", "k1")
    assert acme(*words).json["outcome"] == "inserted"
    assert acme(*words).json["outcome"] == "unchanged"
    assert len(acme("run", "list", "acme/orders").json) == 1


def test_a_pipeline_that_never_ran_has_no_latest_run(acme: Chm) -> None:
    assert acme("run", "latest", "acme/orders").json is None
    assert acme("run", "latest", "acme/orders", "--format", "table").out == "acme/orders has never run\n"
    assert acme("run", "list", "acme/orders").json == []
    assert acme("run", "list", "acme/orders", "--format", "table").out == "None.\n"


def test_runs_are_listed_by_status_time_order_and_limit(acme: Chm) -> None:
    for hours in range(5):
        status = "failed" if hours == 2 else "success"
        record(acme, f"r{hours}", status, "--started-at", f"{hours + 1}h", "--duration-seconds", "60")

    def ids(*filters: str) -> list[str]:
        runs = acme("run", "list", "acme/orders", *filters).json
        assert all(list(run) == RUN for run in runs)
        return [run["external_run_id"] for run in runs]

    assert ids() == ["r0", "r1", "r2", "r3", "r4"]
    assert ids("--order", "asc", "--limit", "2") == ["r4", "r3"]
    assert ids("--status", "failed") == ["r2"]
    assert ids("--since", "150m") == ["r0", "r1"]
    assert ids("--since", "270m", "--until", "90m") == ["r1", "r2", "r3"]


def test_a_table_of_runs_says_how_long_ago_how_long_and_why(acme: Chm) -> None:
    record(
        acme, "r1", "failed", "--started-at", "2h", "--duration-seconds", "90", "--error", "no column amount\n  at 3"
    )
    lines = acme("run", "list", "acme/orders", "--format", "table").out.splitlines()
    assert lines[0].split() == ["when", "status", "took", "rows", "run", "why"]
    assert lines[1].split()[:8] == ["2", "h", "ago", "failed", "1", "min", "30", "s"]
    assert "no column amount at 3" in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("record acme/order --status success", "no pipeline 'acme/order'; did you mean acme/orders?"),
        (
            "record acme/orders --status done",
            "--status: must be one of running, success, failed, canceled, skipped",
        ),
        ("record acme/orders --status success --error x", "error_message: must not be set for a run that is success"),
        ("record acme/orders --status success --started-at noon", "started_at: must be a time such as"),
        ("record acme/orders --status success --payload [1]", "payload: must be an object, not a list"),
        ("record acme/orders --status success --payload {", "--payload: must be JSON: an object"),
        (
            "record acme/orders --status success --url ftp://x",
            "source_url: must be an http:// or https:// link without",
        ),
        ("list acme/orders --since 1h --until 2h", "since: not before until; send an earlier time"),
        ("list acme/orders --limit 0", "--limit: must be at least 1"),
        ("get acme/orders nope", "acme/orders has no run 'nope'"),
    ],
)
def test_a_wrong_value_is_reported_in_one_line_with_the_valid_ones(acme: Chm, words: str, said: str) -> None:
    answer = acme("run", *words.split())
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith(said)


def test_a_secret_in_an_error_is_neither_shown_nor_kept(acme: Chm) -> None:
    error = "connect failed: postgresql://app:hunter2@db/prod"
    words = ("run", "record", "acme/orders", "--run", "r1", "--status", "failed", "--error", error)
    assert "hunter2" not in acme(*words).out
    assert "hunter2" not in acme("run", "list", "acme/orders").out
