"""Rules for CHM's compose file beyond the official schema. Each rule returns its violations."""

import copy
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from chm_dagster import settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
EXAMPLE = ROOT / "deploy" / "compose.env.example"

Compose = dict[str, Any]
Rule = Callable[[Compose], list[str]]

SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|API_KEY")
REFERENCE = re.compile(r"\$\{(\w+)(?:(:?[-?+])([^}]*))?\}|\$(\w+)")
PINNED = re.compile(r"(?P<name>[\w./-]+):(?P<tag>v?\d+\.\d+[\w.+-]*)(@sha256:[0-9a-f]{64})?")
ROLE_PASSWORDS = {
    "chm": "CHM_POSTGRES_PASSWORD",
    "chm_app": "CHM_APP_POSTGRES_PASSWORD",
    "chm_dagster": "CHM_DAGSTER_POSTGRES_PASSWORD",
}
OTHERS_VARIABLES = {
    "DAGSTER_HOME",
    "PGPASSFILE",
    "POSTGRES_PASSWORD",
    "POSTGRES_INITDB_ARGS",
    "CHM_POSTGRES_PASSWORD",
    "CHM_DAGSTER_POSTGRES_PASSWORD",
    "CHM_BI_POSTGRES_ADDRESS",
    "CHM_BI_POSTGRES_SSLMODE",
    "CHM_METABASE_POSTGRES_PASSWORD",
    "JAVA_OPTS",
    "MB_DB_TYPE",
    "MB_DB_HOST",
    "MB_DB_PORT",
    "MB_DB_DBNAME",
    "MB_DB_USER",
    "MB_DB_PASS",
    "MB_PLUGINS_DIR",
    "MB_ANON_TRACKING_ENABLED",
    "MB_CHECK_FOR_UPDATES",
    "MB_LOAD_SAMPLE_CONTENT",
    "GF_SECURITY_ADMIN_PASSWORD",
    "GF_AUTH_ANONYMOUS_ENABLED",
    "GF_USERS_ALLOW_SIGN_UP",
    "GF_ANALYTICS_REPORTING_ENABLED",
    "GF_ANALYTICS_CHECK_FOR_UPDATES",
}
"""Names that other programs read: Dagster, libpq, the Postgres image, Java, Metabase, Grafana and its files."""


def load() -> Compose:
    """The compose file with anchors and merges resolved; a copy that tests may change."""
    loaded: Compose = copy.deepcopy(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))
    return loaded


def services(compose: Compose) -> Mapping[str, dict[str, Any]]:
    found: Mapping[str, dict[str, Any]] = compose["services"]
    return found


def strings(value: Any) -> Iterator[str]:
    """Every string in a document."""
    if isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
    elif isinstance(value, str):
        yield value


def references(compose: Compose) -> Iterator[tuple[str, str, str]]:
    """Variables that the user can set: name, operator (`:?`, `:-`, `?`, empty) and the text after it."""
    for text in strings(compose):
        for name, operator, rest, bare in REFERENCE.findall(text.replace("$$", "")):
            yield name or bare, operator, rest
    for spec in services(compose).values():
        # A variable without a value is passed on if it is set, and absent otherwise.
        yield from ((name, "?", "") for name, value in spec.get("environment", {}).items() if value is None)


# --- rules -------------------------------------------------------------------------------------------------------------


def secrets_with_defaults(compose: Compose) -> list[str]:
    """Secrets come from the user, and nothing starts without them."""
    weak = [n for n, operator, _ in references(compose) if SECRET.search(n) and operator not in (":?", "?")]
    literal = [
        f"{service}: {name}"
        for service, spec in services(compose).items()
        for name, value in spec.get("environment", {}).items()
        if SECRET.search(name) and value is not None and not re.fullmatch(r"\$\{\w+:\?[^}]*\}", str(value))
    ]
    return [*weak, *literal]


def passwords_in_urls(compose: Compose) -> list[str]:
    """A password in a URL ends up in logs; a separate PGPASSWORD does not."""
    return [text for text in strings(compose) if re.search(r"://[^/@\s]*:[^/@\s]+@", text)]


def ports_beyond_loopback(compose: Compose) -> list[str]:
    """Ports are published on this machine's loopback only."""
    return [
        f"{name}: {port}"
        for name, spec in services(compose).items()
        for port in spec.get("ports", [])
        if not (port.get("host_ip") if isinstance(port, dict) else str(port)).startswith("127.0.0.1")
    ]


def images_that_float(compose: Compose) -> list[str]:
    """Every image is pinned to a version."""
    images = {name: str(spec.get("image", "")) for name, spec in services(compose).items()}
    return [f"{name}: {image or 'no image'}" for name, image in images.items() if not PINNED.fullmatch(image)]


def soft_containers(compose: Compose) -> list[str]:
    """No root, no capability, nothing writable but volumes, bounded memory and processes."""
    return [f"{name}: {what}" for name, spec in services(compose).items() for what in _soft(spec)]


def _soft(spec: Mapping[str, Any]) -> Iterator[str]:
    if spec.get("read_only") is not True:
        yield "read_only"
    if spec.get("cap_drop") != ["ALL"] or spec.get("cap_add"):
        yield "cap_drop"
    if "no-new-privileges:true" not in spec.get("security_opt", []):
        yield "no-new-privileges"
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(spec.get("user", ""))):
        yield "user"
    for name in ("mem_limit", "pids_limit"):
        if not spec.get(name):
            yield name
    if spec.get("privileged") or any(spec.get(n) == "host" for n in ("network_mode", "pid", "ipc", "userns_mode")):
        yield "shares the host"
    if any("docker.sock" in text for text in strings(spec.get("volumes", []))):
        yield "docker.sock"


def broken_dependencies(compose: Compose) -> list[str]:
    """Dependencies exist, have a health check, and contain no cycle."""
    problems = []
    for name, spec in services(compose).items():
        for other, how in spec.get("depends_on", {}).items():
            target = services(compose).get(other)
            if target is None:
                problems.append(f"{name} waits for {other}, which is not there")
            elif how["condition"] == "service_healthy" and "healthcheck" not in target:
                problems.append(f"{name} waits for the health of {other}, which has no healthcheck")
            elif how["condition"] == "service_completed_successfully" and target.get("restart") != "no":
                problems.append(f"{name} waits for the end of {other}, which is restarted")
    return problems or _circles(compose)


def _circles(compose: Compose) -> list[str]:
    left = {name: set(spec.get("depends_on", {})) for name, spec in services(compose).items()}
    while free := [name for name, needs in left.items() if not needs]:
        for name in free:
            del left[name]
        for needs in left.values():
            needs.difference_update(free)
    return [f"{name} waits in a circle" for name in left]


def loose_ends(compose: Compose) -> list[str]:
    """Volumes and networks are defined and used; mounts from the repository exist and are read-only."""
    problems = []
    used: dict[str, set[str]] = {"volumes": set(), "networks": set()}
    for name, spec in services(compose).items():
        used["networks"].update(spec.get("networks", []))
        if not spec.get("networks"):
            problems.append(f"{name} is on the default network")
        for source, *rest in (str(volume).split(":") for volume in spec.get("volumes", [])):
            if not source.startswith("."):
                used["volumes"].add(source)
            elif not (ROOT / source).exists() or rest[1:] != ["ro"]:
                problems.append(f"{name} mounts {source}")
    for kind, names in used.items():
        problems.extend(f"{kind}: {name}" for name in names ^ set(compose.get(kind, {})))
    return problems


def unknown_variables(compose: Compose) -> list[str]:
    """Every variable is a setting of CHM or is read by a known program."""
    return [
        f"{service}: {name}"
        for service, spec in services(compose).items()
        for name in spec.get("environment", {})
        if name not in settings.KNOWN | OTHERS_VARIABLES
    ]


def unexplained_variables(compose: Compose) -> list[str]:
    """The example file lists exactly the variables that can be set, commented out if they are optional."""
    wanted = {name: operator == ":?" for name, operator, _ in references(compose)}
    lines = re.findall(r"^(# )?([A-Z][A-Z0-9_]+)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    explained = {name: not comment for comment, name in lines}
    return sorted(name for name in wanted | explained if wanted.get(name) is not explained.get(name))


def drivers_by_chance(compose: Compose) -> list[str]:
    """Dagster's storage supports psycopg 2 only, and SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3."""
    return [
        f"{service}: {url}"
        for service, spec in services(compose).items()
        if (url := spec.get("environment", {}).get(settings.DAGSTER_DATABASE_URL))
        and not url.startswith("postgresql+psycopg2://")
    ]


def homes_that_vanish(compose: Compose) -> list[str]:
    """The home of a service is on a volume, unless the service runs once and stores nothing."""
    problems = []
    for name, spec in services(compose).items():
        home = spec.get("environment", {}).get(settings.HOME)
        kept = {str(volume).split(":")[1] for volume in spec.get("volumes", [])}
        if home and home not in kept and spec.get("restart") != "no":
            problems.append(f"{name}: {home}")
    return problems


def open_code_servers(compose: Compose) -> list[str]:
    """The gRPC server of Dagster's code runs what it is sent. It listens on one internal network, without the API on it."""
    (name,) = (name for name, spec in services(compose).items() if "code-server" in spec.get("command", []))
    words, networks = services(compose)[name]["command"], services(compose)[name]["networks"]
    host = words[words.index("--host") + 1]
    named = [n for n, spec in networks.items() if host in (spec or {}).get("aliases", [])]
    inside = {n for network in named for n, spec in services(compose).items() if network in spec["networks"]}
    problems = [f"{host} is the name of {name} on {named}"] if len(named) != 1 else []
    problems += [f"{n} has a way out" for n in named if not compose["networks"][n].get("internal")]
    return problems + [f"{other} reaches it" for other in inside - {name, "webserver", "daemon"}]


def passwords_too_many(compose: Compose) -> list[str]:
    """Only `migrate` is the owner of CHM's database, and a service of ours has the passwords of exactly its own roles."""
    problems = []
    for name, own in ((n, s.get("environment", {})) for n, s in services(compose).items() if "build" in s):
        roles = {settings.DATABASE_URL: "chm" if name == "migrate" else "chm_app"}
        roles |= {settings.DAGSTER_DATABASE_URL: "chm_dagster"}
        problems += [
            f"{name}: {u} is not of {role}" for u, role in roles.items() if f"//{role}@" not in own.get(u, f"//{role}@")
        ]
        wanted = {ROLE_PASSWORDS[role] for url, role in roles.items() if url in own}
        problems += [f"{name}: {word}" for word in wanted ^ (set(own) & set(ROLE_PASSWORDS.values()))]
        problems += [
            f"{name}: {own[word]}" for word in wanted & set(own) if not str(own[word]).startswith(f"${{{word}:?")
        ]
    return problems


def commands(compose: Compose) -> Iterator[tuple[str, list[str]]]:
    """Every command of a service of our image, health checks included, as service and words."""
    for name, spec in services(compose).items():
        if "build" not in spec:
            continue
        words = [str(word) for word in spec["command"]]
        if words[0] == "sh":
            yield from ((name, shlex.split(part)) for part in words[-1].split(";"))
        else:
            yield name, words
        health = spec.get("healthcheck", {}).get("test", ["CMD"])
        if health[1:]:
            yield name, [str(word) for word in health[1:]]


def blind_dashboards(compose: Compose) -> list[str]:
    """Grafana gets every variable that its files name, the files themselves, and no password but that of chm_bi."""
    spec = services(compose)["grafana"]
    own, mounts = spec["environment"], {str(v).split(":")[0]: str(v).split(":")[1] for v in spec["volumes"]}
    text = "\n".join(p.read_text() for p in (ROOT / "dashboards/grafana/provisioning").rglob("*.yaml"))
    wanted = set(re.findall(r"\$(\w+)", text))
    problems = sorted(wanted - set(own))
    problems += [n for n in own if SECRET.search(n) and n not in wanted | {"GF_SECURITY_ADMIN_PASSWORD"}]
    if mounts.get("./dashboards/grafana/provisioning") != "/etc/grafana/provisioning":
        problems.append("provisioning")
    if f"path: {mounts.get('./dashboards/grafana/dashboards')}\n" not in text:
        problems.append("dashboards")
    return problems + ["anonymous"] * (own.get("GF_AUTH_ANONYMOUS_ENABLED") != "false")


def stray_metabase(compose: Compose) -> list[str]:
    """Metabase has a database and a role of its own, no other password, and is filled once it responds."""
    metabase, content = services(compose)["metabase"], services(compose)["metabase-content"]
    own = metabase["environment"]
    problems = [name for name in ("MB_DB_USER", "MB_DB_DBNAME") if own.get(name) != "chm_metabase"]
    if set(re.findall(r"\$\{(\w+):\?", str(own))) != {"CHM_METABASE_POSTGRES_PASSWORD"}:
        problems.append("passwords of metabase")
    words = content["command"]
    if (
        words[:4] != ["chm", "dashboards", "metabase", "apply"]
        or words[words.index("--url") + 1] != "http://metabase:3000"
    ):
        problems.append("command of metabase-content")
    if not str(metabase["ports"]).endswith(":3000']") or not set(metabase["networks"]) & set(content["networks"]):
        problems.append("metabase-content does not reach metabase")
    if content["depends_on"].get("metabase") != {"condition": "service_healthy"}:
        problems.append("metabase-content does not wait")
    given = {name for name in content["environment"] if SECRET.search(name)}
    return problems + [
        f"{n} of metabase-content" for n in given ^ {"CHM_METABASE_PASSWORD", "CHM_BI_POSTGRES_PASSWORD"}
    ]


RULES: tuple[Rule, ...] = (
    secrets_with_defaults,
    passwords_in_urls,
    ports_beyond_loopback,
    images_that_float,
    soft_containers,
    broken_dependencies,
    loose_ends,
    unknown_variables,
    unexplained_variables,
    drivers_by_chance,
    homes_that_vanish,
    open_code_servers,
    passwords_too_many,
    blind_dashboards,
    stray_metabase,
)
