"""Runs `chm` against a real database: arguments in; output, errors and exit code out."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from chm_dagster.cli.main import main
from chm_dagster.warehouse.warehouse import Warehouse


@dataclasses.dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def yaml(self) -> Any:
        return yaml.safe_load(self.out)

    @property
    def errors(self) -> list[str]:
        """The error lines, each of which was printed by CHM itself."""
        lines = self.err.splitlines()
        assert all(line.startswith("chm: ") for line in lines), self.err
        return [line.removeprefix("chm: ") for line in lines]


Chm = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chm:
    """Run `chm` in this process. Its standard output is not a terminal, so it prints JSON."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["chm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        code = ended.value.code
        return Answer(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    """Settings of an installation with a migrated, empty database."""
    url = database_url
    return {"CHM_HOME": str(tmp_path / "home"), "CHM_DATABASE_URL": url, "CHM_DAGSTER_DATABASE_URL": url}


@pytest.fixture
def chm(call: Chm, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Chm:
    """`chm` with an empty inventory."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return call


@pytest.fixture
def warehouse(engine: sa.Engine) -> Warehouse:
    """The database that `chm` uses."""
    return Warehouse(engine)


@pytest.fixture
def acme(chm: Chm, warehouse: Warehouse) -> Chm:
    """`chm` with an inventory of two clients: acme with orders and invoices, and cafe-nord with feed."""
    for client in ("Acme", "Café Nord"):
        warehouse.clients.create(client)
    for client, name in (("acme", "Orders"), ("acme", "Invoices"), ("cafe-nord", "Feed")):
        warehouse.pipelines.create(client, {"name": name, "platform": "custom", "pipeline_type": "ingestion"})
    return chm
