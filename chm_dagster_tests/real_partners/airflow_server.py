"""A real Airflow 3 or 2: API server, scheduler and local or sequential executor over SQLite."""

import dataclasses
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from chm_dagster_tests.real_partners.place import Place, answers, free_port, place
from chm_dagster_tests.real_partners.server import Word, Words, ask, moment, wait_until

HERE = Path(__file__).parent
FLEET = [f"fleet_{number:04}" for number in range(1_000)]
SMALL_FLEET = FLEET[:20]
BUSY = "busy"
BUSY_RUNS = 260  # three pages
LIFECYCLE = ("succeeds", "fails", "runs_long", "skips", "stumbles", "recovers")
STATUS = {"queued": "running", "running": "running", "success": "success", "failed": "failed"}


@dataclasses.dataclass(slots=True)
class Airflow:
    """A running Airflow and the actions of a person in its UI. `passwords` are by user: admin, viewer, nobody."""

    base_url: str
    passwords: dict[str, str]
    client: httpx.Client
    api: str = "/api/v2"

    @property
    def history(self) -> list[str]:
        """Run ids of the busy DAG at the start, by name."""
        return sorted(run_id for dag_id, run_id in self.words() if dag_id == BUSY and run_id.startswith("scheduled__"))

    def words(self) -> Words:
        words: dict[tuple[str, str], Word] = {}
        offset, total = 0, None
        while total is None or offset < total:
            query = {"page_limit": 5_000, "page_offset": offset, "order_by": "id"}
            body = ask(self.client, "POST", f"{self.api}/dags/~/dagRuns/list", json=query).json()
            for run in body["dag_runs"]:
                key = (run["dag_id"], run["dag_run_id"])
                times = (moment(run.get(name)) for name in ("start_date", "end_date", "queued_at", "run_after"))
                words[key] = Word.of(STATUS[run["state"]], *times)
            offset, total = offset + len(body["dag_runs"]), body["total_entries"]
        assert len(words) == total
        return words

    def trigger(self, dag_id: str, run_id: str, *, after: timedelta | None = None) -> None:
        body: dict[str, Any] = {"dag_run_id": run_id}
        if self.api == "/api/v2":
            body["logical_date"] = None
        if after is not None:
            body["run_after"] = (datetime.now(UTC) + after).isoformat()
        ask(self.client, "POST", f"{self.api}/dags/{dag_id}/dagRuns", json=body, expect=(200, 409))

    def state(self, dag_id: str, run_id: str) -> str:
        state: str = ask(self.client, "GET", self._path(dag_id, run_id)).json()["state"]
        return state

    def until(self, dag_id: str, run_id: str, *states: str) -> None:
        wait_until(f"{dag_id} {run_id} is {states}", lambda: self.state(dag_id, run_id) in states)

    def mark(self, dag_id: str, run_id: str, state: str) -> None:
        ask(self.client, "PATCH", self._path(dag_id, run_id), json={"state": state})

    def clear(self, dag_id: str, run_id: str) -> None:
        ask(self.client, "POST", f"{self._path(dag_id, run_id)}/clear", json={"dry_run": False})

    def pause(self, dag_id: str, *, paused: bool) -> None:
        ask(self.client, "PATCH", f"{self.api}/dags/{dag_id}", json={"is_paused": paused})

    def delete(self, dag_id: str, run_id: str) -> None:
        ask(self.client, "DELETE", self._path(dag_id, run_id))

    def delete_dag(self, dag_id: str) -> None:
        ask(self.client, "DELETE", f"{self.api}/dags/{dag_id}")

    def _path(self, dag_id: str, run_id: str) -> str:
        return f"{self.api}/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


@contextmanager
def airflow(name: str = "airflow", fleet: Sequence[str] = FLEET, busy: Sequence[str] = (BUSY,)) -> Iterator[Airflow]:
    """Boot Airflow 3, with a long history of the busy DAGs and the lifecycle DAGs unpaused."""
    with place(name) as here:
        port = free_port()
        base_url = f"http://127.0.0.1:{port}"
        passwords = {user: secrets.token_urlsafe(12) for user in ("admin", "viewer", "nobody")}
        environ = _environ(here, port, passwords, len(fleet))
        here.run(environ, "airflow", "db", "migrate")
        here.run(environ, "airflow", "dags", "reserialize")
        here.run(environ, "python", str(HERE / "airflow" / "history.py"), str(BUSY_RUNS), *busy)
        health = f"{base_url}/api/v2/monitor/health"
        serve = ["airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        here.start("api-server", environ, serve, answers(health))
        here.start("scheduler", environ, ["airflow", "scheduler"], answers(health, _schedules))
        with httpx.Client(base_url=base_url, trust_env=False, timeout=60) as client:
            login = {"username": "admin", "password": passwords["admin"]}
            token = ask(client, "POST", "/auth/token", json=login).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield Airflow(base_url, passwords, client)


@contextmanager
def airflow_2(fleet: Sequence[str] = SMALL_FLEET) -> Iterator[Airflow]:
    """Boot Airflow 2, with the same history and basic authentication."""
    with place("airflow-2.11") as here:
        port = free_port()
        base_url = f"http://127.0.0.1:{port}"
        password = secrets.token_urlsafe(12)
        environ = _environ_2(here, port, len(fleet))
        here.run(environ, "airflow", "db", "migrate")
        person = ["--firstname", "A", "--lastname", "B", "--email", "admin@example.com", "--password", password]
        here.run(environ, "airflow", "users", "create", "--username", "admin", "--role", "Admin", *person)
        here.run(environ, "airflow", "dags", "reserialize")
        here.run(environ, "python", "-W", "ignore", str(HERE / "airflow_2" / "history.py"), str(BUSY_RUNS), BUSY)
        health = f"{base_url}/health"
        serve = ["airflow", "webserver", "--hostname", "127.0.0.1", "--port", str(port), "--workers", "1"]
        here.start("webserver", environ, serve, answers(health))
        here.start("scheduler", environ, ["airflow", "scheduler"], answers(health, _schedules))
        with httpx.Client(base_url=base_url, trust_env=False, timeout=60, auth=("admin", password)) as client:
            yield Airflow(base_url, {"admin": password}, client, api="/api/v1")


def _schedules(answer: httpx.Response) -> bool:
    return bool(answer.json()["scheduler"]["status"] == "healthy")


def _common(here: Place, dags: str, fleet_size: int) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(here.state),
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / dags / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "FLEET_SIZE": str(fleet_size),
    }


def _environ_2(here: Place, port: int, fleet_size: int) -> dict[str, str]:
    settings = {
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
        "AIRFLOW__WEBSERVER__SECRET_KEY": secrets.token_urlsafe(32),
        "AIRFLOW__WEBSERVER__BASE_URL": f"http://127.0.0.1:{port}",
    }
    return here.environ({**_common(here, "airflow_2", fleet_size), **settings})


def _environ(here: Place, port: int, passwords: dict[str, str], fleet_size: int) -> dict[str, str]:
    password_file = here.state / "passwords.json"
    password_file.touch(mode=0o600)
    password_file.write_text(json.dumps(passwords))
    settings = {
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer,nobody:",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(password_file),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
    }
    return here.environ({**_common(here, "airflow", fleet_size), **settings})
