"""Airflow, Prefect and Dagster, as in the recordings of the real servers."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import unquote

from chm_dagster_tests.http.fault_server import Reply, Request
from chm_dagster_tests.partners.scripts.script import (
    ABSENT,
    NOW,
    Run,
    Script,
    epoch,
    iso,
    moment,
    ok,
    status_reply,
)

ACTIVE = ("queued", "running")


def parts(request: Request) -> list[str]:
    return [unquote(part) for part in request.target.partition("?")[0].removeprefix("/base/").split("/")]


class Airflow(Script):
    """Airflow 3.3: a login, cursors over updated_at."""

    credentials: ClassVar[dict[str, str]] = {"username": "viewer", "password": "good-secret"}
    words: ClassVar[dict[str, str]] = {"canceled": "failed"}
    error_inline: ClassVar[bool] = False
    api: ClassVar[str] = "v2"

    def unproven(self, request: Request) -> Reply | None:
        if parts(request) == ["api", "v2", "version"]:
            return ok({"version": "3.3.2", "git_version": "x"})
        if parts(request) == ["auth", "token"]:
            good = request.json == {"username": "viewer", "password": "good-secret"}
            return ok({"access_token": "jwt-1"}, 201) if good else status_reply(401)
        return None

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == "Bearer jwt-1"

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        return {
            "dag_run_id": run.id,
            "dag_id": run.pipeline,
            "logical_date": None,
            "queued_at": iso(at.changed if at.started is None else at.started),
            "start_date": iso(at.started),
            "end_date": iso(at.finished),
            "run_after": iso(at.started or at.changed),
            "last_scheduling_decision": iso(NOW),
            "state": self.spelled(at),
            "conf": {},
        }

    def is_for_runs(self, request: Request) -> bool:
        return parts(request)[-1] == "dagRuns"

    def route(self, request: Request) -> Reply:
        match parts(request):
            case ["api", self.api, "dags"]:
                dags = [{"dag_id": p, "dag_display_name": p.upper(), "is_paused": p == "p2"} for p in self.pipelines]
                offset = int(request.query["offset"])
                return ok({"dags": self.cut(dags, offset, self.list_size), "total_entries": len(dags)})
            case ["api", self.api, "dags", dag_id, "dagRuns"]:
                return self._list(request, dag_id)
            case ["api", self.api, "dags", dag_id, "dagRuns", run_id]:
                found = self.rows(lambda run: (run.pipeline, run.id) == (dag_id, run_id))
                return ok(found[0]) if found else ABSENT
        return self._enrichment(request)

    def _enrichment(self, request: Request) -> Reply:
        if parts(request)[-2:] == ["taskInstances", "list"]:
            tasks = [
                {
                    "dag_id": d,
                    "dag_run_id": r,
                    "task_id": "load",
                    "try_number": 1,
                    "map_index": -1,
                    "end_date": iso(NOW),
                }
                for d in request.json["dag_ids"]
                for r in request.json["dag_run_ids"]
            ]
            return ok({"task_instances": tasks, "total_entries": len(tasks)})
        if "logs" in parts(request):
            detail = [{"exc_type": "ValueError", "exc_value": "no space left"}]
            return ok({"content": [{"event": "hello"}, {"event": "failed", "error_detail": detail}]})
        return ABSENT

    def _list(self, request: Request, dag_id: str) -> Reply:
        if dag_id not in ("~", *self.pipelines):
            return ABSENT
        query = request.query
        since = moment(query.get("updated_at_gte"))
        states = request.lists.get("state")
        rows = self.rows(
            lambda run: (
                dag_id in ("~", run.pipeline)
                and (since is None or run.stage.changed >= since)
                and (states is None or self.spelled(run.stage) in states)
            ),
            lambda run: (run.stage.changed, run.id),
        )
        return self._paged(request, rows)

    def _paged(self, request: Request, rows: list[Any]) -> Reply:
        cursor = request.query.get("cursor")
        offset = int(cursor.removeprefix("at-")) if cursor else 0
        limit = min(int(request.query["limit"]), 100)
        page = self.cut(rows, offset, limit)
        following = f"at-{offset + len(page)}" if offset + len(page) < len(rows) else None
        return ok({"dag_runs": page, "next_cursor": following, "total_entries": None})


class Airflow2(Airflow):
    """Airflow 2: basic auth, offsets."""

    api: ClassVar[str] = "v1"

    def unproven(self, request: Request) -> Reply | None:
        return ok({"version": "2.11.2"}) if parts(request) == ["api", "v1", "version"] else None

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == _basic("viewer:good-secret")

    def _paged(self, request: Request, rows: list[Any]) -> Reply:
        page = self.cut(rows, int(request.query.get("offset", 0)), min(int(request.query["limit"]), 100))
        return ok({"dag_runs": page, "total_entries": len(rows)})


def _basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


class Prefect(Script):
    """Prefect 3.9: filters by POST, a bare list, at most 200 records."""

    credentials: ClassVar[dict[str, str]] = {"username": "chm", "password": "good-secret"}
    pipelines: ClassVar[tuple[str, ...]] = tuple(f"{n}0000000-0000-4000-8000-000000000000" for n in (1, 2, 3))
    words: ClassVar[dict[str, str]] = {
        "queued": "PENDING/Pending",
        "running": "RUNNING/Running",
        "success": "COMPLETED/Completed",
        "failed": "FAILED/Failed",
        "canceled": "CANCELLED/Cancelled",
    }
    passes: ClassVar[int] = 4

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == _basic("chm:good-secret")

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        kind, _, name = self.spelled(at).partition("/")
        message = "ValueError: no space left" if at.word == "failed" else None
        return {
            "id": run.id,
            "deployment_id": run.pipeline,
            "state_type": kind,
            "state_name": name or kind.title(),
            "expected_start_time": iso(at.started or at.changed),
            "start_time": iso(at.started),
            "end_time": iso(at.finished),
            "run_count": 1,
            "estimated_run_time": NOW.timestamp(),
            "state": {"type": kind, "name": name, "timestamp": iso(at.changed), "message": message},
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/flow_runs/filter") and "id" not in request.json.get("flow_runs", {})

    def route(self, request: Request) -> Reply:
        body = request.json or {}
        if request.path.endswith("/admin/version"):
            return ok("3.9.1")
        if request.path.endswith("/deployments/filter"):
            found = [
                {"id": p, "name": "prod", "flow_id": f"f{n}", "paused": n == 1} for n, p in enumerate(self.pipelines)
            ]
            return ok(self.cut(found, body["offset"], body["limit"]))
        if request.path.endswith("/flows/filter"):
            return ok(self.cut([{"id": f"f{n}", "name": f"flow-{n}"} for n in range(3)], body["offset"], body["limit"]))
        if not request.path.endswith("/flow_runs/filter"):
            return ABSENT
        if body.get("limit", 0) > 200 or any("updated" in key for key in body.get("flow_runs", {})):
            return status_reply(422)
        rows = self.rows(self._filter(body.get("flow_runs", {})), lambda run: run.id)
        if body.get("sort") == "END_TIME_DESC":
            rows.sort(key=lambda row: (isinstance(row, dict) and row.get("end_time")) or "", reverse=True)
        return ok(self.cut(rows, body.get("offset", 0), body.get("limit", 200)))

    def _filter(self, wanted: dict[str, Any]) -> Callable[[Run], bool]:
        def met(run: Run) -> bool:
            at, (kind, _, name) = run.stage, self.spelled(run.stage).partition("/")
            expected = at.started or at.changed
            conditions = {
                "deployment_id": lambda c: run.pipeline in c.get("any_", [run.pipeline]),
                "id": lambda c: run.id in c["any_"],
                "state": lambda c: (
                    kind in c.get("type", {}).get("any_", [kind]) and name in c.get("name", {}).get("any_", [name])
                ),
                "start_time": lambda c: (at.started is None) == c["is_null_"],
                "expected_start_time": lambda c: _within(expected, c),
                "end_time": lambda c: at.finished is not None and _within(at.finished, c),
            }
            return all(conditions[name](condition) for name, condition in wanted.items())

        return met


def _within(at: datetime, condition: dict[str, Any]) -> bool:
    after, before = moment(condition.get("after_")), moment(condition.get("before_"))
    return (after is None or at >= after) and (before is None or at <= before)


class PrefectCloud(Prefect):
    """The same with an API key."""

    credentials: ClassVar[dict[str, str]] = {"api_key": "good-secret"}

    def accepts(self, request: Request) -> bool:
        return Script.accepts(self, request)


class Dagster(Script):
    """Dagster 1.13: GraphQL without a password, newest first."""

    credentials: ClassVar[dict[str, str]] = {}
    words: ClassVar[dict[str, str]] = {
        "queued": "QUEUED",
        "running": "STARTED",
        "success": "SUCCESS",
        "failed": "FAILURE",
        "canceled": "CANCELED",
    }
    reopens: ClassVar[bool] = False
    error_inline: ClassVar[bool] = False

    def accepts(self, request: Request) -> bool:
        return True

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        # Three at a time are created at the same time: a page may end between them.
        created = (at.started or at.changed).replace(microsecond=0).timestamp() - int(run.id.rpartition("-")[2]) // 3
        return {
            "runId": run.id,
            "jobName": run.pipeline,
            "status": self.spelled(at),
            "creationTime": created,
            "startTime": epoch(at.started),
            "endTime": epoch(at.finished),
            "updateTime": epoch(at.changed),
            "parentRunId": None,
            "repositoryOrigin": {"repositoryName": "__repository__", "repositoryLocationName": "defs"},
            "tags": [],
        }

    def is_for_runs(self, request: Request) -> bool:
        return "query Runs" in request.json["query"] and "runIds" not in request.json["variables"].get("filter", {})

    def route(self, request: Request) -> Reply:
        if parts(request) != ["graphql"]:
            return status_reply(405)
        query = request.json["query"]
        if "version" in query:
            return ok({"data": {"version": "1.13.27"}})
        if "repositoriesOrError" in query:
            jobs = [{"name": name, "isAssetJob": False} for name in self.pipelines]
            node = {"name": "__repository__", "location": {"name": "defs"}, "jobs": jobs}
            return ok({"data": {"repositoriesOrError": {"__typename": "RepositoryConnection", "nodes": [node]}}})
        if "query Errors" in query:
            return ok({"data": {"runsOrError": {"results": [_failed(i) for i in request.json["variables"]["ids"]]}}})
        variables = request.json.get("variables", {})
        return ok({"data": {"runsOrError": {"__typename": "Runs", "results": self._results(variables)}}})

    def _results(self, variables: dict[str, Any]) -> list[Any]:
        wanted = variables.get("filter", {})
        after = datetime.fromtimestamp(wanted.get("updatedAfter", 0), UTC)
        before = wanted.get("createdBefore", float("inf"))
        rows = self.rows(
            lambda run: run.stage.changed > after and run.id in wanted.get("runIds", [run.id]),
            lambda run: -self.record(run)["creationTime"],
        )
        kept = [row for row in rows if not isinstance(row, dict) or row.get("creationTime", 0) < before]
        return self.cut(kept, 0, variables.get("limit", 1))


def _failed(run_id: str) -> dict[str, Any]:
    cause = {"message": "ValueError: no space left\n"}
    event = {"__typename": "ExecutionStepFailureEvent", "stepKey": "load", "error": {"message": "x", "cause": cause}}
    return {"runId": run_id, "eventConnection": {"cursor": "c", "hasMore": False, "events": [{}, event]}}


class DagsterPlus(Dagster):
    """The same with a token of its own."""

    credentials: ClassVar[dict[str, str]] = {"token": "good-secret"}

    def accepts(self, request: Request) -> bool:
        return request.headers.get("dagster-cloud-api-token") == "good-secret"
