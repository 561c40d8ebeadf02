"""The wheel, built once."""

import subprocess
import sys
from pathlib import Path

import pytest

from chm_dagster_tests.deploy.compose import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHM's wheel, built from this tree without any network."""
    folder = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("chm_dagster-*.whl")
    return path
