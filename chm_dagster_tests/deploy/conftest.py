"""The wheel, built once, and a server of Postgres as the containers have it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from chm_dagster.local.postgres import EmbeddedPostgres, _programs
from chm_dagster_tests.deploy.compose import ROLE_PASSWORDS, ROOT, load, services

PASSWORDS = {
    "chm": 'it\'s a $ecret: with \\ and "quotes" / @',
    "chm_app": 'fifth % one: \\ "it\'s"',
    "chm_dagster": "another: one \\\\ with / @ and 'quotes'",
    "chm_bi": "third: 'one'",
    "chm_metabase": "fourth \\ one",
}
"""By role."""
VARIABLES = {
    **ROLE_PASSWORDS,
    "chm_bi": "CHM_BI_POSTGRES_PASSWORD",
    "chm_metabase": "CHM_METABASE_POSTGRES_PASSWORD",
}
"""Which variable has the password of a role."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHM's wheel, built from this tree without any network."""
    folder = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("chm_dagster-*.whl")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that was set up by the scripts that compose mounts."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("compose"))
    with server.running():
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            # The image gives the superuser the same password that the script then gives to the role.
            connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(PASSWORDS["chm"]))
        psql = [str(_programs(18) / "psql"), "-v", "ON_ERROR_STOP=1", "-X"]
        environment = {"PATH": os.defpath, **{word: PASSWORDS[role] for role, word in VARIABLES.items()}}
        address = url(server, "postgres", "postgres", PASSWORDS["chm"])
        for script in scripts():
            # Before the last one, as on a server of somebody's own, the superuser's password still works.
            command = [*psql, "-f", str(ROOT / "deploy" / script), address]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
        yield server


def scripts() -> list[str]:
    """What compose mounts for the image to run, in the order of the names there."""
    mounts = [volume.split(":") for volume in services(load())["postgres"]["volumes"]]
    found = {target: Path(source).name for source, target, *_ in mounts if "initdb.d" in target}
    return [found[target] for target in sorted(found)]


def url(server: EmbeddedPostgres, database: str, role: str = "chm", password: str | None = None) -> str:
    """The address of a database for a role, with its own password or another one."""
    _, rest = server.url(database).split("@", 1)
    return f"postgresql://{role}:{quote(PASSWORDS[role] if password is None else password, safe='')}@{rest}"


def without_password(server: EmbeddedPostgres, role: str) -> str:
    """The address of a role's database, as compose gives it to a service."""
    return f"postgresql://{role}@{server.url('chm' if role == 'chm_app' else role).split('@', 1)[1]}"
