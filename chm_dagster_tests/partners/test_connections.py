"""partners.yaml: its format, its error messages, and which pipeline uses which connection."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
import yaml

from chm_dagster.domain.pipelines import IngestedPipeline, Platform
from chm_dagster.errors import AuthError, ConfigError
from chm_dagster.partners.connections import configured, default_partners, load_partners, named_variables, partner_of
from chm_dagster.partners.credentials import credential_names
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.partners_file import json_schema
from chm_dagster.partners.platforms import shipped
from chm_dagster.partners.port import Partner, PipelinesFailed, Probe, SyncTarget
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, json_reply

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "contracts" / "partners.example.yaml"
AIRFLOW = """\
connections:
  acme:
    platform: airflow
    base_url: https://airflow.acme.example
    credentials: {username: ACME_USER, password: ACME_PASSWORD}
"""
CUSTOM = """\
connections:
  loader:
    platform: custom
    base_url: https://loader.example
    rest:
      title: Loader
      reopens: true
      scope: {filter_by: none}
      streams:
        - name: runs
          path: /runs
          query: {since: "${since}"}
      runs:
        data_selector: runs
        pipeline: [job]
        id: id
        status:
          selector: state
          map: {ok: success}
        started: [start]
"""


def partners(tmp_path: Path, text: str, **variables: str) -> dict[str, Partner]:
    file = tmp_path / "partners.yaml"
    file.write_text(text)
    return load_partners(file, variables, None, None)


def complaint(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        partners(tmp_path, text)
    assert caught.value.__cause__ is None
    return str(caught.value).splitlines()


# The shipped files


def test_the_example_is_valid_and_shows_every_shipped_api() -> None:
    found = configured(EXAMPLE)
    assert {one.rest.title for one in found} >= {rest.title for rest in shipped().values()}
    assert sum(one.config.rest is not None for one in found) == 1


def test_the_example_and_every_shipped_api_fit_the_schema() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_text()), schema)
    for api in shipped().values():
        written = json.loads(api.model_dump_json(exclude_unset=True))
        jsonschema.validate({"connections": {"x": {"rest": written, "base_url": "https://x.example"}}}, schema)
        assert Rest.model_validate(written) == api


def test_the_schema_in_contracts_equals_the_models() -> None:
    kept = json.loads((ROOT / "contracts" / "partners.schema.json").read_text())
    assert kept == json_schema(), "write it anew: chm partner schema > contracts/partners.schema.json"


def test_every_part_of_the_schema_is_explained() -> None:
    assert all(definition.get("description") for definition in json_schema()["$defs"].values())


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "platform: airflow",
            "platfrom: airflow",
            3,
            "connections.acme.platfrom: unknown field; did you mean platform?",
        ),
        ("platform: airflow", "platform: airflwo", 3, "connections.acme.platform: must be one of airflow, dbt, "),
        ("platform: airflow", "platform: airflwo", 3, "did you mean airflow?"),
        ("platform: airflow", "api: airflw", 3, "connections.acme.api: unknown API; did you mean airflow"),
        ("platform: airflow", "default: maybe", 3, "connections.acme.default: input should be a valid boolean"),
        ("base_url: https", "base_url: ftp", 4, "base_url: is not a URL that starts with http:// or https://"),
        ("https://airflow", "https://user:sentinel@airflow", 4, "must be free of user, password, query and fragment"),
        ("base_url: https://airflow.acme.example", "history_days: -1", 4, "connections.acme.history_days"),
        (
            "    base_url: https://airflow.acme.example\n",
            "",
            2,
            "connections.acme.base_url: missing; or name the variable",
        ),
        (
            "username: ACME_USER",
            "user: ACME_USER",
            5,
            "connections.acme.credentials.user: unknown credential; did you mean username?",
        ),
        (
            "ACME_PASSWORD",
            "sentinel pass!",
            5,
            "credentials.password: must be the name of an environment variable, never the secret",
        ),
        ("acme:", "a b:", 2, "connections"),
        ("connections:", "conections:", 1, "conections: unknown field; did you mean connections?"),
        ("connections:", "connections: [", 0, "not YAML"),
    ],
)
def test_a_mistake_is_reported_by_line_and_field_with_a_suggestion(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in AIRFLOW
    lines = complaint(tmp_path, AIRFLOW.replace(old, new, 1))
    assert any(words in said for said in lines), lines
    if line:
        assert any(said.startswith(f"partners.yaml, line {line}") for said in lines), lines
    assert "sentinel" not in "".join(lines)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = AIRFLOW.replace("base_url", "bas_url") + "    overlap_minutes: -3\n  other: {platform: dbtt}\n"
    lines = complaint(tmp_path, text)
    assert [said.partition(":")[0] for said in lines] == [
        "partners.yaml, line 4, connections.acme.bas_url",
        "partners.yaml, line 6, connections.acme.overlap_minutes",
        "partners.yaml, line 7, connections.other.platform",
    ]


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("    options: {rows_xcomm: x}\n", "options.rows_xcomm: unknown option; did you mean rows_xcom?"),
        ("    options: {error_lookups: many}\n", "options.error_lookups: must be a number, 0 or more"),
        ("    base_url_env: X\n", "base_url_env: set either base_url or base_url_env, not both"),
        ("    rest: {}\n", "connections.acme.rest.title: missing"),
        ("    api: airflow\n    base_url: https://x.example\n", "line 7, base_url: appears twice"),
    ],
)
def test_contradictory_fields_are_reported(tmp_path: Path, addition: str, words: str) -> None:
    assert any(words in said for said in complaint(tmp_path, AIRFLOW + addition))


def test_a_missing_required_option_is_named_and_explained(tmp_path: Path) -> None:
    text = "connections:\n  d:\n    platform: dbt\n    base_url: https://x.example\n    credentials: {token: T}\n"
    (said,) = complaint(tmp_path, text)
    assert said.startswith(
        "partners.yaml, line 2, connections.d.options.account_id: missing: The number of the account"
    )


def test_a_platform_has_one_default(tmp_path: Path) -> None:
    text = (
        AIRFLOW
        + "    default: true\n"
        + AIRFLOW.partition("\n")[2].replace("acme:", "zenith:", 1)
        + "    default: true\n"
    )
    assert complaint(tmp_path, text) == [
        "partners.yaml, line 11, connections.zenith.default: acme is already the default of platform airflow"
    ]


def test_a_connection_must_name_its_platform(tmp_path: Path) -> None:
    (said,) = complaint(tmp_path, "connections:\n  x:\n    base_url: https://x.example\n")
    assert said == "partners.yaml, line 2, connections.x: set its platform or its api, or describe the API under rest"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "${since}",
            "${sinse}",
            "connections.loader.rest.streams.0.query: there is no ${sinse}; did you mean ${since}?",
        ),
        ("path: /runs", "path: /runs/${id}", "scope.any_id: required, because ${id} is part of a path"),
        ("{filter_by: none}", "{filter_by: id}", "streams.0: ${id} is missing; or set scope.filter_by: none"),
        ("{filter_by: none}", "{filter_by: ids}", "streams.0: ${ids} is missing; or set scope.filter_by: none"),
        ("path: /runs", "path: /${options.team}/runs", "options: team is used in a template and is not described"),
        ("name: runs", "name: runs\n          when: incremental", "streams: none is read when there is no watermark"),
        (
            "name: runs",
            "name: runs\n          window_hours: 24",
            "history_days: required, because a stream with window_hours",
        ),
        (
            "map: {ok: success}",
            "map: {ok: sucess}",
            "rest.runs.status.map.ok: must be one of running, success, failed, canceled, skipped, drop; did you mean success?",
        ),
        ("  loader:", "  my loader:", "connections.my loader: a name has letters"),
        ("title: Loader", "titel: Loader", "connections.loader.rest.titel: unknown field; did you mean title?"),
        (
            "started: [start]",
            "startet: [start]",
            "connections.loader.rest.runs.startet: unknown field; did you mean started?",
        ),
        ("title: Loader", "title: Loader\n      paginator: {kind: cursr}", "did you mean cursor?"),
        ("title: Loader", "title: Loader\n      auth: [{kind: heeder}]", "rest.auth.0"),
        (
            "title: Loader",
            "title: Loader\n      paginator: {kind: page, query: {p: '${pag}'}}",
            "did you mean ${page}?",
        ),
        (
            "title: Loader",
            "title: Loader\n      paginator: {kind: cursor}",
            "rest.paginator: cursor needs next or next_header",
        ),
    ],
)
def test_mistakes_in_a_description_are_reported_as_well(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in CUSTOM
    lines = complaint(tmp_path, CUSTOM.replace(old, new, 1))
    assert any(words in said for said in lines), lines
    assert all(said.startswith("partners.yaml, line ") for said in lines)
    assert not any("[" in said for said in lines), "a model's own words"


@pytest.mark.parametrize("text", ["", "- a\n", "connections\n", "connections: {}\nconnections: {}\n"])
def test_a_file_of_another_kind_is_reported(tmp_path: Path, text: str) -> None:
    assert complaint(tmp_path, text)


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "partners.yaml"
    with pytest.raises(ConfigError, match=r"^partners.yaml does not exist; CHM_PARTNERS_FILE names it$"):
        configured(file)
    file.write_bytes(b"connections: \xff")
    with pytest.raises(ConfigError, match=r"^partners.yaml is not UTF-8; CHM_PARTNERS_FILE names it$"):
        configured(file)
    with pytest.raises(ConfigError, match=r" is a directory; CHM_PARTNERS_FILE names it$"):
        configured(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "ghp_16charsAndMoreOfThem",
        "AKIAIOSFODNN7EXAMPLE",
        "9f86d081884c7d659a2feaa0c55ad015",
        "wJalrXUtnFEMI7KMDENG4bPx",
    ],
)
def test_a_secret_in_the_place_of_a_name_is_refused_and_not_shown(tmp_path: Path, name: str) -> None:
    (said,) = complaint(tmp_path, AIRFLOW.replace("acme:", f"{name}:", 1))
    assert said == (
        "partners.yaml, line 2, connections: the name of this connection looks like a secret; "
        "choose another, since names appear in logs"
    )
    shown = complaint(tmp_path, AIRFLOW.replace("platform: airflow", "ghp_16charsAndMoreOfThem: airflow"))
    assert "ghp_" not in "".join(shown)


@pytest.mark.parametrize("name", ["acme-production-airflow-2024", "acmeProductionAirflowWest2024", "default", "a1b2c3"])
def test_an_ordinary_name_is_no_secret(tmp_path: Path, name: str) -> None:
    assert set(partners(tmp_path, AIRFLOW.replace("acme:", f"{name}:", 1))) == {name}


def test_aliases_that_blow_up_the_file_are_refused_at_once(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (said,) = complaint(tmp_path, "\n".join([*levels, AIRFLOW]))
    assert said == "partners.yaml, line 5: the aliases expand the file to many times its size; write fewer of them"
    (said,) = complaint(tmp_path, "connections: &c {acme: *c}\n")
    assert said == "partners.yaml, line 1: an alias that refers to itself; write out what is meant"


def test_an_anchor_may_be_used_by_several_connections(tmp_path: Path) -> None:
    text = AIRFLOW.replace("credentials: {", "credentials: &c {") + (
        "  zenith:\n    platform: airflow\n    base_url: https://z.example\n    credentials: *c\n"
    )
    assert set(partners(tmp_path, text)) == {"acme", "zenith"}


def test_the_content_of_a_file_of_another_kind_is_not_shown(tmp_path: Path) -> None:
    said = complaint(tmp_path, "root:$6$sentinel:20228:0:99999:7::: \nsentinel=4711;: x\n")
    assert "partners.yaml, line 1, ***: unknown field; known fields are connections" in said
    assert "sentinel" not in "".join(said)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    assert complaint(tmp_path, "connections: !!python/object/apply:os.system ['true']\n")


# Credentials


def end_of(partner: Partner) -> PipelinesFailed:
    async def scene() -> PipelinesFailed:
        feed = partner.open_feed()
        (event,) = [
            event async for event in feed.sync([SyncTarget("p1", None), SyncTarget("p1", None), SyncTarget("p2", None)])
        ]
        probe = await feed.check()
        await feed.aclose()
        assert isinstance(event, PipelinesFailed)
        assert (probe.ok, probe.detail) == (False, str(event.error))
        return event

    return asyncio.run(scene())


def test_a_connection_without_its_credentials_fails_and_names_the_variable(tmp_path: Path) -> None:
    found = partners(tmp_path, AIRFLOW, ACME_USER="u")
    event = end_of(found["acme"])
    assert event.external_ids == ("p1", "p2")
    assert isinstance(event.error, AuthError)
    assert str(event.error) == (
        "connection acme: the environment variable ACME_PASSWORD is not set (credentials.password)"
    )


def test_an_unusable_address_or_credential_fails_only_its_connection(tmp_path: Path) -> None:
    text = AIRFLOW.replace("base_url: https://airflow.acme.example", "base_url_env: ACME_URL")
    event = end_of(partners(tmp_path, text, ACME_USER="u", ACME_PASSWORD="p", ACME_URL="ftp://sentinel")["acme"])
    assert "base_url is not a URL" in str(event.error)
    assert "sentinel" not in str(event.error)
    token = AIRFLOW.replace("{username: ACME_USER, password: ACME_PASSWORD}", "{token: ACME_TOKEN}")
    event = end_of(partners(tmp_path, token, ACME_TOKEN="senti\nnel")["acme"])
    assert str(event.error) == "connection acme: a credential is empty or holds a special character"


def test_a_login_may_authenticate_with_http_basic(tmp_path: Path) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Reply:
        seen.append(request)
        return json_reply({"access_token": "t1"} if request.path.endswith("/token") else {"runs": []})

    login = (
        "      auth:\n        - {kind: login, path: /token, form: {grant_type: client_credentials}, "
        "basic: '${credentials.id}:${credentials.secret}'}\n"
    )

    async def scene() -> Probe:
        async with FaultServer(answer) as server:
            text = CUSTOM.replace("https://loader.example", server.base_url).replace(
                "      title:", login + "      title:"
            )
            text = text.replace("    rest:", "    credentials: {id: ID, secret: SECRET}\n    rest:")
            feed = partners(tmp_path, text, ID="me", SECRET="p:w")["loader"].open_feed()
            try:
                return await feed.check()
            finally:
                await feed.aclose()

    assert asyncio.run(scene()).ok
    assert seen[0].headers["authorization"] == "Basic bWU6cDp3"
    assert seen[1].headers["authorization"] == "Bearer t1"


def test_the_variables_that_a_file_names_are_known() -> None:
    names = named_variables(EXAMPLE)
    assert {"ACME_AIRFLOW_USER", "ZENITH_AIRFLOW_URL", "LOADER_KEY"} <= names
    assert named_variables(None) == set()


def test_no_secret_is_shown_with_a_partner(tmp_path: Path) -> None:
    found = partners(tmp_path, AIRFLOW, ACME_USER="sentinel-user", ACME_PASSWORD="sentinel-password")
    assert "sentinel" not in repr(found)


# Which pipeline uses which connection


def pipeline(platform: Platform, connection: str | None = None) -> IngestedPipeline:
    return IngestedPipeline(uuid4(), "acme", "orders", platform, connection, "x", None)


def test_a_pipeline_goes_to_the_connection_that_it_names(tmp_path: Path) -> None:
    found = partners(tmp_path, AIRFLOW)
    assert partner_of(pipeline(Platform.PREFECT, "acme"), found).name == "acme"
    with pytest.raises(ConfigError, match="there is no connection 'acmee'; configured: acme"):
        partner_of(pipeline(Platform.AIRFLOW, "acmee"), found)


def test_without_a_name_it_goes_to_the_only_or_the_default_connection_of_its_platform(tmp_path: Path) -> None:
    one = partners(tmp_path, AIRFLOW)
    assert partner_of(pipeline(Platform.AIRFLOW), one).name == "acme"
    two = AIRFLOW + AIRFLOW.partition("\n")[2].replace("acme:", "zenith:", 1)
    with pytest.raises(ConfigError, match="name its connection, one of acme, zenith; or make one of them the default"):
        partner_of(pipeline(Platform.AIRFLOW), partners(tmp_path, two))
    assert partner_of(pipeline(Platform.AIRFLOW), partners(tmp_path, two + "    default: true\n")).name == "zenith"


def test_without_any_of_its_platform_it_goes_to_the_partner_of_the_environment(tmp_path: Path) -> None:
    found = partners(tmp_path, AIRFLOW)
    with pytest.raises(ConfigError, match="no partner is configured for platform dbt"):
        partner_of(pipeline(Platform.DBT), found)
    both = {**default_partners("https://chm.example", None), **found}
    assert partner_of(pipeline(Platform.DBT), both).name == "default"
    assert partner_of(pipeline(Platform.AIRFLOW), both).name == "acme"


def test_a_file_and_the_environment_make_partners_together(tmp_path: Path) -> None:
    file = tmp_path / "partners.yaml"
    file.write_text(AIRFLOW)
    assert set(load_partners(file, {}, "https://chm.example", "t")) == {"acme", "default"}
    assert set(load_partners(None, {}, "https://chm.example", "t")) == {"default"}
    assert load_partners(None, {}, None, None) == {}


def test_the_abilities_of_a_partner_are_listed(tmp_path: Path) -> None:
    found = load_partners(EXAMPLE, {}, None, None)
    assert (found["acme-airflow"].capabilities.scope, found["fivetran"].capabilities.scope) == ("account", "pipeline")
    assert found["acme-airflow"].capabilities.finds_deletions
    assert not found["fivetran"].capabilities.finds_deletions
    assert found["acme-airflow"].capabilities.reopens
    assert not found["acme-dagster"].capabilities.reopens
    assert found["databricks"].capabilities.retention_days == 60
    assert found["acme-prefect"].platform is Platform.PREFECT
    assert found["warehouse-adf"].platform is Platform.VENDOR_API


def test_settings_of_a_connection_reach_its_requests(tmp_path: Path) -> None:
    text = (
        AIRFLOW + "    overlap_minutes: 9\n    http: {concurrency: 2, requests_per_minute: 30, deadline_seconds: 7}\n"
    )
    feed: Any = partners(tmp_path, text, ACME_USER="u", ACME_PASSWORD="p")["acme"].open_feed()
    policy = feed._api.http.policy
    assert (policy.concurrency, policy.requests_per_minute, policy.deadline) == (2, 30.0, 7.0)
    assert feed.overlap.total_seconds() == 540


def test_connections_of_one_account_share_its_requests_per_minute(tmp_path: Path) -> None:
    async def scene() -> list[float]:
        started: list[float] = []

        def answer(request: Request) -> Reply:
            started.append(asyncio.get_running_loop().time())
            return json_reply({})

        async with FaultServer(answer) as server:
            http = "http: {requests_per_minute: 300}"
            connections = "connections:\n" + "".join(
                f"  {name}: {{api: generic, base_url: '{server.base_url}', credentials: {{token: {token}}}, {http}}}\n"
                for name, token in (("shop", "ACME"), ("app", "ACME"), ("other", "BOLT"))
            )
            found = partners(tmp_path, connections, ACME="acme-secret", BOLT="bolt-secret")
            feeds: dict[str, Any] = {name: one.open_feed() for name, one in found.items()}
            sent = [feeds[name]._api.http.get_json([name]) for name in ("shop", "app", "shop", "app", "other")]
            await asyncio.gather(*sent)
            for feed in feeds.values():
                await feed.aclose()
            order = [request.target.rpartition("/")[2] for request in server.requests]
        return sorted(at for name, at in zip(order, started, strict=True) if name != "other")

    times = asyncio.run(scene())
    assert times[-1] - times[0] >= 0.55, "four requests of one account, a fifth of a second apart"


def test_the_schema_is_printed_for_editors() -> None:
    command = [sys.executable, "-m", "chm_dagster.cli.main", "partner", "schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(printed.stdout) == json_schema()


def test_the_partners_page_states_how_every_shipped_api_was_verified() -> None:
    page = (ROOT / "docs" / "partners.md").read_text()
    rows = {line.split("`")[1]: line.split("|") for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(shipped())
    for name, api in shipped().items():
        _, _, platform, known, _, credentials, _ = (cell.strip() for cell in rows[name])
        assert platform == ("any" if name == "generic" else api.platform.value)
        assert known.startswith("the real server") == (api.verified == "real_server")
        wanted = {" + ".join(sorted(credential_names(way))) or "none" for way in api.auth}
        documented = {
            " + ".join(sorted(part.strip().split(" + ")))
            for part in re.split(r", or |, |\bor\b", credentials)
            if part.strip()
        }
        assert documented == wanted, name
