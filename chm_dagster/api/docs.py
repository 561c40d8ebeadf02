"""The interactive page of the API, at /docs.

Its script and style come with an installed package, so that it works where no other network is.
"""

import importlib.util
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

_PACKAGE = importlib.util.find_spec("fastapi_offline")


def install(app: FastAPI) -> None:
    """Serve the page, its parts, and a way from / to it."""
    page = _page(app.title, str(app.openapi_url))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    if _PACKAGE is not None and _PACKAGE.origin is not None:
        app.mount("/docs/parts", StaticFiles(directory=Path(_PACKAGE.origin).parent / "static"))


def _page(title: str, contract: str) -> HTMLResponse:
    wishes = {"persistAuthorization": True, "displayRequestDuration": True, "defaultModelsExpandDepth": 0}
    if _PACKAGE is None:  # then the page is only as good as the way to the network that has its parts
        return get_swagger_ui_html(openapi_url=contract, title=title, swagger_ui_parameters=wishes)
    return get_swagger_ui_html(
        openapi_url=contract,
        title=title,
        swagger_js_url="/docs/parts/swagger-ui-bundle.js",
        swagger_css_url="/docs/parts/swagger-ui.css",
        swagger_favicon_url="/docs/parts/favicon.png",
        swagger_ui_parameters=wishes,
    )
