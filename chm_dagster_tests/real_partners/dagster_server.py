"""A real Dagster webserver, which launches runs without a daemon."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from chm_dagster_tests.real_partners.place import answers, free_port, place
from chm_dagster_tests.real_partners.server import Word, Words, ask, wait_until

HERE = Path(__file__).parent / "dagster"
BUSY = "busy"
BUSY_RUNS = 1_100  # three pages
LIFECYCLE = ("succeeds", "fails", "runs_long", "skips", "recovers")
ENDS = {"SUCCESS": "success", "FAILURE": "failed", "CANCELED": "canceled"}
SETTINGS = """
telemetry: {enabled: false}
run_coordinator: {module: dagster.core.run_coordinator, class: DefaultRunCoordinator}
"""

RUNS = "query { runsOrError { ... on Runs { results { runId jobName status startTime endTime creationTime } } } }"
STATE = "query($run: ID!) { runOrError(runId: $run) { __typename ... on Run { status } } }"
LAUNCH = """
mutation($job: String!) { launchRun(executionParams: {mode: "default", runConfigData: {}, selector: {
    repositoryName: "__repository__", repositoryLocationName: "jobs.py", jobName: $job
}}) { __typename ... on LaunchRunSuccess { run { runId } } } }
"""
REEXECUTE = """
mutation($run: String!) { launchRunReexecution(reexecutionParams: {parentRunId: $run, strategy: ALL_STEPS}) {
    __typename ... on LaunchRunSuccess { run { runId } }
} }
"""
TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
DELETE = "mutation($run: String!) { deletePipelineRun(runId: $run) { __typename } }"


@dataclasses.dataclass(slots=True)
class Dagster:
    """A running webserver and the actions of a person in its UI."""

    base_url: str
    client: httpx.Client

    def words(self) -> Words:
        return {
            (external_id(run["jobName"]), run["runId"]): Word.of(
                ENDS.get(run["status"], "running"),
                *(_moment(run[name]) for name in ("startTime", "endTime", "creationTime")),
            )
            for run in self._ask(RUNS)["runsOrError"]["results"]
        }

    def newest(self, job: str) -> str:
        """The id of a job's latest run."""
        runs = self._ask(RUNS)["runsOrError"]["results"]
        run_id: str = next(run["runId"] for run in runs if run["jobName"] == job)
        return run_id

    def trigger(self, job: str) -> str:
        return self._launched("launchRun", LAUNCH, job=job)

    def reexecute(self, run_id: str) -> str:
        return self._launched("launchRunReexecution", REEXECUTE, run=run_id)

    def terminate(self, run_id: str) -> None:
        assert self._ask(TERMINATE, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def delete(self, run_id: str) -> None:
        assert self._ask(DELETE, run=run_id)["deletePipelineRun"]["__typename"] == "DeletePipelineRunSuccess"

    def state(self, run_id: str) -> str:
        state: str = self._ask(STATE, run=run_id)["runOrError"]["status"]
        return state

    def until(self, run_id: str, *states: str) -> None:
        wait_until(f"{run_id} is {states}", lambda: self.state(run_id) in states)

    def _launched(self, name: str, mutation: str, **variables: Any) -> str:
        answer = self._ask(mutation, **variables)[name]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = ask(self.client, "POST", "/graphql", json={"query": query, "variables": variables}).json()
        assert "errors" not in body, body
        data: dict[str, Any] = body["data"]
        return data


def external_id(job: str) -> str:
    """A job is identified by its code location as well; the runs of the history have none."""
    return job if job == BUSY else f"jobs.py/{job}"


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@contextmanager
def dagster() -> Iterator[Dagster]:
    """Boot it over a history of many runs of the job `busy`."""
    with place("dagster") as here:
        (here.state / "dagster.yaml").write_text(SETTINGS)
        environ = here.environ({"DAGSTER_HOME": str(here.state)})
        here.run(environ, "python", str(HERE / "history.py"), str(BUSY_RUNS))
        port = free_port()
        base_url = f"http://127.0.0.1:{port}"
        serve = ["dagster-webserver", "-h", "127.0.0.1", "-p", str(port), "-f", str(HERE / "jobs.py")]
        here.start("webserver", environ, serve, answers(f"{base_url}/server_info"))
        with httpx.Client(base_url=base_url, trust_env=False, timeout=60) as client:
            yield Dagster(base_url, client)
