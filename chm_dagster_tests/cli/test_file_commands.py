"""`chm inventory apply|export` and `chm run import`: files in, files out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from chm_dagster_tests.cli.conftest import Chm
from chm_dagster_tests.factories import rows

FILE = """\
clients:
  acme:
    name: Acme GmbH
    pipelines:
      orders:
        grace_minutes: 15
      lake: {name: Lake, platform: airflow, pipeline_type: transform}
"""
RUNS = """\
pipeline,id,status,started_at,finished_at,owner
acme/orders,r1,success,2026-03-01T06:00:00Z,2026-03-01T06:10:00Z,ann
acme/order,r2,success,2026-03-01T06:00:00Z,,
acme/orders,r3,failed,2026-03-01 06:00,,
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(RUNS)
    return path


def test_a_dry_run_exits_with_1_while_there_is_a_difference_and_writes_nothing(acme: Chm, inventory: Path) -> None:
    dry = acme("inventory", "apply", "-f", inventory, "--dry-run")
    assert dry.code == 1
    assert {name: dry.json[name] for name in ("dry_run", "created", "updated", "unchanged")} == {
        "dry_run": True,
        "created": 1,
        "updated": 2,
        "unchanged": 0,
    }
    assert dry.json["changes"][1] == {
        "action": "update",
        "kind": "pipeline",
        "key": "acme/orders",
        "line": 5,
        "fields": {"grace_minutes": {"old": None, "new": 15}},
    }
    assert acme("inventory", "apply", "-f", inventory, "--dry-run", "--exit-zero").code == 0
    assert acme("pipeline", "get", "acme/lake").code == 2
    real = acme("inventory", "apply", "-f", inventory)
    assert (real.code, real.json["changes"]) == (0, dry.json["changes"])
    assert acme("pipeline", "get", "acme/lake").code == 0
    again = acme("inventory", "apply", "-f", inventory, "--dry-run")
    assert (again.code, again.json["changes"], again.json["unchanged"]) == (0, [], 3)


def test_the_difference_is_shown_in_a_readable_form(acme: Chm, inventory: Path) -> None:
    assert acme("inventory", "apply", "-f", inventory, "--format", "table").out.splitlines() == [
        "~ client acme",
        "    name: Acme -> Acme GmbH",
        "~ pipeline acme/orders",
        "    grace_minutes: (empty) -> 15",
        "+ pipeline acme/lake",
        "    name: Lake",
        "    platform: airflow",
        "    pipeline_type: transform",
        "1 created, 2 updated, 0 unchanged",
    ]
    inventory.write_text("clients: {acme: {pipelines: {orders: {grace_minutes: null}}}}")
    assert "    grace_minutes: 15 -> (empty)" in acme("inventory", "apply", "-f", inventory, "--format", "table").out


def test_applying_an_exported_file_changes_nothing(acme: Chm, tmp_path: Path) -> None:
    acme("pipeline", "disable", "acme/orders")
    path = tmp_path / "out.yaml"
    wrote = acme("inventory", "export", "-f", path)
    assert (wrote.code, wrote.out, wrote.err) == (0, "", f"wrote 2 clients to {path}\n")
    assert path.read_text() == acme("inventory", "export").out
    assert acme("inventory", "apply", "-f", path, "--dry-run").json["changes"] == []
    assert acme("inventory", "export", "--format", "json").json == acme("inventory", "export").yaml
    assert acme("inventory", "export").yaml["clients"]["acme"]["pipelines"]["orders"]["is_active"] is False


def test_each_mistake_in_a_file_is_reported_on_its_own_line(acme: Chm, inventory: Path) -> None:
    inventory.write_text("clients:\n  acme:\n    pipelines:\n      orders: {grace_minutes: -1, platform: airflo}\n")
    answer = acme("inventory", "apply", "-f", inventory)
    assert (answer.code, answer.out) == (2, "")
    assert [error.rpartition(":")[0] for error in answer.errors] == [
        "line 4: acme/orders: platform",
        "line 4: acme/orders: grace_minutes",
    ]


@pytest.mark.parametrize("command", ["inventory apply -f", "run import"])
def test_a_missing_file_is_named(acme: Chm, command: str, tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    answer = acme(*command.split(), path)
    assert answer.code == 2
    assert answer.errors[0].endswith(f"cannot read {path} (No such file or directory)")


def test_an_import_counts_every_row_and_reports_and_keeps_the_bad_ones(acme: Chm, runs: Path) -> None:
    answer = acme("run", "import", runs)
    assert answer.code == 1
    assert answer.json == {
        "rows": 3,
        "inserted": 1,
        "updated": 0,
        "unchanged": 0,
        "stale": 0,
        "rejected": 2,
        "rejections": [
            {"line": 3, "reason": "pipeline: no pipeline 'acme/order'; did you mean acme/orders?"},
            {
                "line": 4,
                "reason": "started_at: has no time zone; write an offset such as Z or +02:00, or give --timezone",
            },
        ],
        "rejects_file": f"{runs}.rejects.jsonl",
        "kept": ["owner"],
    }
    assert len(Path(f"{runs}.rejects.jsonl").read_text().splitlines()) == 2
    runs.write_text(RUNS.replace("acme/order,", "acme/orders,"))
    mended = acme("run", "import", runs, "--timezone", "Europe/Berlin")
    assert (mended.code, mended.json["inserted"], mended.json["unchanged"]) == (0, 2, 1)
    assert not Path(f"{runs}.rejects.jsonl").exists()
    again = acme("run", "import", runs, "--timezone", "Europe/Berlin")
    assert (again.json["unchanged"], again.json["rows"]) == (3, 3)
    assert acme("run", "get", "acme/orders", "r3").json["started_at"].startswith("2026-03-01T05:00:00")


def test_a_person_sees_the_outcome_of_the_rows_and_the_reasons_for_rejections(acme: Chm, runs: Path) -> None:
    answer = acme("run", "import", runs, "--format", "table")
    assert answer.out.splitlines() == [
        "3 rows: inserted 1, updated 0, unchanged 0, stale 0, rejected 2",
        f"all rejected rows with their reasons are in {runs}.rejects.jsonl",
        "kept with the runs, but no field of theirs: owner",
    ]
    assert answer.err.splitlines()[0] == "line 3: pipeline: no pipeline 'acme/order'; did you mean acme/orders?"


def test_json_lines_for_a_single_pipeline_need_not_name_it(acme: Chm, tmp_path: Path, engine: sa.Engine) -> None:
    acme("pipeline", "disable", "acme/orders")
    path = tmp_path / "runs.jsonl"
    path.write_text(
        '{"id": 1, "status": "ok", "started_at": "2026-03-01T06:00:00Z", "finished_at": "2026-03-01T07:00:00Z"}\n'
    )
    answer = acme("run", "import", path, "--pipeline", "acme/orders", "--rejects", tmp_path / "elsewhere")
    assert (answer.code, answer.json["inserted"]) == (0, 1)
    assert rows(engine, "SELECT status, duration_seconds FROM runs") == [
        {"status": "success", "duration_seconds": 3600}
    ]


def test_an_export_of_runs_is_imported_again(acme: Chm, tmp_path: Path) -> None:
    acme("run", "record", "acme/orders", "--run", "r1", "--status", "failed", "--error", "boom", "--started-at", "2h")
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"\n".join(_line(run) for run in acme("run", "list", "acme/orders").json))
    assert acme("run", "import", path, "--pipeline", "acme/invoices").json["inserted"] == 1
    copy = acme("run", "latest", "acme/invoices").json
    assert (copy["external_run_id"], copy["status"], copy["error_message"]) == ("r1", "failed", "boom")


def _line(run: object) -> bytes:
    import orjson

    return orjson.dumps(run)


def test_the_content_of_a_file_is_as_old_as_the_file(acme: Chm, runs: Path) -> None:
    line = "pipeline,id,status,started_at\nacme/orders,r1,{},2026-03-01T06:00:00Z\n"
    runs.write_text(line.format("success"))
    assert acme("run", "import", runs).json["inserted"] == 1
    runs.write_text(line.format("failed"))
    an_hour_ago = runs.stat().st_mtime - 3_600
    os.utime(runs, (an_hour_ago, an_hour_ago))
    assert acme("run", "import", runs).json["stale"] == 1
    assert acme("run", "import", runs, "--as-of", "2h").json["stale"] == 1
    assert acme("run", "import", runs, "--as-of", "0s").json["updated"] == 1
    os.utime(runs, (0, 0))
    assert acme("run", "import", runs).json["unchanged"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pipeline", "acme/order"], "no pipeline 'acme/order'; did you mean acme/orders?"),
        (["--timezone", "Berlin"], "--timezone: must be the name of an IANA time zone; did you mean Europe/Berlin?"),
        (["--as-of", "then"], "--as-of: must be a time"),
        (["--as", "xml"], "--as: must be one of csv, jsonl"),
        (["--rejects", "/none/such"], "--rejects: cannot write /none/such (No such file or directory)"),
    ],
)
def test_an_import_that_fails_says_why(acme: Chm, runs: Path, words: list[str], said: str) -> None:
    answer = acme("run", "import", runs, *words)
    assert (answer.code, answer.out) == (2, "")
    assert [error.startswith(said) for error in answer.errors] == [True]


def test_the_format_of_an_unknown_kind_of_file_must_be_given(acme: Chm, runs: Path, tmp_path: Path) -> None:
    other = runs.rename(tmp_path / "runs.txt")
    assert acme("run", "import", other).errors[0].startswith("FILE: ")
    assert acme("run", "import", other, "--as", "csv").json["inserted"] == 1


def chm_with_input(environment: dict[str, str], text: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chm_dagster.cli.main", *words]
    environment = {**os.environ, **environment}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, cwd=cwd, timeout=60)


def test_files_can_be_read_from_a_pipe(acme: Chm, environment: dict[str, str], tmp_path: Path) -> None:
    applied = chm_with_input(environment, FILE, "inventory", "apply", "-f", "-", cwd=tmp_path)
    assert (applied.returncode, applied.stderr) == (0, "")
    assert '"created": 1' in applied.stdout
    imported = chm_with_input(environment, RUNS, "run", "import", "-", cwd=tmp_path)
    assert (imported.returncode, imported.stderr) == (1, "")
    assert (tmp_path / "stdin.rejects.jsonl").exists()


def test_a_spreadsheet_with_columns_and_words_of_its_own_is_imported(acme: Chm, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_bytes("\ufeffLauf Nr;Zustand;Beginn;Dauer\r\n7;Fertig;03.11.2025 06:00;1.200,5\r\n".encode())
    columns = ("--column", "id=Lauf Nr", "--column", "status=Zustand", "--column", "started_at=Beginn")
    form = ("--date-format", "%d.%m.%Y %H:%M", "--timezone", "Europe/Berlin", "--decimal-comma")
    words = (*columns, "--column", "duration_seconds=Dauer", *form, "--status", "fertig=success")
    answer = acme("run", "import", path, "--pipeline", "acme/orders", *words)
    assert (answer.code, answer.json["inserted"]) == (0, 1)
    run = acme("run", "get", "acme/orders", "7").json
    assert (run["status"], run["started_at"][:16], run["duration_seconds"]) == ("success", "2025-11-03T05:00", 1200.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--column", "state"], "--column: 'state' is no pair; write it as status=state"),
        (["--column", "state=status"], "--column: there is no field 'state'; use one of pipeline, id, status"),
        (["--status", "completed=fine"], "--status: must be one of running, success, failed, canceled, skipped"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_named(acme: Chm, runs: Path, words: list[str], said: str) -> None:
    answer = acme("run", "import", runs, *words)
    assert (answer.code, answer.errors[0][: len(said)]) == (2, said)


def test_a_file_older_than_its_runs_is_imported(acme: Chm, runs: Path) -> None:
    runs.write_text("pipeline,id,status,started_at\nacme/orders,r1,success,2026-03-01T06:00:00Z\n")
    for stamp in (0, 946_684_800, 1_262_304_000):
        os.utime(runs, (stamp, stamp))
        assert acme("run", "import", runs).json["rejected"] == 0
