"""contracts/openapi.yaml describes the app completely, and its documentation page needs no other network."""

import json
import re
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from chm_dagster.api import openapi
from chm_dagster.api.admission import PUBLIC
from chm_dagster.api.app import bare_app
from chm_dagster.api.errors import CODES

SCHEMA: dict[str, Any] = bare_app().openapi()
OPERATIONS = [(path, method, o) for path, methods in SCHEMA["paths"].items() for method, o in methods.items()]


def test_the_file_equals_the_schema_of_the_app() -> None:
    written = openapi.FILE.read_text(encoding="utf-8")
    assert written == openapi.as_text(bare_app()), "run `python -m chm_dagster.api.openapi`"


def test_the_served_contract_equals_the_file(api: httpx.Client) -> None:
    assert api.get("/openapi.json").json() == yaml.safe_load(openapi.FILE.read_text(encoding="utf-8"))


def test_all_agreed_paths_exist() -> None:
    one, many = {"get", "patch", "delete"}, {"get", "post"}
    nouns = {
        "clients": many,
        "clients/{client_id}": one,
        "clients/{client_id}/pipelines": many,
        "clients/{client_id}/runs/summary": {"get"},
        "pipelines": many,
        "pipelines/{pipeline_id}": one,
        "pipelines/{pipeline_id}/runs": many,
        "pipelines/{pipeline_id}/runs/latest": {"get"},
        "alert_rules": many,
        "alert_rules/{rule_id}": one,
    }
    questions = ("failing", "changed", "latest", "flaky", "failures", "platforms", "durations")
    expected = {f"/api/v1/{path}": methods for path, methods in nouns.items()}
    expected |= {f"/api/v1/health/{question}": {"get"} for question in questions}
    expected |= {f"/ping/{{pipeline_id}}/{signal}": many for signal in ("start", "success", "fail")}
    expected |= {path: {"get"} for path in ("/healthz", "/readyz", "/metrics")}
    assert {path: set(SCHEMA["paths"][path]) for path in expected} == expected


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_operation_documents_its_responses(path: str, method: str, operation: dict[str, Any]) -> None:
    statuses = {int(status) for status in operation["responses"]}
    good = {s for s in statuses if s < 400}
    assert len(good) == 1
    expected = {500, 503}
    if path not in PUBLIC:
        expected |= {401, 403, 413}
    if "{" in path:
        expected.add(404)
    if "requestBody" in operation or any(p["in"] == "query" for p in operation.get("parameters", ())):
        expected.add(400)
    # What stores nothing is in conflict with nothing.
    stores = not path.startswith(("/api/v1/lineage", "/api/v1/back_tests")) and not path.endswith("/test")
    if "requestBody" in operation and stores:
        expected.add(409)
    assert expected <= statuses
    for status in statuses - good:
        assert operation["responses"][str(status)] == {"$ref": f"#/components/responses/{CODES[status][0]}"}
    assert operation["description"]
    assert operation.get("security") == ([] if path in PUBLIC else None)


def test_operation_ids_are_unique() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z_]+", name) for name in names)


def test_every_error_has_the_same_shape_and_an_example() -> None:
    for code, response in SCHEMA["components"]["responses"].items():
        content = response["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorAnswer"}
        assert content["example"]["error"]["code"] == code
        validate(content["example"], content["schema"])


def validate(instance: Any, schema: dict[str, Any]) -> None:
    whole = {**schema, "components": SCHEMA["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(instance)


def test_every_body_has_an_example_that_the_app_accepts(api: httpx.Client) -> None:
    api.post("/api/v1/clients", json={"name": "Acme", "slug": "acme"})
    api.post(
        "/api/v1/clients/acme/pipelines",
        json={"name": "Given", "slug": "given", "platform": "cron", "pipeline_type": "export"},
    )
    rule = {"client_id": "acme", "rule_type": "on_failure", "channel": "slack", "destination": "#x"}
    places = {
        "client_id": "acme",
        "pipeline_id": "acme/given",
        "rule_id": api.post("/api/v1/alert_rules", json=rule).json()["id"],
    }
    api.patch("/api/v1/clients/acme", json={"name": "Renamed"})  # so that the example's name is free
    seen = 0
    for path, method, operation in OPERATIONS:
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        if "$ref" not in schema:
            continue
        for example in SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"]:
            validate(example, schema)
            # Each on an empty database: two of the examples create the same pipeline.
            answer = api.request(method, path.format(**places), json=example)
            assert answer.status_code in (200, 201, 409), (path, answer.text)
            assert answer.status_code != 409 or "already" in answer.text or "another" in answer.text
            seen += 1
    assert seen == 10


def test_responses_match_the_contract(api: httpx.Client) -> None:
    """Response schemas are closed in practice: responses contain no field that the schema does not name."""
    client = api.post("/api/v1/clients", json={"name": "Acme"}).json()
    assert set(client) == set(SCHEMA["components"]["schemas"]["Client"]["properties"])


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_and_all_its_parts_come_from_this_server(api: httpx.Client) -> None:
    page = api.get("/docs").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page) + re.findall(r"url: '([^']+)'", page)
    assert len(parts) == 4
    for part in parts:
        assert part.startswith("/"), part
        answer = api.get(part)
        assert answer.status_code == 200, part
        assert len(answer.content) > 1000, part
    assert "//" not in re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL).replace("</", "")


def test_the_contract_is_plain_json(api: httpx.Client) -> None:
    assert json.loads(api.get("/openapi.json").text)["openapi"].startswith("3.1")
