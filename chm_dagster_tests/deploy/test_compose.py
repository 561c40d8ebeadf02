"""docker-compose.yml follows the official schema, and rules that a schema cannot express. No Docker is needed."""

import importlib.util
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from chm_dagster import settings
from chm_dagster.cli.main import app
from chm_dagster.cli.up import FILES
from chm_dagster_tests.deploy import compose as rules
from chm_dagster_tests.deploy.compose import ROOT, Compose, Rule, commands, load, services

PROGRAMS = Path(sys.executable).parent


def schema_says(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_compose_file_is_valid_by_the_official_schema() -> None:
    result = schema_says(rules.COMPOSE)
    assert result.returncode == 0, result.stdout


def test_the_official_schema_notices_a_misspelled_key(tmp_path: Path) -> None:
    spoiled = tmp_path / "docker-compose.yml"
    spoiled.write_text(rules.COMPOSE.read_text().replace("cap_drop:", "cap_dorp:"))
    assert schema_says(spoiled).returncode == 1


def test_the_override_in_the_operations_page_is_valid_and_fits(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (text,) = (block for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S) if "services:" in block)
    (tmp_path / "docker-compose.override.yml").write_text(text)
    assert schema_says(tmp_path / "docker-compose.override.yml").returncode == 0
    override = services(yaml.safe_load(text))
    assert set(override) <= set(services(load()))
    assert settings.PARTNERS_FILE in override["code"]["environment"]


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_compose_file_keeps_the_rule(rule: Rule) -> None:
    assert rule(load()) == []


def put(*path: str, value: Any) -> Callable[[Compose], None]:
    """Change one value of the file; None removes it."""

    def spoil(compose: Compose) -> None:
        *way, last = path
        for name in way:
            compose = compose[name]
        if value is None:
            del compose[last]
        else:
            compose[last] = value

    return spoil


def of(service: str, *path: str, value: Any) -> Callable[[Compose], None]:
    return put("services", service, *path, value=value)


OPEN_END = "${CHM_POSTGRES_PASSWORD:-postgres}"
SPOILED: list[tuple[Rule, Callable[[Compose], None]]] = [
    (rules.secrets_with_defaults, of("postgres", "environment", "POSTGRES_PASSWORD", value=OPEN_END)),
    (rules.secrets_with_defaults, of("code", "environment", "CHM_PARTNER_API_TOKEN", value="secret")),
    (rules.secrets_with_defaults, of("code", "command", value=["sh", "-c", "echo $CHM_PARTNER_API_TOKEN"])),
    (rules.passwords_in_urls, of("code", "environment", "CHM_DATABASE_URL", value="postgresql://chm:pw@postgres/chm")),
    (rules.ports_beyond_loopback, of("webserver", "ports", value=["3000:3000"])),
    (rules.ports_beyond_loopback, of("webserver", "ports", value=["0.0.0.0:3000:3000"])),
    (rules.ports_beyond_loopback, of("webserver", "ports", value=[{"target": 3000, "host_ip": "0.0.0.0"}])),
    (rules.images_that_float, of("postgres", "image", value="postgres")),
    (rules.images_that_float, of("postgres", "image", value="postgres:latest")),
    (rules.images_that_float, of("postgres", "image", value="postgres:18")),
    (rules.images_that_float, of("postgres", "image", value=None)),
    (rules.soft_containers, of("daemon", "read_only", value=False)),
    (rules.soft_containers, of("daemon", "cap_drop", value=["NET_RAW"])),
    (rules.soft_containers, of("daemon", "cap_add", value=["SYS_ADMIN"])),
    (rules.soft_containers, of("daemon", "user", value="0:0")),
    (rules.soft_containers, of("daemon", "user", value=None)),
    (rules.soft_containers, of("daemon", "security_opt", value=[])),
    (rules.soft_containers, of("daemon", "mem_limit", value=None)),
    (rules.soft_containers, of("daemon", "privileged", value=True)),
    (rules.soft_containers, of("daemon", "network_mode", value="host")),
    (rules.soft_containers, of("daemon", "volumes", value=["/var/run/docker.sock:/var/run/docker.sock"])),
    (rules.broken_dependencies, of("daemon", "depends_on", value={"cod": {"condition": "service_healthy"}})),
    (rules.broken_dependencies, of("daemon", "depends_on", value={"migrate": {"condition": "service_healthy"}})),
    (rules.broken_dependencies, of("migrate", "restart", value="always")),
    (rules.broken_dependencies, of("postgres", "depends_on", value={"webserver": {"condition": "service_healthy"}})),
    (rules.loose_ends, of("daemon", "volumes", value=["dagster-strage:/opt/dagster/home/storage"])),
    (rules.loose_ends, of("daemon", "volumes", value=["./dagster.yml:/opt/dagster/home/dagster.yaml:ro"])),
    (rules.loose_ends, of("daemon", "volumes", value=["./dagster.yaml:/opt/dagster/home/dagster.yaml"])),
    (rules.loose_ends, of("daemon", "networks", value=["date"])),
    (rules.loose_ends, of("daemon", "networks", value=None)),
    (rules.loose_ends, put("volumes", "forgotten", value={})),
    (rules.unknown_variables, of("code", "environment", "CHM_DATABSE_URL", value="x")),
    (rules.unexplained_variables, of("code", "environment", "CHM_SYNC_CRON", value="${SCHEDULE:-x}")),
    (rules.unexplained_variables, of("code", "environment", "CHM_SYNC_CRON", value="${CHM_SYNC_CRON:?which}")),
    (rules.drivers_by_chance, of("daemon", "environment", "CHM_DAGSTER_DATABASE_URL", value="postgresql://chm@p/d")),
    (rules.homes_that_vanish, of("api", "environment", "CHM_HOME", value="/tmp/chm")),
    (rules.homes_that_vanish, of("code", "volumes", value=[])),
    (rules.open_code_servers, put("networks", "control", value={})),
    (rules.open_code_servers, of("api", "networks", value=["data", "control"])),
    (rules.open_code_servers, of("code", "networks", "partners", value={"aliases": ["code-server"]})),
    (rules.open_code_servers, of("code", "command", value=["dagster", "code-server", "start", "--host", "0.0.0.0"])),
    (rules.passwords_too_many, of("api", "environment", "CHM_DAGSTER_POSTGRES_PASSWORD", value="${X:?}")),
    (rules.passwords_too_many, of("daemon", "environment", "CHM_DAGSTER_POSTGRES_PASSWORD", value=None)),
    (rules.passwords_too_many, of("api", "environment", "CHM_DATABASE_URL", value="postgresql://chm_dagster@p/chm")),
    (rules.passwords_too_many, of("api", "environment", "CHM_DATABASE_URL", value="postgresql://chm@p/chm")),
    (rules.passwords_too_many, of("api", "environment", "CHM_POSTGRES_PASSWORD", value="${CHM_POSTGRES_PASSWORD:?}")),
    (rules.passwords_too_many, of("code", "environment", "CHM_APP_POSTGRES_PASSWORD", value=None)),
    (
        rules.passwords_too_many,
        of("code", "environment", "CHM_APP_POSTGRES_PASSWORD", value="${CHM_POSTGRES_PASSWORD:?}"),
    ),
    (rules.blind_dashboards, of("grafana", "environment", "CHM_BI_POSTGRES_ADDRESS", value=None)),
    (rules.blind_dashboards, of("grafana", "environment", "CHM_POSTGRES_PASSWORD", value="${CHM_POSTGRES_PASSWORD:?}")),
    (rules.blind_dashboards, of("grafana", "environment", "GF_AUTH_ANONYMOUS_ENABLED", value="true")),
    (rules.blind_dashboards, of("grafana", "volumes", value=["./dashboards/grafana:/etc/grafana/provisioning:ro"])),
    (rules.stray_metabase, of("metabase", "environment", "MB_DB_USER", value="chm")),
    (rules.stray_metabase, of("metabase", "environment", "MB_DB_DBNAME", value="chm")),
    (rules.stray_metabase, of("metabase", "environment", "MB_DB_PASS", value="${CHM_POSTGRES_PASSWORD:?}")),
    (rules.stray_metabase, of("metabase-content", "depends_on", value={})),
    (rules.stray_metabase, of("metabase-content", "networks", value=["control"])),
    (rules.stray_metabase, of("metabase-content", "environment", "CHM_POSTGRES_PASSWORD", value="${X:?}")),
    (rules.stray_metabase, of("metabase-content", "command", value=["chm", "status", "--url", "http://metabase:3000"])),
]


@pytest.mark.parametrize(("rule", "spoil"), SPOILED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_tampered_file_breaks_the_rule(rule: Rule, spoil: Callable[[Compose], None]) -> None:
    compose = load()
    spoil(compose)
    assert rule(compose)


def test_every_rule_has_a_case_that_breaks_it() -> None:
    assert {rule for rule, _ in SPOILED} == set(rules.RULES)


# --- what the services start is there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("service", "words"), commands(load()), ids=lambda v: v if isinstance(v, str) else v[0])
def test_every_command_names_programs_modules_and_files_that_exist(service: str, words: list[str]) -> None:
    assert (PROGRAMS / words[0]).exists(), f"{service}: no program {words[0]} in the image"
    if words[0] == "chm":
        assert words[1] in typer.main.get_command(app).commands, f"{service}: no such command"  # type: ignore[attr-defined]
    for option, value in itertools.pairwise(words):
        if option in ("-m", "--module-name"):
            assert starts(value) if option == "-m" else importlib.util.find_spec(value), f"{service}: no {value}"
    for word in words:
        if word.startswith("/app/"):
            assert (ROOT / word.removeprefix("/app/")).is_file(), f"{service}: no file {word}"


def starts(module: str) -> bool:
    """Whether `python -m` can run this."""
    spec = importlib.util.find_spec(module)
    return spec is not None and (
        spec.submodule_search_locations is None or importlib.util.find_spec(f"{module}.__main__") is not None
    )


def test_a_package_without_a_main_does_not_start() -> None:
    assert starts("chm_dagster.api") and not starts("chm_dagster.domain") and not starts("chm_dagster.nothing")


PROBE = re.compile(r"http://127\.0\.0\.1:(\d+)(/\w+)")
PATHS = {"webserver": {"/healthz"}, "api": {"/readyz"}}
"""The guard before the UI answers its own; the paths of the API are verified below."""


@pytest.mark.parametrize("service", PATHS)
def test_health_checks_use_the_port_that_the_service_listens_on(service: str) -> None:
    spec = services(load())[service]
    ((port, path),) = PROBE.findall(" ".join(spec["healthcheck"]["test"]))
    assert path in PATHS[service]
    (published,) = spec["ports"]
    assert published.endswith(f":{port}")
    said = [*spec["command"], *map(str, spec["environment"].values())]
    assert port in said, "it is configured to listen there"


def test_the_health_check_of_the_api_needs_no_token() -> None:
    from chm_dagster.api.admission import PUBLIC

    assert PATHS["api"] <= PUBLIC


def test_chm_init_writes_every_file_that_is_mounted() -> None:
    for name, spec in services(load()).items():
        for source in (str(volume).split(":")[0] for volume in spec.get("volumes", [])):
            if source.startswith("./"):
                path = ROOT / source
                files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
                assert {str(file.relative_to(ROOT)) for file in files} <= set(FILES), f"{name}: {source}"


def test_every_service_of_the_image_has_a_command() -> None:
    ours = {name for name, spec in services(load()).items() if "build" in spec}
    assert ours == {service for service, _ in commands(load())} and len(ours) > 3


def test_dagster_finds_its_instance_and_its_database_wherever_it_runs() -> None:
    for name, spec in services(load()).items():
        environment = spec.get("environment", {})
        if "DAGSTER_HOME" in environment:
            mount = f"./dagster.yaml:{environment['DAGSTER_HOME']}/dagster.yaml:ro"
            assert mount in spec["volumes"], name
            for variable in named_by_dagster_yaml():
                assert variable in environment, name


def named_by_dagster_yaml() -> list[str]:
    """The variables that the instance's configuration reads."""

    def find(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [str(value["env"])] if set(value) == {"env"} else []
            return own + [name for part in value.values() for name in find(part)]
        return [name for part in value for name in find(part)] if isinstance(value, list) else []

    names = find(yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8")))
    assert names
    return names


# --- the workspaces ------------------------------------------------------------------------------------------------------


def location(file: str, kind: str) -> dict[str, Any]:
    """The one code location of a workspace file."""
    (entry,) = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["load_from"]
    found: dict[str, Any] = entry[kind]
    return found


def test_the_workspace_names_a_module_and_the_location_that_the_containers_use_too() -> None:
    local = location("workspace.yaml", "python_module")
    remote = location("deploy/workspace.compose.yaml", "grpc_server")
    assert importlib.util.find_spec(local["module_name"])
    assert local["location_name"] == remote["location_name"]


def test_the_containers_workspace_points_at_the_code_server() -> None:
    remote = location("deploy/workspace.compose.yaml", "grpc_server")
    words = services(load())["code"]["command"]
    assert words[:3] == ["dagster", "code-server", "start"]
    assert words[words.index("--host") + 1] == remote["host"]
    assert words[words.index("--port") + 1] == str(remote["port"])
    assert words[words.index("--module-name") + 1] == location("workspace.yaml", "python_module")["module_name"]
