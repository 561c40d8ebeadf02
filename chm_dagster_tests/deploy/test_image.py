"""The image and what fills it: held to the rules that hadolint and a build would apply, without either."""

import fnmatch
import re
import tomllib
from collections.abc import Iterator

import pytest

from chm_dagster_tests.deploy.compose import DOCKERFILE, ROOT, load, services

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Keyword and arguments of each instruction, with continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split()[0], " ".join(line.split()[1:])) for line in joined.splitlines() if line.strip()]


def complaints(text: str) -> Iterator[str]:
    """What is wrong with a Dockerfile, one line each."""
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
            yield from (f"COPY of what is not there: {s}" for s in arguments.split()[:-1] if not (ROOT / s).exists())
            yield from (f"COPY of what is kept out: {s}" for s in arguments.split()[:-1] if not let_in(s))
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        yield "it runs as root"
    if not last.get("CMD", "").startswith("["):
        yield "CMD goes through a shell"


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
        (r"^COPY migrations migrations$", "ADD migrations migrations", "ADD"),
        (r"^COPY migrations migrations$", "COPY migration migrations", "not there"),
        (r"^COPY migrations migrations$", "COPY chm_dagster_tests migrations", "kept out"),
        (r"^COPY migrations migrations$", "ENV CHM_API_TOKEN=x", "secret"),
        (r"^COPY migrations migrations$", "RUN curl -s https://x | sh", "RUN"),
    ],
)
def test_a_spoiled_dockerfile_is_complained_about(found: str, spoiled: str, complaint: str) -> None:
    text, changes = re.subn(found, spoiled, DOCKERFILE.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert changes == 1
    assert any(complaint in line for line in complaints(text))


@pytest.mark.parametrize(
    "secret", [".env", "deploy/compose.env", ".chm/postgres.password", ".git/config", "partners.yaml"]
)
def test_no_secret_of_the_working_tree_enters_the_image(secret: str) -> None:
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


def test_the_image_runs_as_the_user_that_compose_runs_it_as() -> None:
    user = dict(instructions(DOCKERFILE.read_text()))["USER"]
    assert {spec["user"] for spec in services(load()).values() if "build" in spec} == {user}


def test_every_folder_that_a_volume_covers_belongs_to_that_user() -> None:
    # A named volume takes its owner from the folder that it covers; root's would be closed to us.
    made = DOCKERFILE.read_text()
    for name, spec in services(load()).items():
        for source, target, *_ in (str(v).split(":") for v in spec.get("volumes", []) if "build" in spec):
            if not source.startswith("."):
                assert re.search(rf"install -d -o 10001 -g 10001 [^\n]*{re.escape(target)}", made), f"{name}: {target}"


def test_what_the_code_reads_beside_the_package_is_in_the_image() -> None:
    copies = [
        arguments.split()[:-1] for keyword, arguments in instructions(DOCKERFILE.read_text()) if keyword == "COPY"
    ]
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "chm_dagster").rglob("*.py"))
    # `.env` is written for `dagster dev`, and the command beside it only in a working tree.
    read = set(re.findall(r'(?:parents\[\d\]|\bROOT) / "([^"]+)"', code)) - {".env"}
    assert {"contracts", "migrations", "dagster.yaml"} <= read, "the search found too little to mean anything"
    assert read <= {source for sources in copies for source in sources}
