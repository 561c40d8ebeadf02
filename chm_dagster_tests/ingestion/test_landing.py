"""Access to the landing folder."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.partners.port import RecordBatch
from chm_dagster_tests.factories import T0, record


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    before = os.umask(0o000)
    yield
    os.umask(before)


def test_the_folder_of_unmasked_records_is_private(tmp_path: Path) -> None:
    landing = LandingZone(tmp_path / "home" / "landing").open("one")
    with landing.writer("default") as file:
        file.add(RecordBatch([("orders", record())], T0))
    landing.save_report({})
    assert landing.count_records() == 1
    for folder in (landing.folder, landing.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_a_folder_with_only_a_report_is_private_too(tmp_path: Path) -> None:
    landing = LandingZone(tmp_path / "landing").open("one")
    landing.save_report({})
    assert stat.S_IMODE(landing.folder.stat().st_mode) == 0o700
