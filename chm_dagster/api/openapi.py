"""The API's description: `contracts/openapi.yaml`, which a test keeps equal to the app, and the page at /docs.

`python -m chm_dagster.api.openapi` rewrites the file after a change of a route or a schema. The script and the style of
the page come with an installed package, so that it works without access to other networks.
"""

import importlib.util
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from chm_dagster import yaml_document
from chm_dagster.api.admission import PUBLIC
from chm_dagster.api.errors import CODES

_PACKAGE = importlib.util.find_spec("fastapi_offline")
FILE = Path(__file__).resolve().parents[2] / "contracts" / "openapi.yaml"
DESCRIPTION = """\
Clients, their pipelines, runs and alert rules, and the health of all of them.

- Ids are UUIDs. A slug is accepted wherever an id is; a pipeline's is `client-slug/pipeline-slug`.
- Lists are `{"items": [...], "next_cursor": ...}`. Send `next_cursor` as `cursor` to get the next page; null ends the
  list.
- Times are ISO 8601 with an offset; a time without one is rejected. Spans such as `24h` and `7d`, and `today` and
  `yesterday` (in UTC), are accepted as well.
- Filters are named as the fields that they filter. `client`, `pipeline`, `active` and `enabled` are accepted as short
  forms of `client_id`, `pipeline_id`, `is_active` and `is_enabled`.
- Errors are `{"error": {"code", "message", "details": [{"field", "issue"}]}}`.
- Every response has a header `X-Request-ID`: the one that was sent, or a new one.
- DELETE on a client or a pipeline disables it; its history stays.
- HEAD is supported wherever GET is.
"""
_SCHEME = {"type": "http", "scheme": "bearer", "description": "The token in CHM_API_TOKEN of the server."}
_HEADERS = {
    401: {"WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}}},
    405: {"Allow": {"description": "The methods that the path supports.", "schema": {"type": "string"}}},
    503: {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer"}}},
}


def operation_id(route: APIRoute) -> str:
    """The name of the function: short, and unique by a test."""
    return route.name


def install(app: FastAPI) -> None:
    """Let the app describe its own errors and its token, and serve the page."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation proposes
    _serve_page(app)


def _serve_page(app: FastAPI) -> None:
    page = _page(app.title, str(app.openapi_url))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    if _PACKAGE is not None and _PACKAGE.origin is not None:
        app.mount("/docs/parts", StaticFiles(directory=Path(_PACKAGE.origin).parent / "static"))


def _page(title: str, contract: str) -> HTMLResponse:
    options = {"persistAuthorization": True, "displayRequestDuration": True, "defaultModelsExpandDepth": 0}
    if _PACKAGE is None:  # then the page needs access to the network that has its script and style
        return get_swagger_ui_html(openapi_url=contract, title=title, swagger_ui_parameters=options)
    return get_swagger_ui_html(
        openapi_url=contract,
        title=title,
        swagger_js_url="/docs/parts/swagger-ui-bundle.js",
        swagger_css_url="/docs/parts/swagger-ui.css",
        swagger_favicon_url="/docs/parts/favicon.png",
        swagger_ui_parameters=options,
    )


def _describe(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema["components"]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _share(operation)
            # FastAPI's title case: List Clients.
            operation["summary"] = operation["summary"].capitalize()
            for parameter in operation.get("parameters", ()):
                # The parameter has them itself.
                parameter["schema"].pop("description", None)
                parameter["schema"].pop("title", None)
            if path in PUBLIC:
                operation["security"] = []
    for model in components["schemas"].values():
        for described in model.get("properties", {}).values():
            # Pydantic's titles repeat the names.
            described.pop("title", None)
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["responses"] = {code: _error(status) for status, (code, _) in sorted(CODES.items())}
    components["securitySchemes"] = {"token": _SCHEME}
    return {**schema, "security": [{"token": []}]}


def _share(operation: dict[str, Any]) -> None:
    """Refer to the errors that operations have in common."""
    # FastAPI assumes 422 for invalid input; CHM returns 400.
    operation["responses"].pop("422", None)
    for status in operation["responses"]:
        if int(status) >= 400:
            operation["responses"][status] = {"$ref": f"#/components/responses/{CODES[int(status)][0]}"}


def _error(status: int) -> dict[str, Any]:
    code, message = CODES[status]
    details = [{"field": "name", "issue": "is required"}] if status == 400 else []
    example = {"error": {"code": code, "message": message, "details": details}}
    content = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}, "example": example}
    headers = {"headers": _HEADERS[status]} if status in _HEADERS else {}
    return {"description": message[0].upper() + message[1:], **headers, "content": {"application/json": content}}


def as_text(app: FastAPI) -> str:
    """The content of the file."""
    body = yaml_document.dump(app.openapi())
    return f"# Written by `python -m chm_dagster.api.openapi`; do not edit.\n{body}"


if __name__ == "__main__":
    from chm_dagster.api.app import bare_app

    FILE.write_text(as_text(bare_app()), encoding="utf-8")
