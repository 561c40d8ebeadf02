"""The contract of the API, `contracts/openapi.yaml`, which a test holds equal to the app.

`python -m chm_dagster.api.contract` writes it anew after a change of a route or a schema.
"""

from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from chm_dagster.api.bodies import MODEL
from chm_dagster.api.guarding import PUBLIC
from chm_dagster.api.problems import CODES

FILE = Path(__file__).resolve().parents[2] / "contracts" / "openapi.yaml"
DESCRIPTION = """\
Clients, their pipelines, runs and alert rules, and the questions about their health.

- Ids are UUIDs. A slug is accepted wherever an id is; a pipeline's is `client-slug/pipeline-slug`.
- Lists answer `{"items": [...], "next_cursor": ...}`. Send `next_cursor` as `cursor` for the next page; null ends it.
- Times are ISO 8601 with an offset. A time without one is refused.
- Every answer from 400 on is `{"error": {"code", "message", "details": [{"field", "issue"}]}}`.
- Every answer has a header `X-Request-ID`: the one that was sent, or a new one.
- DELETE of a client or a pipeline disables it; its history stays.
"""
_SCHEME = {"type": "http", "scheme": "bearer", "description": "The token in CHM_API_TOKEN of the server."}
_HEADERS = {
    401: {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}},
    405: {"Allow": {"description": "The methods that it takes.", "schema": {"type": "string"}}},
    503: {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer"}}},
}


def operation_id(route: APIRoute) -> str:
    """The name of the function: short, and unique by a test."""
    return route.name


def install(app: FastAPI) -> None:
    """Let the app describe itself as it really is: our errors, our token."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # the way that FastAPI names for it


def _describe(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema["components"]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _share(operation, components["schemas"])
            for parameter in operation.get("parameters", ()):
                # Said of the parameter itself already.
                parameter["schema"].pop("description", None)
                parameter["schema"].pop("title", None)
            if path in PUBLIC:
                operation["security"] = []
    for model in components["schemas"].values():
        for described in model.get("properties", {}).values():
            # Pydantic's titles are the names over again.
            described.pop("title", None)
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["responses"] = {code: _error(status) for status, (code, _) in sorted(CODES.items())}
    components["securitySchemes"] = {"token": _SCHEME}
    return {**schema, "security": [{"token": []}]}


def _share(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Name what operations have in common, rather than to spell it out in each: errors, and bodies by their model."""
    # FastAPI assumes its own answer to bad input; ours is 400.
    operation["responses"].pop("422", None)
    for status in operation["responses"]:
        if int(status) >= 400:
            operation["responses"][status] = {"$ref": f"#/components/responses/{CODES[int(status)][0]}"}
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].pop(MODEL, None)
        if name is not None:
            schemas[name] = {**content["schema"], "title": name}
            content["schema"] = {"$ref": f"#/components/schemas/{name}"}


def _error(status: int) -> dict[str, Any]:
    code, message = CODES[status]
    details = [{"field": "name", "issue": "missing; it is required"}] if status == 400 else []
    example = {"error": {"code": code, "message": message, "details": details}}
    content = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "example": example}
    headers = {"headers": _HEADERS[status]} if status in _HEADERS else {}
    return {"description": message[0].upper() + message[1:], **headers, "content": {"application/json": content}}


def as_text(app: FastAPI) -> str:
    """The contract as the file has it."""
    body = yaml.dump(app.openapi(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return f"# Written by `python -m chm_dagster.api.contract`; do not edit.\n{body}"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as people write them."""

    def represent_text(self, text: str) -> yaml.Node:
        """Represent a text."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)

if __name__ == "__main__":
    from chm_dagster.api.app import bare_app

    FILE.write_text(as_text(bare_app()), encoding="utf-8")
