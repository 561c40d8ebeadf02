"""Platforms that are verified against documentation only, with sign-ins or lists that take more than a token."""

import base64
import json
from typing import Any, ClassVar
from urllib.parse import parse_qs

import jwt

from chm_dagster_tests.http.fault_server import Reply, Request
from chm_dagster_tests.http.sigv4 import is_signed
from chm_dagster_tests.http.test_signatures import claims_of, keys
from chm_dagster_tests.partners.scripts.cloud import AzureDataFactory
from chm_dagster_tests.partners.scripts.orchestrators import Airflow, Airflow2, parts
from chm_dagster_tests.partners.scripts.script import (
    ABSENT,
    Run,
    Script,
    epoch,
    epoch_ms,
    iso,
    moment,
    ok,
    status_reply,
)


class Kestra(Script):
    """Kestra: numbered pages with a total, states with their history."""

    credentials: ClassVar[dict[str, str]] = {"username": "chm", "password": "good-secret"}
    pipelines: ClassVar[tuple[str, ...]] = ("team/p1", "team/p2", "team/p3")
    words: ClassVar[dict[str, str]] = {
        "queued": "QUEUED",
        "running": "RUNNING",
        "success": "SUCCESS",
        "failed": "FAILED",
        "canceled": "KILLED",
    }
    error_inline: ClassVar[bool] = False

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Basic {base64.b64encode(b'chm:good-secret').decode()}"

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        # A pipeline of a test with a thousand of them has no namespace.
        namespace, _, flow = run.pipeline.rpartition("/")
        first = at.started or at.changed
        dates = [first, *([at.changed] if at.changed > first else [])]
        return {
            "id": run.id,
            "namespace": namespace,
            "flowId": flow,
            "flowRevision": 3,
            "state": {
                "current": self.spelled(at),
                "histories": [{"state": "CREATED", "date": iso(date)} for date in dates],
                "startDate": iso(first),
                **({"endDate": iso(at.finished)} if at.finished else {}),
                "duration": "PT12S",
            },
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/executions/search")

    def route(self, request: Request) -> Reply:
        match parts(request):
            case ["api", "v1", "main", "executions", "search"]:
                since = moment(request.query.get("filters[startDate][GREATER_THAN_OR_EQUAL_TO]"))
                rows = self.rows(lambda run: since is None or (run.stage.started or run.stage.changed) >= since)
                return self._page(rows, request)
            case ["api", "v1", "main", "executions", run_id]:
                found = self.rows(lambda run: run.id == run_id)
                return ok(found[0]) if found else ABSENT
            case ["api", "v1", "main", "flows", "search"]:
                flows = [dict(zip(("namespace", "_", "id"), p.rpartition("/"), strict=True)) for p in self.pipelines]
                return self._page(flows, request)
        return ABSENT

    def _page(self, rows: list[Any], request: Request) -> Reply:
        size = int(request.query["size"])
        size = min(size, self.page or size)
        start = (int(request.query.get("page", "1")) - 1) * size
        return ok({"results": rows[start : start + size], "total": len(rows)})


class AzureSynapse(AzureDataFactory):
    """Azure Synapse: as Data Factory, below the workspace's own address."""

    options: ClassVar[dict[str, Any]] = {"tenant_id": "t"}

    def route(self, request: Request) -> Reply:
        assert request.query["api-version"] == "2020-12-01"
        match parts(request):
            case ["queryPipelineRuns"] | ["pipelines"]:
                return self.listed(request)
            case ["pipelineruns", run_id]:
                found = self.rows(lambda run: run.id == run_id)
                return ok(found[0]) if found else ABSENT
        return ABSENT


class PowerBi(AzureDataFactory):
    """Power BI: all that is kept of one data set, in one response."""

    options: ClassVar[dict[str, Any]] = {"tenant_id": "t", "workspace_id": "w"}
    words: ClassVar[dict[str, str]] = {
        "queued": "NotStarted",
        "running": "Unknown",
        "success": "Completed",
        "failed": "Failed",
        "canceled": "Cancelled",
    }
    reopens: ClassVar[bool] = True
    names_the_pipeline: ClassVar[bool] = False
    filters_by_time: ClassVar[bool] = False

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        return {
            "requestId": run.id,
            "refreshType": "Scheduled",
            "status": self.spelled(at),
            "startTime": iso(at.started or at.changed),
            **({"endTime": iso(at.finished)} if at.finished else {}),
            **({"serviceExceptionJson": '{"errorCode": "no space left"}'} if at.word == "failed" else {}),
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.path.endswith("/refreshes")

    def route(self, request: Request) -> Reply:
        match parts(request):
            case ["v1.0", "myorg", "groups", "w", "datasets"]:
                return ok({"value": [{"id": p, "name": p.upper(), "isRefreshable": True} for p in self.pipelines]})
            case ["v1.0", "myorg", "groups", "w", "datasets", dataset, "refreshes"] if dataset in self.pipelines:
                return ok({"value": self.rows(lambda run: run.pipeline == dataset)})
        return ABSENT


class Jenkins(Script):
    """Jenkins: ranges of builds within the tree parameter, the newest first."""

    credentials: ClassVar[dict[str, str]] = {"username": "chm", "api_token": "good-secret"}
    words: ClassVar[dict[str, str]] = {
        "queued": "true/",
        "running": "true/",
        "success": "false/SUCCESS",
        "failed": "false/FAILURE",
        "canceled": "false/ABORTED",
    }
    reopens: ClassVar[bool] = False
    names_the_pipeline: ClassVar[bool] = False
    filters_by_time: ClassVar[bool] = False
    error_inline: ClassVar[bool] = False

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Basic {base64.b64encode(b'chm:good-secret').decode()}"

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        building, _, result = self.spelled(at).partition("/")
        took = 0 if at.started is None or at.finished is None else epoch_ms(at.finished) - epoch_ms(at.started)
        return {
            "_class": "hudson.model.FreeStyleBuild",
            "number": int(run.id.rpartition("-")[2]),
            "building": {"true": True, "false": False}.get(building, building),
            "result": result or None,
            "timestamp": epoch_ms(at.started or at.changed),
            "duration": took,
            "url": f"https://jenkins.example/job/{run.pipeline}/{run.id}/",
        }

    def is_for_runs(self, request: Request) -> bool:
        return "allBuilds" in request.query.get("tree", "")

    def route(self, request: Request) -> Reply:
        tree = request.query["tree"]
        match parts(request):
            case ["api", "json"]:
                folder = {"_class": "com.cloudbees.hudson.plugins.folder.Folder", "name": "folder"}
                return ok({"jobs": [*({"name": p, "color": "blue"} for p in self.pipelines), folder]})
            case ["job", job, "api", "json"] if job in self.pipelines:
                start, end = map(int, tree.rpartition("{")[2].removesuffix("}").split(","))
                rows = self.rows(
                    lambda run: run.pipeline == job,
                    lambda run: -(run.stage.started or run.stage.changed).timestamp(),
                )
                return ok({"allBuilds": self.cut(rows, start, end - start)})
            case ["job", job, number, "api", "json"]:
                found = self.rows(lambda run: (run.pipeline, run.id.rpartition("-")[2]) == (job, number))
                return ok(found[0]) if found else ABSENT
        return ABSENT


class _Aws(Script):
    """A service of AWS, which checks signatures."""

    credentials: ClassVar[dict[str, str]] = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "good-secret"}
    service: ClassVar[str]

    def accepts(self, request: Request) -> bool:
        return is_signed(
            request.method,
            request.target,
            request.headers,
            request.body,
            key_id="AKIDEXAMPLE",
            secret="good-secret",
            service=self.service,
        )


class StepFunctions(_Aws):
    """AWS Step Functions: one address for everything, errors with status 400."""

    options: ClassVar[dict[str, Any]] = {"region": "eu-west-1"}
    service: ClassVar[str] = "states"
    words: ClassVar[dict[str, str]] = {
        "queued": "RUNNING",
        "running": "RUNNING",
        "success": "SUCCEEDED",
        "failed": "FAILED",
        "canceled": "ABORTED",
    }
    filters_by_time: ClassVar[bool] = False
    error_inline: ClassVar[bool] = False

    def __call__(self, request: Request) -> Reply:
        reply = super().__call__(request)
        if not self.accepts(request) and request is self.requests[-1] and self.fault(request) is None:
            return self._refusal("UnrecognizedClientException")
        return reply

    def _refusal(self, kind: str) -> Reply:
        return ok({"__type": f"com.amazonaws.swf.service.v2.model#{kind}", "message": "..."}, 400)

    def record(self, run: Run) -> dict[str, Any]:
        at = run.stage
        return {
            "executionArn": run.id,
            "stateMachineArn": run.pipeline,
            "name": run.id,
            "status": self.spelled(at),
            "startDate": epoch(at.started or at.changed),
            "redriveCount": at.attempt,
            **({"stopDate": epoch(at.finished)} if at.finished else {}),
        }

    def is_for_runs(self, request: Request) -> bool:
        return request.headers.get("x-amz-target") == "AWSStepFunctions.ListExecutions"

    def route(self, request: Request) -> Reply:
        assert request.headers["content-type"] == "application/x-amz-json-1.0"
        asked = request.json
        match request.headers["x-amz-target"].partition(".")[2]:
            case "ListExecutions":
                if asked["stateMachineArn"] not in self.pipelines:
                    return self._refusal("StateMachineDoesNotExist")
                rows = self.rows(
                    lambda run: run.pipeline == asked["stateMachineArn"],
                    lambda run: -(run.stage.started or run.stage.changed).timestamp(),
                )
                return self._page("executions", rows, asked)
            case "DescribeExecution":
                found = self.rows(lambda run: run.id == asked["executionArn"])
                more = {"cause": "no space left", "error": "States.TaskFailed", "input": '{"client": "acme"}'}
                return ok({**found[0], **more}) if found else self._refusal("ExecutionDoesNotExist")
            case "ListStateMachines":
                machines = [{"stateMachineArn": p, "name": p.upper(), "type": "STANDARD"} for p in self.pipelines]
                return self._page("stateMachines", [*machines, {"stateMachineArn": "x", "type": "EXPRESS"}], asked)
        return self._refusal("UnknownOperationException")

    def _page(self, name: str, rows: list[Any], asked: Any) -> Reply:
        offset = int(asked.get("nextToken", "0"))
        page = self.cut(rows, offset, asked["maxResults"])
        more = {"nextToken": str(offset + len(page))} if offset + len(page) < len(rows) else {}
        return ok({name: page, **more})


class Mwaa(_Aws, Airflow):
    """Amazon MWAA: Airflow's answers inside those of InvokeRestApi."""

    credentials: ClassVar[dict[str, str]] = _Aws.credentials
    options: ClassVar[dict[str, Any]] = {"region": "eu-west-1", "environment": "prod"}
    service: ClassVar[str] = "airflow"

    def unproven(self, request: Request) -> Reply | None:
        return None

    def is_for_runs(self, request: Request) -> bool:
        return bool(request.body) and request.json.get("Path") == "/dags/~/dagRuns"

    def route(self, request: Request) -> Reply:
        assert parts(request) == ["restapi", "prod"]
        asked = request.json
        assert asked["Method"] == "GET"
        query = asked.get("QueryParameters", {})
        offset, limit = query.get("offset", 0), min(query["limit"], 100)
        if asked["Path"] == "/dags":
            dags: list[Any] = [{"dag_id": p, "is_paused": p == "p2"} for p in self.pipelines]
            return self._answer("dags", dags, offset, limit)
        since = moment(query.get("updated_at_gte"))
        rows = self.rows(
            lambda run: (
                (since is None or run.stage.changed >= since) and query.get("state") in (None, self.spelled(run.stage))
            )
        )
        return self._answer("dag_runs", rows, offset, limit)

    def _answer(self, name: str, rows: list[Any], offset: int, limit: int) -> Reply:
        found = {name: self.cut(rows, offset, limit), "total_entries": len(rows)}
        return ok({"RestApiStatusCode": 200, "RestApiResponse": found})


def service_account(number: int = 0) -> str:
    """A key file with one of our keys. The scene replaces its token endpoint by the server's own."""
    return json.dumps(
        {
            "client_email": "chm@acme.example",
            "private_key": keys(number)[0],
            "private_key_id": "key-1",
            "token_uri": "${server}/token",
        }
    )


class _Google(Airflow):
    """Airflow behind Google's sign-in."""

    credentials: ClassVar[dict[str, str]] = {"service_account": service_account()}
    wrong_credentials: ClassVar[dict[str, str]] = {"service_account": service_account(1)}

    def unproven(self, request: Request) -> Reply | None:
        if parts(request) == ["token"]:
            (assertion,) = parse_qs(request.body.decode())["assertion"]
            try:
                claims = claims_of(assertion, f"http://{request.headers['host']}/base/token")
            except jwt.InvalidTokenError:
                return status_reply(400)
            good = claims["iss"] == "chm@acme.example"
            return ok({"access_token": "jwt-1", "expires_in": 3599}) if good else status_reply(400)
        return super().unproven(request)


class Composer(_Google):
    """Cloud Composer with Airflow 3."""


class ComposerAirflow2(_Google, Airflow2):
    """Cloud Composer with Airflow 2."""

    credentials: ClassVar[dict[str, str]] = _Google.credentials

    def accepts(self, request: Request) -> bool:
        return request.headers.get("authorization") == "Bearer jwt-1"
