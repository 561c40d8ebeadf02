"""Why Airflow runs failed, from the logs of their tasks, and how many rows they processed, from an XCom."""

from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from typing import Any

from chm_dagster.errors import Permanent, SchemaDrift
from chm_dagster.http.client import HttpClient, Request
from chm_dagster.http.failures import StatusError
from chm_dagster.partners.engine.details import Budget, Found
from chm_dagster.partners.engine.selectors import find

_API = ("api", "v2")
_RUNS_AT_ONCE = 100
_MAX_XCOM_PAGES = 5
_MAX_TASK_PAGES = 10
_MAX_LOG_BYTES = 4 * 1024 * 1024

Run = Mapping[str, Any]


class AirflowDetails:
    """Requests details from Airflow 3. `rows_xcom` is the key of the XCom with a task's row count; None: no rows."""

    def __init__(self, http: HttpClient, rows_xcom: str | None) -> None:
        self._http = http
        self._rows_xcom = rows_xcom

    def key(self, record: Run) -> Hashable:
        """A cleared run keeps its id, and ends again."""
        return (str(record.get("dag_id")), str(record.get("dag_run_id")), str(record.get("end_date")))

    def lacks_error(self, record: Run) -> bool:
        """The list of runs never says why."""
        return record.get("state") == "failed"

    def lacks_rows(self, record: Run) -> bool:
        """Only if tasks count their rows."""
        return self._rows_xcom is not None and record.get("state") == "success"

    async def errors(self, runs: Sequence[Run], budget: Budget) -> Found:
        """One request for the failed tasks of many runs, then one log for each run."""
        for start in range(0, len(runs), _RUNS_AT_ONCE):
            chunk = runs[start : start + _RUNS_AT_ONCE]
            first = await self._first_failed_tasks(chunk, budget)
            for run in chunk:
                task = first.get(_of_run(run))
                if task is not None:
                    yield self.key(run), {"error": await self._error(task, budget)}

    async def _first_failed_tasks(self, runs: Sequence[Run], budget: Budget) -> dict[tuple[str, str], Run]:
        """For each run the task that failed first: the others mostly failed because of it.

        If there are more failed tasks than fit into a response, each run is looked at by itself, so that a run with
        thousands of them hides no other.
        """
        if not budget.take():
            return {}
        tasks, total = await self._failed_tasks(runs, 0)
        if total > len(tasks):
            for run in runs:
                tasks += await self._all_failed_tasks(run, budget)
        first: dict[tuple[str, str], Run] = {}
        for task in sorted(tasks, key=lambda task: str(task.get("end_date") or "~")):
            first.setdefault(_of_run(task), task)
        return first

    async def _all_failed_tasks(self, run: Run, budget: Budget) -> list[Run]:
        """The failed tasks of one run. They come in the order in which they failed, if Airflow sorts them."""
        found: list[Run] = []
        for _ in range(_MAX_TASK_PAGES):
            if not budget.take():
                break
            page, total = await self._failed_tasks([run], len(found))
            found += page
            if not page or len(found) >= total:
                break
        return found

    async def _failed_tasks(self, runs: Sequence[Run], offset: int) -> tuple[list[Run], int]:
        """A page of the failed tasks of these runs, those that failed first, and how many there are."""
        body = {
            "dag_ids": sorted({str(run.get("dag_id")) for run in runs}),
            "dag_run_ids": sorted({str(run.get("dag_run_id")) for run in runs}),
            "state": ["failed"],
            "order_by": "end_date",
            "page_offset": offset,
            "page_limit": 1000,
        }
        path = [*_API, "dags", "~", "dagRuns", "~", "taskInstances", "list"]
        response = await self._http.send(Request(path, method="POST", body=body))
        tasks, total = response.body.get("task_instances"), response.body.get("total_entries")
        if not isinstance(tasks, list):
            raise SchemaDrift(f"{self._http.label}: task_instances is missing or not a list")
        return [task for task in tasks if isinstance(task, dict)], total if isinstance(total, int) else len(tasks)

    async def _error(self, task: Run, budget: Budget) -> str:
        name = f"task {task.get('task_id')}"
        index = task.get("map_index")
        if isinstance(index, int) and index >= 0:
            name += f"[{index}]"
        if not budget.take():
            return f"{name} failed"
        cause = None
        try:
            cause = await self._exception(task)
        except (Permanent, SchemaDrift) as error:
            # Logs are deleted sooner than runs, and some are too long. Missing rights are another matter.
            if isinstance(error, StatusError) and error.status != 404:
                raise
        return f"{name}: {cause}" if cause else f"{name} failed; its log names no exception"

    async def _exception(self, task: Run) -> str | None:
        path = [*self._task_path(task), "logs", str(task.get("try_number") or 1)]
        index = task.get("map_index")
        params = [("full_content", "true"), ("map_index", str(index if isinstance(index, int) else -1))]
        answer = await self._http.send(Request(path, params, max_body_bytes=_MAX_LOG_BYTES))
        details = [detail for detail in find(answer.body, "content.*.error_detail.0") if isinstance(detail, dict)]
        if not details:
            return None
        last = details[-1]
        kind, value = last.get("exc_type") or "an exception", last.get("exc_value")
        return f"{kind}: {value}" if value else str(kind)

    def _task_path(self, task: Run) -> list[str]:
        ids = [str(task.get(name)) for name in ("dag_id", "dag_run_id", "task_id")]
        return [*_API, "dags", ids[0], "dagRuns", ids[1], "taskInstances", ids[2]]

    async def rows(self, runs: Sequence[Run], budget: Budget) -> Found:
        """The tasks of these runs that have counted, in a request or two, then their counts, summed for each run."""
        counting: dict[tuple[str, str], list[Run]] = {}
        async for entry in self._entries(runs, budget):
            counting.setdefault((str(entry.get("dag_id")), str(entry.get("run_id"))), []).append(entry)
        for run in runs:
            entries = counting.get(_of_run(run), ())
            counts = [await self._count(run, entry) for entry in entries if budget.take()]
            known = [count for count in counts if count is not None]
            if known and len(counts) == len(entries):
                yield self.key(run), {"rows": sum(known)}

    async def _entries(self, runs: Sequence[Run], budget: Budget) -> AsyncGenerator[Run, None]:
        """The XComs with the key from the time of these runs; before Airflow 3.3 possibly from all times."""
        after = sorted(text for run in runs if isinstance(text := run.get("run_after"), str))
        span = [("run_after_gte", after[0]), ("run_after_lte", after[-1])] if after else []
        path = [*_API, "dags", "~", "dagRuns", "~", "taskInstances", "~", "xcomEntries"]
        offset, total = 0, 1
        for _ in range(_MAX_XCOM_PAGES):
            if offset >= total or not budget.take():
                return
            page = [("limit", "100"), ("offset", str(offset))]
            body = (await self._http.send(Request(path, [("xcom_key", str(self._rows_xcom)), *span, *page]))).body
            entries = [entry for entry in find(body, "xcom_entries.*") if isinstance(entry, dict)]
            total = body.get("total_entries") if isinstance(body.get("total_entries"), int) else 0
            offset += len(entries) or total
            for entry in entries:
                yield entry

    async def _count(self, run: Run, entry: Run) -> int | None:
        path = [*self._task_path({**run, "task_id": entry.get("task_id")}), "xcomEntries", str(self._rows_xcom)]
        index = entry.get("map_index")
        params = [("map_index", str(index))] if isinstance(index, int) else []
        try:
            value = (await self._http.send(Request(path, params))).body.get("value")
        except StatusError as error:
            if error.status == 404:
                return None
            raise
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _of_run(record: Run) -> tuple[str, str]:
    return str(record.get("dag_id")), str(record.get("dag_run_id"))
