"""Events sent by real producers: Airflow 3.3.2 (its provider 2.20.3) and dbt-core 1.10 (dbt-ol 1.54), reduced to the
facets that describe a run.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LATEST = datetime(2026, 12, 1, tzinfo=UTC)
_FOLDER = Path(__file__).parent / "recordings"


def events(producer: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((_FOLDER / f"{producer}.json").read_text())
    return loaded


def sent(
    kind: str | None = "START",
    at: str = "2026-11-23T12:00:00Z",
    *,
    run: str = "u1",
    job: str = "orders",
    **changes: Any,
) -> dict[str, Any]:
    """A small event of a separate run."""
    return {
        "eventType": kind,
        "eventTime": at,
        "producer": "test",
        "schemaURL": "test",
        "job": {"namespace": "acme", "name": job, "facets": changes.pop("job_facets", {})},
        "run": {"runId": run, "facets": changes.pop("facets", {})},
        **changes,
    }


def of_task(kind: str = "START", at: str = "2026-11-23T12:00:01Z", *, error: str | None = None) -> dict[str, Any]:
    """An event of a task of the run that `sent` creates."""
    parent = {"run": {"runId": "u1"}, "job": {"namespace": "acme", "name": "orders"}}
    facets: dict[str, Any] = {"parent": parent} | ({"errorMessage": {"message": error}} if error else {})
    return sent(kind, at, run="t1", job="orders.load", facets=facets)
