"""Resources come from settings alone: no launch chooses an address, a credential or a folder, or reads a variable."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from chm_dagster.definitions import assembled, defs
from chm_dagster.defs.automation import resources
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.defs.conftest import Deployment

SECRET = "sentinel-token-5f1c"
FILE = """\
connections:
  acme:
    platform: dagster
    api: dagster_plus
    base_url: http://127.0.0.1:9
    credentials: {token: ACME_TOKEN}
  zenith:
    platform: airflow
    base_url: http://127.0.0.1:9
    credentials: {token: ZENITH_TOKEN}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "partners.yaml"
    path.write_text(FILE)
    monkeypatch.setenv("CHM_PARTNERS_FILE", str(path))
    monkeypatch.setenv("CHM_HOME", str(tmp_path))
    monkeypatch.setenv("CHM_DATABASE_URL", "postgresql://x/chm")
    monkeypatch.setenv("CHM_DAGSTER_DATABASE_URL", "postgresql://x/dagster")
    monkeypatch.setenv("ACME_TOKEN", SECRET)
    return path


def vended() -> Mapping[str, Partner]:
    with dg.build_resources({"partners": (defs().resources or {})["partners"]}) as built:
        partners: Mapping[str, Partner] = built.partners()
        return partners


def test_the_file_s_connections_are_vended(file: Path) -> None:
    assert set(vended()) == {"acme", "zenith"}


def test_no_secret_is_part_of_the_definitions(file: Path) -> None:
    loaded = defs()
    for resource in (loaded.resources or {}).values():
        assert SECRET not in repr(vars(resource))
    assert SECRET not in repr(loaded)


def test_the_code_location_loads_with_a_broken_file_and_a_run_says_what_is_wrong(
    file: Path, deployment: Deployment
) -> None:
    file.write_text(FILE.replace("platform: airflow", "platform: airflo"))
    broken = (defs().resources or {})["partners"]
    deployment.defs = assembled({**(deployment.defs.resources or {}), "partners": broken}, "*/5 * * * *")
    said = words(deployment.sync())
    assert said.startswith("partners.yaml, line 8, connections.zenith.platform: must be one of")
    assert said.endswith("did you mean airflow?")


def words(result: dg.ExecuteInProcessResult) -> str:
    """The description of the failure that the Dagster run shows."""
    failure = result.failure_data_for_node("ingest_runs")
    assert failure is not None and failure.user_failure_data is not None
    return str(failure.user_failure_data.description)


# --- a warehouse ---------------------------------------------------------------------------------------------------------


def sessions(url: str) -> int:
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'chm'"
        (count,) = connection.execute(query).fetchone() or (0,)
        return int(count)


@pytest.mark.alone
def test_an_asset_uses_the_warehouse_and_leaves_no_session_behind(
    database_url: str, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    open_meanwhile: list[int] = []

    @dg.asset
    def inventory(warehouse: dg.ResourceParam[Warehouse]) -> dg.MaterializeResult[None]:
        warehouse.clients.create("Acme")
        open_meanwhile.append(sessions(database_url))
        names = [client.name for client in warehouse.clients.list().items]
        return dg.MaterializeResult(metadata={"clients": names, "failing": len(warehouse.ask("failing_now"))})

    ours = resources(lambda: Warehouse(make_engine(database_url)), dict, LandingZone(tmp_path))
    result = dg.materialize([inventory], resources={"warehouse": ours["warehouse"]}, instance=instance)
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert (metadata["clients"].value, metadata["failing"].value) == (["Acme"], 0)
    assert open_meanwhile == [1]
    assert sessions(database_url) == 0


# --- what a launch may not say -------------------------------------------------------------------------------------------


@pytest.fixture
def trap() -> Iterator[tuple[str, socket.socket]]:
    """An address of a stranger, and the socket on which nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


def launch(deployment: Deployment, config: dict[str, Any]) -> dg.ExecuteInProcessResult:
    return deployment.defs.resolve_job_def("ingest").execute_in_process(
        instance=deployment.instance, run_config=config, raise_on_error=False
    )


EVERYTHING = {"ops": {"ingest_runs": {"config": {"everything": True}}}}


@pytest.mark.parametrize(
    ("resource", "config"),
    [
        ("partners", {"base_url": "TRAP", "token": {"env": "CHM_DATABASE_URL"}}),
        ("partners", {"file": "/etc/passwd"}),
        ("warehouse", {"url": {"env": "CHM_DATABASE_URL"}}),
        ("landing", {"root": "/tmp"}),
        ("io_manager", {"base_dir": "/tmp"}),
    ],
)
def test_a_launch_cannot_say_where_and_as_whom(
    deployment: Deployment, trap: tuple[str, socket.socket], resource: str, config: dict[str, Any]
) -> None:
    address, server = trap
    config = {name: address if value == "TRAP" else value for name, value in config.items()}
    with pytest.raises(dg.DagsterInvalidConfigError):
        launch(deployment, {**EVERYTHING, "resources": {resource: {"config": config}}})
    with pytest.raises(TimeoutError):
        server.accept()
    assert deployment.feed.asked == []


@pytest.mark.parametrize(
    "config",
    [
        {"pipelines": [{"env": "ACME_TOKEN"}]},
        {"since": {"env": "ACME_TOKEN"}},
        {"from_landing": {"env": "ACME_TOKEN"}},
        {"everything": {"env": "ACME_TOKEN"}},
        {"everything": True, "progress_file": "/tmp/progress"},
    ],
)
def test_a_launch_cannot_read_a_variable_or_write_to_a_path(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    monkeypatch.setenv("ACME_TOKEN", SECRET)
    with pytest.raises(dg.DagsterInvalidConfigError) as refused:
        launch(deployment, {"ops": {"ingest_runs": {"config": config}}})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["../landing", "/etc", "a/b", "..", ""])
def test_a_landing_is_named_not_a_path(deployment: Deployment, name: str) -> None:
    assert words(deployment.sync(everything=True, from_landing=name)).startswith("landing: use letters")


@pytest.mark.parametrize("since", ["noon", "2026-13-01"])
def test_a_time_that_is_none_is_refused_in_words(deployment: Deployment, since: str) -> None:
    assert words(deployment.sync(everything=True, since=since)).startswith("since: not a time; write ISO 8601")
