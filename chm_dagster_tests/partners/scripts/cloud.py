"""The platforms that are verified against documentation only, as it describes them."""

import base64
from datetime import datetime, timedelta
from typing import Any, ClassVar

from chm_dagster_tests.http.fault_server import Reply, Request
from chm_dagster_tests.partners.scripts.orchestrators import ACTIVE, parts
from chm_dagster_tests.partners.scripts.script import ABSENT, Run, Script, epoch_ms, iso, moment, ok, status_reply


class Dbt(Script):
    """dbt Cloud: numeric states, ranges as JSON in the query, a trailing slash in paths."""

    options: ClassVar[dict[str, Any]] = {"account_id": 77}
    pipelines: ClassVar[tuple[str, ...]] = ("101", "102", "103")
    words: ClassVar[dict[str, str]] = {"queued": "1", "running": "3", "success": "10", "failed": "20", "canceled": "30"}
    passes: ClassVar[int] = 4

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        word = self.spelled(at)
        return {
            "id": int(run.id.rpartition("-")[2]),
            "job_definition_id": int(run.pipeline),
            "status": int(word) if word.isdigit() else word,
            "status_humanized": {"20": "Error", "10": "Success"}.get(word, "Running"),
            "status_message": "Database Error: no space left" if at.word == "failed" else None,
            "created_at": iso(at.started or at.changed),
            "started_at": iso(at.started),
            "finished_at": iso(at.finished),
            "updated_at": iso(at.changed),
            "finished_at_humanized": "a minute ago",
            "run_duration": "00:01:02",
            "href": f"https://cloud.getdbt.example/run/{run.id}",
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/runs/")

    def route(self, request: Request) -> Reply:
        match parts(request):
            case ["api", "v2", "accounts", "77", "runs", ""]:
                return self._list(request)
            case ["api", "v2", "accounts", "77", "runs", run_id, ""]:
                found = self.rows(lambda run: run.id.rpartition("-")[2] == run_id)
                return self._answer(found[0]) if found else ABSENT
            case ["api", "v2", "accounts", "77", "jobs", ""]:
                return self._answer([{"id": int(p), "name": f"job {p}"} for p in self.pipelines], total=3)
        return ABSENT

    def _list(self, request: Request) -> Reply:
        query = request.query
        job = query.get("job_definition_id")
        if job is not None and job not in self.pipelines:
            return ABSENT
        span = query.get("finished_at__range")
        start, end = (moment(text) for text in span.strip("[]").replace('"', "").split(",")) if span else (None, None)
        if "status__in" in query:
            return status_reply(400)
        rows = self.rows(
            lambda run: (
                job in (None, run.pipeline)
                and query.get("status") in (None, self.spelled(run.stage))
                and (start is None or end is None or _in(run.stage.finished, start, end))
            )
        )
        page = self.cut(rows, int(query.get("offset", 0)), min(int(query["limit"]), 100))
        return self._answer(page, total=len(rows))

    def _answer(self, data: Any, total: int = 1) -> Reply:
        status = {"code": 200, "is_success": True, "user_message": "Success!"}
        return ok({"status": status, "data": data, "extra": {"pagination": {"count": 1, "total_count": total}}})


def _in(at: datetime | None, start: datetime, end: datetime) -> bool:
    return at is not None and start <= at <= end


class Airbyte(Script):
    """Airbyte: a token for client id and secret, offsets, durations as ISO 8601 periods."""

    credentials: ClassVar[dict[str, str]] = {"client_id": "chm", "client_secret": "good-secret"}
    words: ClassVar[dict[str, str]] = {
        "queued": "pending",
        "success": "succeeded",
        "canceled": "cancelled",
    }
    error_inline: ClassVar[bool] = False

    def unproven(self, request: Request) -> Reply | None:
        if parts(request) != ["applications", "token"]:
            return None
        good = request.json == {"client_id": "chm", "client_secret": "good-secret", "grant-type": "client_credentials"}
        return ok({"access_token": "at-1", "expires_in": 180}) if good else status_reply(401)

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == "Bearer at-1"

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        took = None
        if at.started is not None and at.finished is not None:
            took = f"PT{(at.finished - at.started) // timedelta(seconds=1)}S"
        return {
            "jobId": int(run.id.rpartition("-")[2]),
            "connectionId": run.pipeline,
            "jobType": "sync",
            "status": self.spelled(at),
            "startTime": iso(at.started or at.changed),
            "lastUpdatedAt": iso(at.changed),
            "duration": took,
            "rowsSynced": 7,
        }

    def is_for_runs(self, request: Request) -> bool:
        return parts(request) == ["jobs"]

    def route(self, request: Request) -> Reply:
        query = request.query
        match parts(request):
            case ["jobs"]:
                since, asked = moment(query.get("updatedAtStart")), query.get("connectionId")
                by_change = query.get("orderBy") == "updatedAt|ASC"
                if asked is not None and asked not in self.pipelines:
                    return ABSENT
                rows = self.rows(
                    lambda run: asked in (None, run.pipeline) and (since is None or run.stage.changed >= since),
                    order=lambda run: run.stage.changed if by_change else run.id,
                )
                return ok({"data": self.cut(rows, int(query.get("offset", 0)), int(query["limit"])), "next": ""})
            case ["jobs", job_id]:
                found = self.rows(lambda run: run.id.rpartition("-")[2] == job_id)
                return ok(found[0]) if found else ABSENT
            case ["connections"]:
                found = [{"connectionId": p, "name": p.upper()} for p in self.pipelines]
                return ok({"data": self.cut(found, int(query["offset"]), int(query["limit"]))})
        return ABSENT


class Databricks(Script):
    """Databricks: milliseconds, 0 for no time, page tokens, no list if there are no runs."""

    pipelines: ClassVar[tuple[str, ...]] = ("501", "502", "503")
    words: ClassVar[dict[str, str]] = {
        "queued": "QUEUED/",
        "running": "RUNNING/",
        "success": "TERMINATED/SUCCESS",
        "failed": "TERMINATED/FAILED",
        "canceled": "TERMINATED/CANCELED",
    }
    passes: ClassVar[int] = 2

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        life, _, result = self.spelled(at).partition("/")
        state = {"life_cycle_state": life, "state_message": "no space left" if at.word == "failed" else ""}
        return {
            "run_id": int(run.id.rpartition("-")[2]),
            "job_id": int(run.pipeline),
            "state": {**state, **({"result_state": result} if result else {})},
            "start_time": epoch_ms(at.started or at.changed),
            "end_time": epoch_ms(at.finished),
            "run_page_url": f"https://acme.cloud.databricks.example/#job/1/run/{run.id}",
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/runs/list")

    def route(self, request: Request) -> Reply:
        query = request.query
        match parts(request):
            case ["api", "2.2", "jobs", "runs", "list"]:
                return self._list(request)
            case ["api", "2.2", "jobs", "runs", "get"]:
                found = self.rows(lambda run: run.id.rpartition("-")[2] == query["run_id"])
                gone = {"error_code": "INVALID_PARAMETER_VALUE", "message": f"Run {query['run_id']} does not exist."}
                return ok(found[0]) if found else ok(gone, 400)
            case ["api", "2.2", "jobs", "list"]:
                jobs = [{"job_id": int(p), "settings": {"name": f"job {p}"}} for p in self.pipelines]
                return self._page("jobs", jobs, request)
        return ABSENT

    def _list(self, request: Request) -> Reply:
        query = request.query
        if int(query["limit"]) > 25:
            return status_reply(400)
        job = query.get("job_id")
        if job is not None and job not in self.pipelines:
            return ABSENT
        rows = self.rows(
            lambda run: (
                job in (None, run.pipeline)
                and (query.get("active_only") != "true" or run.stage.word in ACTIVE)
                and epoch_ms(run.stage.started or run.stage.changed) >= int(query.get("start_time_from", 0))
            )
        )
        return self._page("runs", rows, request)

    def _page(self, name: str, rows: list[Any], request: Request) -> Reply:
        offset = int(request.query.get("page_token", "0"))
        page = self.cut(rows, offset, int(request.query["limit"]))
        more = offset + len(page) < len(rows)
        answer: dict[str, Any] = {"has_more": more}
        if page:
            answer[name] = page
        if more:
            answer["next_page_token"] = str(offset + len(page))
        return ok(answer)


class GithubActions(Script):
    """GitHub: numbered pages, at most a thousand results, a status and a conclusion."""

    options: ClassVar[dict[str, Any]] = {"owner": "acme", "repo": "shop"}
    pipelines: ClassVar[tuple[str, ...]] = ("901", "902", "903")
    words: ClassVar[dict[str, str]] = {
        "queued": "queued/",
        "running": "in_progress/",
        "success": "completed/success",
        "failed": "completed/failure",
        "canceled": "completed/cancelled",
    }
    passes: ClassVar[int] = 3
    error_inline: ClassVar[bool] = False

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        status, _, conclusion = self.spelled(at).partition("/")
        return {
            "id": int(run.id.rpartition("-")[2]),
            "workflow_id": int(run.pipeline),
            "status": status,
            "conclusion": conclusion or None,
            "created_at": iso(at.started or at.changed),
            "run_started_at": iso(at.started),
            "updated_at": iso(at.finished or at.changed),
            "run_attempt": at.attempt + 1,
            "html_url": f"https://github.example/acme/shop/actions/runs/{run.id}",
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/actions/runs")

    def route(self, request: Request) -> Reply:
        assert request.headers["x-github-api-version"] == "2022-11-28"
        match parts(request):
            case ["repos", "acme", "shop", "actions", "runs"]:
                return self._list(request)
            case ["repos", "acme", "shop", "actions", "runs", run_id]:
                found = self.rows(lambda run: run.id.rpartition("-")[2] == run_id)
                return ok(found[0]) if found else ABSENT
            case ["repos", "acme", "shop", "actions", "runs", run_id, "jobs"]:
                (run,) = (run for run in self.runs if run.id.rpartition("-")[2] == run_id)
                return ok({"total_count": 2, "jobs": self._jobs(run)})
            case ["repos", "acme", "shop", "actions", "workflows"]:
                found = [{"id": int(p), "name": f"workflow {p}"} for p in self.pipelines]
                return self._page("workflows", found, request)
        return ABSENT

    def _jobs(self, run: Run) -> list[dict[str, Any]]:
        """A job that ended well before the run did, and the one that decided the run."""
        at = run.stage
        conclusion = self.spelled(at).partition("/")[2]
        early = (at.started or at.changed) + timedelta(seconds=1)
        steps = [{"name": "checkout", "conclusion": "success"}, {"name": "tests", "conclusion": conclusion}]
        return [
            {"name": "lint", "conclusion": "success", "completed_at": iso(early), "steps": []},
            {"name": "build", "conclusion": conclusion, "completed_at": iso(at.finished), "steps": steps},
        ]

    def _list(self, request: Request) -> Reply:
        query = request.query
        start, end = (moment(text) for text in query["created"].split("..")) if "created" in query else (None, None)
        rows = self.rows(
            lambda run: (
                query.get("status") in (None, self.spelled(run.stage).partition("/")[0])
                and (start is None or end is None or _in(run.stage.started or run.stage.changed, start, end))
            )
        )
        return self._page("workflow_runs", rows, request)

    def _page(self, name: str, rows: list[Any], request: Request) -> Reply:
        size = int(request.query["per_page"])
        size = min(size, self.page or size)
        start = (int(request.query.get("page", "1")) - 1) * size
        return ok({"total_count": len(rows), name: rows[:1000][start : start + size]})


class Fivetran(Script):
    """Fivetran: one connection at a time, seven days at a time."""

    credentials: ClassVar[dict[str, str]] = {"api_key": "chm", "api_secret": "good-secret"}
    words: ClassVar[dict[str, str]] = {
        "queued": "RESCHEDULED",
        "running": "SYNCING",
        "success": "COMPLETED",
        "failed": "FAILURE_WITH_TASK",
        "canceled": "CANCELED",
    }
    names_the_pipeline: ClassVar[bool] = False

    def accepts(self, request: Request) -> bool:
        pair = base64.b64encode(b"chm:good-secret").decode()
        return request.headers.get("authorization") == f"Basic {pair}"

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        return {
            "sync_id": run.id,
            "status": self.spelled(at),
            "start": iso(at.started or at.changed),
            "end": iso(at.finished),
            "reason": "no space left" if at.word == "failed" else None,
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/sync-history")

    def route(self, request: Request) -> Reply:
        assert request.headers["accept"] == "application/json;version=2"
        match parts(request):
            case ["v1", "connections"]:
                found = [{"id": p, "schema": p.upper(), "paused": False} for p in self.pipelines]
                return self._page(found, request)
            case ["v1", "connections", connection_id, "sync-history"] if connection_id in self.pipelines:
                start, end = moment(request.query["start_time"]), moment(request.query["end_time"])
                assert start is not None
                assert end is not None
                if end - start > timedelta(days=7):
                    return status_reply(400)
                rows = self.rows(
                    lambda run: (
                        run.pipeline == connection_id and _in(run.stage.started or run.stage.changed, start, end)
                    )
                )
                return self._page(rows, request)
        return ABSENT

    def _page(self, rows: list[Any], request: Request) -> Reply:
        offset = int(request.query.get("cursor", "0"))
        page = self.cut(rows, offset, int(request.query["limit"]))
        data: dict[str, Any] = {"items": page}
        if offset + len(page) < len(rows):
            data["next_cursor"] = str(offset + len(page))
        return ok({"code": "Success", "data": data})


class AzureDataFactory(Script):
    """Azure Data Factory: a token from another host, everything that changed between two times."""

    credentials: ClassVar[dict[str, str]] = {"client_id": "chm", "client_secret": "good-secret"}
    options: ClassVar[dict[str, Any]] = {
        "tenant_id": "t",
        "subscription_id": "s",
        "resource_group": "g",
        "factory": "f",
    }
    words: ClassVar[dict[str, str]] = {
        "queued": "Queued",
        "running": "InProgress",
        "success": "Succeeded",
        "failed": "Failed",
        "canceled": "Cancelled",
    }
    reopens: ClassVar[bool] = False

    def unproven(self, request: Request) -> Reply | None:
        if not request.path.endswith("/oauth2/v2.0/token"):
            return None
        good = b"client_secret=good-secret" in request.body and b"grant_type=client_credentials" in request.body
        return ok({"access_token": "az-1", "token_type": "Bearer"}) if good else status_reply(401)

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == "Bearer az-1"

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        return {
            "runId": run.id,
            "pipelineName": run.pipeline,
            "status": self.spelled(at),
            "runStart": iso(at.started or at.changed),
            "runEnd": iso(at.finished),
            "lastUpdated": iso(at.changed),
            "message": "no space left" if at.word == "failed" else "",
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/queryPipelineRuns")

    def route(self, request: Request) -> Reply:
        assert request.query["api-version"] == "2018-06-01"
        return self.listed(request)

    def listed(self, request: Request) -> Reply:
        *_, noun = parts(request)
        if noun == "queryPipelineRuns":
            start, end = moment(request.json["lastUpdatedAfter"]), moment(request.json["lastUpdatedBefore"])
            assert start is not None
            assert end is not None
            rows = self.rows(lambda run: start <= run.stage.changed <= end)
            offset = int(request.json.get("continuationToken", "0"))
            page = self.cut(rows, offset, 100)
            more = {"continuationToken": str(offset + len(page))} if offset + len(page) < len(rows) else {}
            return ok({"value": page, **more})
        if noun == "pipelines":
            return self._pipelines(request)
        if noun == "f":
            return ok({"name": "f"})
        found = self.rows(lambda run: run.id == noun)
        return ok(found[0]) if found else ABSENT

    def _pipelines(self, request: Request) -> Reply:
        following = "/base" + request.target.removeprefix("/base").partition("?")[0]
        skip, size = int(request.query.get("skip", "0")), self.list_size
        more = (
            {"nextLink": f"{following}?api-version={request.query['api-version']}&skip={skip + size}"}
            if skip + size < len(self.pipelines)
            else {}
        )
        return ok({"value": [{"name": name} for name in self.pipelines[skip : skip + size]], **more})


class Generic(Script):
    """CHM's own API: cursors, and each record says whose it is."""

    words: ClassVar[dict[str, str]] = {"canceled": "canceled"}
    reopens: ClassVar[bool] = False

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        return {
            "id": run.id,
            "pipeline_id": run.pipeline,
            "status": self.spelled(at),
            "created_at": iso(at.started or at.changed),
            "started_at": iso(at.started),
            "finished_at": iso(at.finished),
            "updated_at": iso(at.changed),
            "error_message": "no space left" if at.word == "failed" else None,
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/runs")

    def route(self, request: Request) -> Reply:
        match parts(request):
            case ["runs"]:
                return self._runs(request, None)
            case ["pipelines", pipeline, "runs"] if pipeline in self.pipelines:
                return self._runs(request, pipeline)
            case ["pipelines"]:
                return self._page("pipelines", [{"id": p, "name": p.upper()} for p in self.pipelines], request)
        return ABSENT

    def _runs(self, request: Request, pipeline: str | None) -> Reply:
        since = moment(request.query.get("updated_since"))
        rows = self.rows(lambda run: pipeline in (None, run.pipeline) and (since is None or run.stage.changed >= since))
        return self._page("runs", rows, request)

    def _page(self, name: str, rows: list[Any], request: Request) -> Reply:
        offset = int(request.query.get("cursor", "0"))
        page = self.cut(rows, offset, int(request.query["limit"]))
        end = offset + len(page)
        return ok({name: page, "next_cursor": str(end) if end < len(rows) else None})
