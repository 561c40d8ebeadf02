"""The partners of partners.yaml in Dagster: secrets stay in the environment, a mistake is told where somebody sees it."""

import asyncio
from pathlib import Path

import dagster as dg
import pytest

from chm_dagster.definitions import defs
from chm_dagster.partners.port import Failed, Partner, Target

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
    monkeypatch.setenv("ACME_TOKEN", "sentinel-token")
    return path


def vended() -> dict[str, Partner]:
    resource = defs().resources["partners"]
    with dg.build_resources({"partners": resource}) as resources:
        partners: dict[str, Partner] = resources.partners
        return partners


def said(partner: Partner) -> str:
    async def scene() -> str:
        feed = partner.open_feed()
        events = [event async for event in feed.sweep([Target("p", None)])]
        await feed.aclose()
        (end,) = events
        assert isinstance(end, Failed)
        return str(end.error)

    return asyncio.run(scene())


def test_the_file_s_connections_are_vended_with_their_secrets_from_the_environment(file: Path) -> None:
    partners = vended()
    assert set(partners) == {"acme", "zenith"}
    assert "could not be reached" in said(partners["acme"])
    assert said(partners["zenith"]) == (
        "connection zenith: the environment variable ZENITH_TOKEN is not set (credentials.token)"
    )


def test_no_secret_is_part_of_the_definitions(file: Path) -> None:
    resource = defs().resources["partners"]
    assert "sentinel" not in repr(resource)
    assert "sentinel" not in str(resource.model_dump())


def test_the_code_location_loads_with_a_broken_file_and_a_run_says_what_is_wrong(file: Path) -> None:
    file.write_text(FILE.replace("platform: airflow", "platform: airflo"))
    with pytest.raises(dg.DagsterError) as caught:
        vended()
    told = str(caught.value.__cause__)
    assert told.startswith("partners.yaml, line 8, connections.zenith.platform: one of")
    assert told.endswith("did you mean airflow?")
