"""`chm purge`: what it removes, what it leaves, and that nobody purges by accident."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from chm_dagster.cli.up import sandbox_pipelines
from chm_dagster.warehouse.inventory.pipelines import add_pipelines
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.cli.conftest import Chm
from chm_dagster_tests.factories import rows


def left(engine: sa.Engine) -> dict[str, int]:
    tables = ("clients", "pipelines", "runs", "alert_rules")
    return {name: rows(engine, f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in tables}


@pytest.fixture
def filled(acme: Chm) -> Chm:
    """Two clients with runs and rules."""
    for key in ("acme/orders", "acme/invoices", "cafe-nord/feed"):
        acme("run", "record", key, "--status", "success", "--run", "r1")
    for scope in (("--client", "acme"), ("--pipeline", "acme/orders"), ("--client", "cafe-nord")):
        rule = ("--type", "on_failure", "--channel", "slack", "--destination", "#x")
        assert acme("rule", "create", *scope, *rule).code == 0
    return acme


def test_a_client_goes_with_all_that_is_its_own_and_nothing_else(
    filled: Chm, engine: sa.Engine, tmp_path: Path
) -> None:
    answer = filled("purge", "client", "acme", "--yes")
    assert answer.code == 0, answer.err
    assert {name: answer.json[name] for name in ("clients", "pipelines", "runs", "rules")} == {
        "clients": 1,
        "pipelines": 2,
        "runs": 2,
        "rules": 2,
    }
    assert left(engine) == {"clients": 1, "pipelines": 1, "runs": 1, "alert_rules": 1}
    log = tmp_path / "home" / "logs" / "purge.log"
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["removed"], line["runs"]) == ("client acme", 2) and line["user"] and line["time"]
    assert log.stat().st_mode & 0o777 == 0o600 and log.parent.stat().st_mode & 0o777 == 0o700


def test_a_pipeline_goes_and_its_client_stays(filled: Chm, engine: sa.Engine) -> None:
    assert filled("purge", "pipeline", "acme/orders", "--yes").code == 0
    assert left(engine) == {"clients": 2, "pipelines": 2, "runs": 2, "alert_rules": 2}
    assert filled("pipeline", "get", "acme/orders").code == 2


def test_without_a_terminal_nothing_is_removed(filled: Chm, engine: sa.Engine) -> None:
    answer = filled("purge", "client", "acme")
    assert answer.code == 2
    assert "--yes" in answer.err and "2 runs" in answer.err
    assert left(engine)["clients"] == 2


@pytest.mark.parametrize(("reply", "clients"), [("y\n", 1), ("n\n", 2), ("\n", 2)])
def test_a_person_sees_what_is_removed_and_must_confirm(
    filled: Chm, engine: sa.Engine, environment: dict[str, str], reply: str, clients: int
) -> None:
    outside, inside = pty.openpty()
    command = [sys.executable, "-m", "chm_dagster.cli.main", "purge", "client", "acme"]
    with subprocess.Popen(
        command, stdin=inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment}
    ) as process:
        os.close(inside)
        os.write(outside, reply.encode())
        _, err = process.communicate(timeout=60)
    os.close(outside)
    assert "This removes client acme for good: 1 clients, 2 pipelines, 2 runs, 2 rules." in " ".join(
        err.decode().split()
    )
    assert process.returncode == (0 if clients == 1 else 130)
    assert left(engine)["clients"] == clients


def test_the_sandbox_goes_and_what_people_added_stays(acme: Chm, engine: sa.Engine, warehouse: Warehouse) -> None:
    added = add_pipelines(engine, sandbox_pipelines())
    mine = warehouse.pipelines.list(limit=1_000).items
    client = next(p.client_slug for p in mine if p.client_slug not in ("acme", "cafe-nord"))
    warehouse.pipelines.create(client, {"name": "Mine", "platform": "custom", "pipeline_type": "ingestion"})
    answer = acme("purge", "sandbox", "--yes")
    assert answer.json["pipelines"] == added
    kept = {p.key for p in warehouse.pipelines.list(limit=1_000).items}
    assert kept == {"acme/orders", "acme/invoices", "cafe-nord/feed", f"{client}/mine"}
    assert {c.slug for c in warehouse.clients.list().items} == {"acme", "cafe-nord", client}
    assert acme("purge", "sandbox", "--yes").errors == ["there are no pipelines of the sandbox"]


def test_without_a_place_for_its_log_nothing_is_removed(filled: Chm, engine: sa.Engine, tmp_path: Path) -> None:
    logs = tmp_path / "home" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "purge.log").mkdir()
    answer = filled("purge", "client", "acme", "--yes")
    assert answer.code == 2 and "nothing was removed" in answer.err
    assert left(engine)["clients"] == 2


@pytest.mark.slow
def test_while_runs_are_written_it_waits_and_then_gives_up(filled: Chm, engine: sa.Engine, database_url: str) -> None:
    with psycopg.connect(database_url) as writer:
        writer.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended('chm/meaning', 0))")
        answer = filled("purge", "client", "acme", "--yes")
    assert answer.code == 2 and "being written" in answer.err
    assert left(engine)["clients"] == 2
