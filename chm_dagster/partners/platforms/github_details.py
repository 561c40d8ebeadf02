"""When GitHub's workflow runs ended, and why they failed, from their jobs: a run names only its last change."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from chm_dagster.errors import SchemaDrift
from chm_dagster.http.client import HttpClient, Request
from chm_dagster.http.failures import StatusError
from chm_dagster.partners.engine.details import Budget, Found
from chm_dagster.partners.engine.selectors import find

Run = Mapping[str, Any]

_MAX_PAGES = 5
_FAILED = ("failure", "timed_out", "startup_failure")
_WITHOUT_JOBS = ("skipped", "action_required")


class GithubDetails:
    """Requests the jobs of runs in one repository."""

    def __init__(self, http: HttpClient, owner: str, repo: str) -> None:
        self._http = http
        self._runs = ("repos", owner, repo, "actions", "runs")

    def key(self, record: Run) -> Hashable:
        """A re-run keeps the id and counts its attempts."""
        return (str(record.get("id")), str(record.get("run_attempt")), str(record.get("updated_at")))

    def lacks_error(self, record: Run) -> bool:
        """No list says when a run ended."""
        return record.get("status") == "completed" and record.get("conclusion") not in _WITHOUT_JOBS

    def lacks_rows(self, record: Run) -> bool:
        """GitHub counts no rows."""
        return False

    async def errors(self, runs: Sequence[Run], budget: Budget) -> Found:
        """The end of each run, and its failed jobs. Failed runs come first."""
        for run in sorted(runs, key=lambda run: run.get("conclusion") not in _FAILED):
            if not budget.take():
                return
            jobs = await self._jobs(run, budget)
            ends = [job["completed_at"] for job in jobs if isinstance(job.get("completed_at"), str)]
            details = {"finished": max(ends)} if ends and len(ends) == len(jobs) else {}
            if run.get("conclusion") in _FAILED:
                failed = sorted((job for job in jobs if job.get("conclusion") in _FAILED), key=_ended)
                details |= {"error": _cause(failed[0])} if failed else {}
            yield self.key(run), details

    async def rows(self, runs: Sequence[Run], budget: Budget) -> Found:
        """Nothing."""
        nothing: Sequence[tuple[Hashable, Mapping[str, Any]]] = ()
        for found in nothing:
            yield found

    async def _jobs(self, run: Run, budget: Budget) -> list[Run]:
        """The jobs of the run's last attempt; none if GitHub has dropped them."""
        jobs: list[Run] = []
        for page in range(1, _MAX_PAGES + 1):
            path = [*self._runs, str(run.get("id")), "jobs"]
            params = [("filter", "latest"), ("per_page", "100"), ("page", str(page))]
            try:
                body = (await self._http.send(Request(path, params))).body
            except StatusError as error:
                if error.status == 404:
                    return []
                raise
            if not isinstance(body.get("jobs"), list):
                raise SchemaDrift(f"{self._http.label}: jobs is missing or not a list")
            jobs += [job for job in body["jobs"] if isinstance(job, dict)]
            total = body.get("total_count")
            if not isinstance(total, int) or len(jobs) >= total or not budget.take():
                break
        return jobs


def _ended(job: Run) -> str:
    return str(job.get("completed_at") or "~")


def _cause(job: Run) -> str:
    """The first step of a job that failed."""
    steps = [step for step in find(job, "steps.*") if isinstance(step, dict) and step.get("conclusion") in _FAILED]
    step = f", step {steps[0].get('name')}" if steps else ""
    return f"job {job.get('name')}{step}: {job.get('conclusion')}"
