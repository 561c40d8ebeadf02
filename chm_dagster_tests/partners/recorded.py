"""Reads and serves the recordings."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from chm_dagster_tests.http.fault_server import Reply, Request, json_reply

FOLDER = Path(__file__).parent / "recordings"


def recording(platform: str, name: str) -> dict[str, Any]:
    """One recorded exchange."""
    found: dict[str, Any] = json.loads((FOLDER / platform / f"{name}.json").read_text())
    return found


def body(platform: str, name: str) -> Any:
    """The recorded response."""
    return recording(platform, name)["response"]["json"]


def served(platform: str, name: str) -> Reply:
    """The recorded response, with its status and its Date."""
    answer = recording(platform, name)["response"]
    return json_reply(answer["json"], answer["status"], answer["headers"])


def observed_at(platform: str, name: str) -> datetime:
    """When it was recorded, by the server's clock."""
    return parsedate_to_datetime(recording(platform, name)["response"]["headers"]["Date"])


def records(platform: str, name: str) -> list[dict[str, Any]]:
    """The run records in a response, wherever they are."""
    answer = body(platform, name)
    if isinstance(answer, list):
        return answer
    if "dag_runs" in answer:
        return list(answer["dag_runs"])
    if "data" in answer:
        return list(answer["data"]["runsOrError"]["results"])
    return [answer]


def snapshots(platform: str) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """Every recorded state of every run, with the time of its request; no two of them are the same.

    The Date header has a resolution of a second; our own clock, which stamps observations, has a finer one.
    """
    key = {"airflow": "dag_run_id", "prefect": "deployment_id", "dagster": "jobName"}[platform]
    found = []
    for path in sorted(FOLDER.glob(f"{platform}/*.json")):
        answer = body(platform, path.stem)
        if isinstance(answer, dict | list) and recording(platform, path.stem)["response"]["status"] in (200, 201):
            try:
                rows = records(platform, path.stem)
            except (KeyError, TypeError):
                continue
            found += [(observed_at(platform, path.stem), path.stem, row) for row in rows if key in row]
    found.sort(key=lambda item: (item[0], item[1]))
    for number, (moment, _, row) in enumerate(found):
        yield moment + timedelta(microseconds=number), row


def asked_for(request: Request) -> tuple[str, str]:
    """Method and path, as a recording names them."""
    return request.method, request.path.removeprefix("/base")
