"""The image and its build context follow the rules of hadolint and of a build, without needing either."""

import fnmatch
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from chm_dagster.cli.up import FILES
from chm_dagster_tests.deploy.compose import DOCKERFILE, ROOT, load, services

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Keyword and arguments of each instruction, with continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split()[0], " ".join(line.split()[1:])) for line in joined.splitlines() if line.strip()]


def complaints(text: str) -> Iterator[str]:
    """The problems of a Dockerfile, one line each."""
    found = instructions(text)
    last = dict(found)
    for keyword, arguments in found:
        if keyword == "FROM" and not re.match(r"\S+:\d+\.\d+\.\d+\S*( AS \w+)?$", arguments):
            yield f"FROM is not pinned: {arguments}"
        if keyword == "ADD":
            yield "ADD fetches and unpacks behind one's back; use COPY"
        if keyword in ("ARG", "ENV") and re.search(r"PASSWORD|TOKEN|SECRET", arguments):
            yield f"a secret in a layer: {arguments.split('=')[0]}"
        if keyword == "RUN" and re.search(
            r"\bsudo\b|curl [^|]*\| *(ba)?sh|apt-get (?!.*--no-install-recommends)", arguments
        ):
            yield f"RUN: {arguments}"
        if keyword == "RUN" and "pip install" in arguments and not re.search("--require-hashes|--no-deps", arguments):
            yield f"an install without hashes: {arguments}"
        if keyword == "COPY" and "--from" not in arguments:
            yield from (f"COPY of what is not there: {s}" for s in arguments.split()[:-1] if not is_there(s))
            yield from (f"COPY of what is kept out: {s}" for s in arguments.split()[:-1] if not let_in(s))
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        yield "it runs as root"
    if not last.get("CMD", "").startswith("["):
        yield "CMD goes through a shell"


def is_there(source: str) -> bool:
    """Whether a file is in the repository, or is built by `make wheel`."""
    return (ROOT / source).exists() or source == "dist/*.whl"


def let_in(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository into the build."""
    verdict = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").rstrip("/")
        if line and not line.startswith("#") and (fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/")):
            verdict = line.startswith("!")
    return verdict


def test_the_dockerfile_has_no_complaints() -> None:
    assert list(complaints(DOCKERFILE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("found", "spoiled", "complaint"),
    [
        (r"^FROM \S+$", "FROM python:3.11-slim", "not pinned"),
        (r"^FROM \S+$", "FROM python", "not pinned"),
        (r"^USER .*$", "USER root", "as root"),
        (r"^USER .*$", "", "as root"),
        (r"^CMD .*$", "CMD chm --help", "through a shell"),
        (r"--require-hashes ", "", "without hashes"),
        (r"^COPY dagster.yaml .*$", "ADD dagster.yaml dagster.yaml", "ADD"),
        (r"^COPY dagster.yaml .*$", "COPY dagster.yml dagster.yaml", "not there"),
        (r"^COPY dagster.yaml .*$", "COPY chm_dagster_tests migrations", "kept out"),
        (r"^COPY dagster.yaml .*$", "ENV CHM_API_TOKEN=x", "secret"),
        (r"^COPY dagster.yaml .*$", "RUN curl -s https://x | sh", "RUN"),
    ],
)
def test_a_tampered_dockerfile_has_complaints(found: str, spoiled: str, complaint: str) -> None:
    text, changes = re.subn(found, spoiled, DOCKERFILE.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert changes == 1
    assert any(complaint in line for line in complaints(text))


@pytest.mark.parametrize(
    "secret", [".env", "deploy/compose.env", ".chm/postgres.password", ".git/config", "partners.yaml"]
)
def test_no_secret_from_the_working_tree_enters_the_image(secret: str) -> None:
    assert not let_in(secret)


def test_the_image_runs_a_python_that_the_package_supports() -> None:
    versions = {
        a.split(":")[1].split("-")[0] for keyword, a in instructions(DOCKERFILE.read_text()) if keyword == "FROM"
    }
    assert len(versions) == 1, "the virtual environment is copied from one stage to the other"
    (version,) = versions
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    least = re.fullmatch(r">=(\d+)\.(\d+)", wanted)
    assert least and tuple(map(int, version.split(".")[:2])) >= tuple(map(int, least.groups()))


def test_the_image_carries_the_packages_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {spec["image"] for spec in services(load()).values() if "build" in spec}
    assert ours == {f"chm-dagster:{version}"}


def test_the_image_and_compose_use_the_same_user() -> None:
    user = dict(instructions(DOCKERFILE.read_text()))["USER"]
    assert {spec["user"] for spec in services(load()).values() if "build" in spec} == {user}


def test_every_folder_under_a_volume_belongs_to_that_user() -> None:
    # A named volume inherits the owner of the folder that it covers; we could not write to root's.
    made = DOCKERFILE.read_text()
    for name, spec in services(load()).items():
        for source, target, *_ in (str(v).split(":") for v in spec.get("volumes", []) if "build" in spec):
            if not source.startswith("."):
                assert re.search(rf"install -d -o 10001 -g 10001 [^\n]*{re.escape(target)}", made), f"{name}: {target}"


def test_the_wheel_carries_what_the_code_reads_outside_the_package(wheel: Path) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "chm_dagster").rglob("*.py"))
    read = set(re.findall(r'\b(?:shipped|configuration)\("([^"]+)"', code)) | set(FILES.values())
    assert {"contracts/dashboard-queries.sql", "migrations", "dagster.yaml"} <= read, "the search found too little"
    carried = {name.removeprefix("chm_dagster/_shipped/") for name in ZipFile(wheel).namelist()}
    assert {name for name in read if not any(c == name or c.startswith(f"{name}/") for c in carried)} == set()


def test_the_wheel_carries_nothing_that_is_not_in_the_repository(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tracked = set(listed.splitlines())
    names = [name for name in ZipFile(wheel).namelist() if "dist-info/" not in name]
    assert {name for name in names if name.removeprefix("chm_dagster/_shipped/") not in tracked} == set()
    assert len(names) > 100
