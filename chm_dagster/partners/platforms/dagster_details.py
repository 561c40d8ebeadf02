"""Why Dagster runs failed, from their event logs, and how many rows they materialized."""

from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from typing import Any

from chm_dagster.errors import SchemaDrift
from chm_dagster.http.client import HttpClient, Request
from chm_dagster.partners.engine.details import Budget, Found
from chm_dagster.partners.engine.selectors import find, first

Run = Mapping[str, Any]

_RUNS_AT_ONCE = 10
"""Event logs are slow: some 30 ms per run, against 0.1 ms for the run alone."""
_MAX_LOG_PAGES = 5
_FAILURES = """
__typename
... on ExecutionStepFailureEvent { stepKey error { message cause { message cause { message } } } }
... on RunFailureEvent { message error { message cause { message } } }
"""
_ERRORS = f"""
query Errors($ids: [String]) {{
  runsOrError(filter: {{runIds: $ids}}) {{
    __typename
    ... on Runs {{ results {{ runId eventConnection(limit: 1000) {{ cursor hasMore events {{ {_FAILURES} }} }} }} }}
  }}
}}
"""
_MORE = f"""
query More($id: ID!, $after: String) {{
  logsForRun(runId: $id, afterCursor: $after, limit: 1000) {{
    __typename
    ... on EventConnection {{ cursor hasMore events {{ {_FAILURES} }} }}
  }}
}}
"""
_ROWS = """
query Rows($ids: [String]) {
  runsOrError(filter: {runIds: $ids}) {
    __typename
    ... on Runs {
      results {
        runId
        assetMaterializations { metadataEntries { label ... on IntMetadataEntry { intRepr } } }
      }
    }
  }
}
"""
ROW_COUNT = "dagster/row_count"


class DagsterDetails:
    """Queries a Dagster webserver. `counts_rows`: whether to add up the rows that were materialized."""

    def __init__(self, http: HttpClient, *, counts_rows: bool) -> None:
        self._http = http
        self._counts_rows = counts_rows

    def key(self, record: Run) -> Hashable:
        """A run never runs again under its id."""
        return str(record.get("runId"))

    def lacks_error(self, record: Run) -> bool:
        """The list of runs never says why."""
        return record.get("status") == "FAILURE"

    def lacks_rows(self, record: Run) -> bool:
        """Only if they are wanted."""
        return self._counts_rows and record.get("status") == "SUCCESS"

    async def errors(self, runs: Sequence[Run], budget: Budget) -> Found:
        """A few runs with their events in each request; the rest of a long log only if nothing was found."""
        async for run in self._results(_ERRORS, runs, budget):
            log = run.get("eventConnection")
            text = await self._error(str(run.get("runId")), log if isinstance(log, dict) else {}, budget)
            if text is not None:
                yield self.key(run), {"error": text}

    async def rows(self, runs: Sequence[Run], budget: Budget) -> Found:
        """The counts of all materializations of a run, added up."""
        async for run in self._results(_ROWS, runs, budget):
            entries = find(run, "assetMaterializations.*.metadataEntries.*")
            texts = [first(entry, ["intRepr"]) for entry in entries if first(entry, ["label"]) == ROW_COUNT]
            counts = [int(text) for text in texts if isinstance(text, str) and text.isascii() and text.isdigit()]
            if counts:
                yield self.key(run), {"rows": sum(counts)}

    async def _results(self, query: str, runs: Sequence[Run], budget: Budget) -> AsyncGenerator[Run, None]:
        for start in range(0, len(runs), _RUNS_AT_ONCE):
            if not budget.take():
                return
            ids = [str(run.get("runId")) for run in runs[start : start + _RUNS_AT_ONCE]]
            data = await self._query(query, {"ids": ids})
            for run in find(data, "runsOrError.results.*"):
                if isinstance(run, dict):
                    yield run

    async def _query(self, query: str, variables: Mapping[str, Any]) -> Any:
        answer = await self._http.send(
            Request(["graphql"], method="POST", body={"query": query, "variables": variables})
        )
        if answer.body.get("errors") or not isinstance(answer.body.get("data"), dict):
            raise SchemaDrift(f"{self._http.label}: Dagster rejects a query for event logs")
        return answer.body["data"]

    async def _error(self, run_id: str, log: Mapping[str, Any], budget: Budget) -> str | None:
        """The first step that failed, with the cause of Dagster's own error; else why the run as a whole failed."""
        run_failure = None
        for page in range(_MAX_LOG_PAGES):
            if page:
                data = await self._query(_MORE, {"id": run_id, "after": log.get("cursor")})
                following = data.get("logsForRun")
                log = following if isinstance(following, dict) else {}
            for event in find(log, "events.*"):
                text = _failure(event)
                if text is None:
                    continue
                if first(event, ["__typename"]) == "ExecutionStepFailureEvent":
                    return text
                run_failure = run_failure or text
            if not log.get("hasMore") or not budget.take():
                break
        return run_failure


def _failure(event: Any) -> str | None:
    """The text of a failure event; None for any other event."""
    kind = first(event, ["__typename"])
    if kind not in ("ExecutionStepFailureEvent", "RunFailureEvent"):
        return None
    message = first(event, ["error.cause.cause.message", "error.cause.message", "error.message", "message"])
    text = message.strip() if isinstance(message, str) else ""
    step = first(event, ["stepKey"])
    return f"step {step}: {text}" if step and text else text or None
