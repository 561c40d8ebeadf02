"""Helpers that call the API and check its errors."""

from typing import Any

import httpx

CODES = {
    400: "validation_error",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    500: "internal_error",
    503: "unavailable",
}


def refused(answer: httpx.Response, status: int) -> set[str]:
    """The fields that an error names, after checking its status, its code and its shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert body["error"]["code"] == CODES[status]
    assert body["error"]["message"]
    assert all(set(detail) == {"field", "issue"} and detail["issue"] for detail in body["error"]["details"])
    return {detail["field"] for detail in body["error"]["details"]}


def details(answer: httpx.Response) -> dict[str, str]:
    """Field -> what is wrong with it."""
    return {detail["field"]: detail["issue"] for detail in answer.json()["error"]["details"]}


def add_client(api: httpx.Client, name: str) -> dict[str, Any]:
    """A client with this name, created unless it exists."""
    answer = api.post("/api/v1/clients", json={"name": name})
    if answer.status_code == 409:
        answer = api.get(f"/api/v1/clients/{name.lower()}")
    client: dict[str, Any] = answer.json()
    return client


def add_pipeline(api: httpx.Client, client: str, name: str, **fields: Any) -> dict[str, Any]:
    """A pipeline, with its client created if needed."""
    body = {"name": name, "platform": "custom", "pipeline_type": "ingestion", **fields}
    answer = api.post(f"/api/v1/clients/{add_client(api, client)['id']}/pipelines", json=body)
    assert answer.status_code == 201, answer.text
    pipeline: dict[str, Any] = answer.json()
    return pipeline
