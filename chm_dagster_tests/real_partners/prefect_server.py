"""A real Prefect server with a process that serves its flows."""

import dataclasses
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from chm_dagster_tests.real_partners.place import answers, free_port, place
from chm_dagster_tests.real_partners.server import Word, Words, ask, moment, wait_until

HERE = Path(__file__).parent / "prefect"
LIFECYCLE = ("succeeds", "fails", "runs-long", "skips", "stumbles", "recovers", "times-out", "crashes")
PAGE = 200
ENDS = {"COMPLETED": "success", "FAILED": "failed", "CRASHED": "failed", "CANCELLED": "canceled"}
DUE = ("Late", "AwaitingRetry")
"""Scheduled runs that should have started; other scheduled runs have not happened yet."""


@dataclasses.dataclass(slots=True)
class Prefect:
    """A running Prefect and the actions of a person in its UI. `deployments` are ids by flow name."""

    base_url: str
    password: str
    client: httpx.Client
    deployments: dict[str, str] = dataclasses.field(default_factory=dict)

    def words(self) -> Words:
        words: dict[tuple[str, str], Word] = {}
        offset = 0
        while True:
            query = {"limit": PAGE, "offset": offset, "sort": "ID_DESC"}
            page = self._filter(query)
            if not page:
                return words
            for run in page:
                status = _status(run["state"])
                if status is not None and run["deployment_id"] is not None:
                    times = (moment(run[name]) for name in ("start_time", "end_time", "expected_start_time"))
                    words[run["deployment_id"], run["id"]] = Word.of(status, *times)
            offset += len(page)

    def deploy(self, name: str, **fields: Any) -> None:
        """A deployment that no process serves, so that the tests control its runs."""
        flow = ask(self.client, "POST", "/flows/", json={"name": name}).json()["id"]
        body = {"name": "unserved", "flow_id": flow, **fields}
        self.deployments[name] = ask(self.client, "POST", "/deployments/", json=body).json()["id"]

    def learn_deployments(self) -> None:
        flows = {f["id"]: f["name"] for f in ask(self.client, "POST", "/flows/filter", json={}).json()}
        for deployment in ask(self.client, "POST", "/deployments/filter", json={}).json():
            self.deployments[flows[deployment["flow_id"]]] = deployment["id"]

    def trigger(self, name: str, state: str | None = None) -> str:
        """Create a run, scheduled for now unless it is to start in another state, and return its id."""
        body = {} if state is None else {"state": {"type": state}}
        path = f"/deployments/{self.deployments[name]}/create_flow_run"
        run_id: str = ask(self.client, "POST", path, json=body).json()["id"]
        return run_id

    def trigger_without_deployment(self) -> None:
        """A run that belongs to no pipeline, as from a script on somebody's laptop."""
        flow = ask(self.client, "POST", "/flows/", json={"name": "ad-hoc"}).json()["id"]
        ask(self.client, "POST", "/flow_runs/", json={"flow_id": flow, "state": {"type": "RUNNING"}})

    def set_state(
        self,
        run_id: str,
        type_: str,
        name: str | None = None,
        *,
        message: str | None = None,
        at: datetime | None = None,
        force: bool = False,
    ) -> None:
        """Propose a state, or force it. `at` is when a scheduled run is to start."""
        details = {} if at is None else {"scheduled_time": at.isoformat()}
        state = {"type": type_, "name": name, "message": message, "state_details": details}
        answer = ask(self.client, "POST", f"/flow_runs/{run_id}/set_state", json={"state": state, "force": force})
        assert answer.json()["status"] == "ACCEPT", answer.json()

    def first(self, name: str) -> str:
        """The id of a deployment's only run."""
        (run_id,) = (run_id for deployment, run_id in self.words() if deployment == self.deployments[name])
        return run_id

    def scheduled(self, name: str) -> str:
        """The id of a future run of this deployment, created by the server's scheduler."""
        query = {
            "deployments": {"id": {"any_": [self.deployments[name]]}},
            "flow_runs": {"state": {"name": {"any_": ["Scheduled"]}}},
        }
        wait_until("the scheduler has made runs", lambda: bool(self._filter(query)))
        run_id: str = self._filter(query)[0]["id"]
        return run_id

    def running(self, name: str) -> str:
        """The id of this deployment's only run that is running."""
        query = {
            "deployments": {"id": {"any_": [self.deployments[name]]}},
            "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        (run,) = self._filter(query)
        run_id: str = run["id"]
        return run_id

    def _filter(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = ask(self.client, "POST", "/flow_runs/filter", json=query).json()
        return runs

    def state(self, run_id: str) -> str:
        """The state as `TYPE/Name`."""
        state = ask(self.client, "GET", f"/flow_runs/{run_id}").json()["state"]
        return f"{state['type']}/{state['name']}"

    def until(self, run_id: str, *states: str) -> None:
        """Wait for one of these states, given as `TYPE` or `TYPE/Name`."""

        def met() -> bool:
            state = self.state(run_id)
            return state in states or state.partition("/")[0] in states

        wait_until(f"{run_id} is {states}", met)

    def delete(self, run_id: str) -> None:
        ask(self.client, "DELETE", f"/flow_runs/{run_id}")


def _status(state: dict[str, Any]) -> str | None:
    if state["type"] == "COMPLETED" and state["name"] == "Skipped":
        return "skipped"
    if state["type"] == "SCHEDULED" and state["name"] not in DUE:
        return None
    return ENDS.get(state["type"], "running")


@contextmanager
def prefect() -> Iterator[Prefect]:
    """Boot it and serve its lifecycle flows."""
    with place("prefect") as here:
        port = free_port()
        base_url = f"http://127.0.0.1:{port}/api"
        password = secrets.token_urlsafe(12)
        # By default, all users of a machine share a folder that belongs to the first of them.
        scratch = here.state / "tmp"
        scratch.mkdir()
        settings = {
            "TMPDIR": str(scratch),
            "PREFECT_HOME": str(here.state),
            "PREFECT_API_URL": base_url,
            "PREFECT_API_AUTH_STRING": f"chm:{password}",
            "PREFECT_SERVER_API_AUTH_STRING": f"chm:{password}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        environ = here.environ(settings)
        serve = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        here.start("server", environ, serve, answers(f"{base_url}/health"))
        with httpx.Client(base_url=base_url, auth=("chm", password), trust_env=False, timeout=60) as client:
            server = Prefect(base_url, password, client)
            here.start("flows", environ, ["python", str(HERE / "flows.py")], lambda: _all_served(server))
            yield server


def _all_served(server: Prefect) -> bool:
    time.sleep(0.5)
    server.learn_deployments()
    return server.deployments.keys() >= set(LIFECYCLE)


def hourly_from(moment_: datetime) -> dict[str, Any]:
    """A deployment's schedule field with the first run at that time."""
    schedule = {"interval": timedelta(hours=1).total_seconds(), "anchor_date": moment_.astimezone(UTC).isoformat()}
    return {"schedules": [{"schedule": schedule, "active": True}]}
