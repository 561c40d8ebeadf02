"""What Kestra, Synapse, Power BI, Jenkins, Step Functions, MWAA and Azure's other clouds do that no other API does."""

import gzip
import importlib.resources
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from pydantic import ValidationError

from chm_dagster.domain.runs import RunKind, RunStatus
from chm_dagster.errors import AuthError, NotAtPartner, Permanent, RateLimited
from chm_dagster.partners.engine.model import Discover, ErrorMatch, Rest
from chm_dagster.partners.engine.selectors import render
from chm_dagster.partners.platforms import shipped
from chm_dagster.partners.port import SyncTarget
from chm_dagster_tests.http.fault_server import Reply
from chm_dagster_tests.partners.scene import connect, open_run, sync, with_feed
from chm_dagster_tests.partners.scripts import SCRIPTS
from chm_dagster_tests.partners.scripts.script import Script, Stage, minutes_ago, ok, stage

SINCE = minutes_ago(90)
ENDED = stage("success", started=60, finished=50)


def one(api: str, script: Script, **target: Any) -> Any:
    """The only observation of a sync of the first pipeline."""
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE, **target)])
    (found,) = synced.by_run.values()
    return found


def aws_enum(service: str, shape: str) -> set[str]:
    """The words that AWS's own service model lists."""
    (folder,) = (importlib.resources.files("botocore") / "data" / service).iterdir()
    model = json.loads(gzip.decompress((folder / "service-2.json.gz").read_bytes()))
    return set(model["shapes"][shape]["enum"])


# Status words, as the vendors list them

WORDS = {
    # Kestra's StateType.
    "kestra": "CREATED SUBMITTED RUNNING PAUSED RESTARTED KILLING SUCCESS WARNING FAILED KILLED CANCELLED QUEUED "
    "RETRYING RETRIED SKIPPED BREAKPOINT RESUBMITTED",
    "azure_data_factory": "Queued InProgress Succeeded Failed Canceling Cancelled",
    "azure_synapse": "Queued InProgress Succeeded Failed Canceling Cancelled",
    # The refresh history's words, and those of enhanced refreshes.
    "power_bi": "Unknown Completed Failed Disabled Cancelled NotStarted InProgress TimedOut",
    "jenkins": "true/ false/SUCCESS false/UNSTABLE false/FAILURE false/NOT_BUILT false/ABORTED",
    "mwaa": "queued running success failed",
}


@pytest.mark.parametrize("api", [*WORDS, "step_functions"])
def test_every_status_word_of_the_vendor_is_known(api: str) -> None:
    words = WORDS[api].split() if api in WORDS else sorted(aws_enum("stepfunctions", "ExecutionStatus"))
    for word in words:
        script = SCRIPTS[api]()
        ended = None if word in ("Unknown", "RUNNING", "CREATED") else 50
        script.add(script.pipelines[0], "run-1", stage(word, started=60, finished=ended))
        found = one(api, script)
        assert not found.unknown_status, word
        assert found.status.finished == (found.finished_at is not None), word


def test_a_word_that_does_not_say_success_is_never_one() -> None:
    for api, word in (("kestra", "RETRIED"), ("power_bi", "TimedOut"), ("step_functions", "TIMED_OUT")):
        script = SCRIPTS[api]()
        script.add(script.pipelines[0], "run-1", stage(word, started=60, finished=50))
        assert one(api, script).status is RunStatus.FAILED, word


# Azure's clouds


def test_a_data_factory_in_azure_government_is_asked_and_signed_in_to_there() -> None:
    script = SCRIPTS["azure_data_factory"]()
    government = {
        "login_host": "login.microsoftonline.us",
        "management_host": "management.usgovcloudapi.net",
        "ui_host": "adf.azure.us",
    }
    script.options = {**script.options, **government}  # type: ignore[misc]
    script.add(script.pipelines[0], "r-1", ENDED)
    found = one("azure_data_factory", script)
    assert found.source_url == (
        "https://adf.azure.us/en/monitoring/pipelineruns/r-1?factory=%2Fsubscriptions%2Fs%2FresourceGroups%2Fg"
        "%2Fproviders%2FMicrosoft.DataFactory%2Ffactories%2Ff"
    )
    (login,) = (request for request in script.requests if request.path.endswith("/token"))
    assert parse_qs(login.body.decode())["scope"] == ["https://management.usgovcloudapi.net/.default"]
    rest = shipped()["azure_data_factory"]
    values = {f"options.{name}": value for name, value in script.options.items()}
    assert render(rest.auth[0].model_dump()["url"], values) == "https://login.microsoftonline.us/t"


def test_without_options_a_data_factory_is_in_the_public_cloud() -> None:
    script = SCRIPTS["azure_data_factory"]()
    feed: Any = connect("azure_data_factory", script, "http://127.0.0.1:9/base").open_feed()
    assert feed._api.http.auth.has_login
    values = {f"options.{name}": o.default for name, o in shipped()["azure_data_factory"].options.items() if o.default}
    assert render(shipped()["azure_data_factory"].base_url, values) == "https://management.azure.com"


@pytest.mark.parametrize(
    ("api", "options", "host"),
    [
        ("step_functions", {"region": "eu-west-1"}, "states.eu-west-1.amazonaws.com"),
        ("mwaa", {"region": "us-east-2", "environment": "prod"}, "env.airflow.us-east-2.amazonaws.com"),
    ],
)
def test_the_address_follows_from_the_region(api: str, options: dict[str, str], host: str) -> None:
    script = SCRIPTS[api]()
    feed: Any = connect(api, script, None, options=options).open_feed()  # type: ignore[arg-type]
    assert repr(feed._api.http) == f"HttpClient(label='connection acme', host='{host}')"


# Kestra


def test_a_restarted_kestra_execution_is_followed_although_it_is_old() -> None:
    script = SCRIPTS["kestra"]()
    run = script.add("team/p1", "run-1", stage("failed", started=60 * 24 * 9, finished=60 * 24 * 9 - 10))
    (failed,) = sync("kestra", script, [SyncTarget("team/p1", None)]).by_run.values()
    run.stage = Stage("success", minutes_ago(60 * 24 * 9), minutes_ago(5), minutes_ago(5))
    again = one("kestra", script, failing_runs=("run-1",))
    assert (again.status, again.finished_at) == (RunStatus.SUCCESS, minutes_ago(5))
    assert again.knowledge > failed.knowledge


def test_a_kestra_execution_links_to_its_page() -> None:
    script = SCRIPTS["kestra"]()
    script.add("team/p1", "run-1", ENDED)
    assert one("kestra", script).source_url.endswith("/base/ui/main/executions/team/p1/run-1")


# Jenkins


def test_folders_are_not_discovered_as_jobs() -> None:
    found = with_feed("jenkins", SCRIPTS["jenkins"](), lambda feed: feed.discover())
    assert "folder" not in [pipeline.external_id for pipeline in found]


def test_a_jenkins_build_says_who_started_it_and_ends_by_its_duration() -> None:
    script = SCRIPTS["jenkins"]()
    causes = {"actions": [{}, {"causes": [{"_class": "hudson.triggers.TimerTrigger$TimerTriggerCause"}]}]}
    script.add("p1", "run-7", ENDED, causes)
    found = one("jenkins", script)
    assert (found.kind, found.external_run_id, found.finished_at) == (RunKind.SCHEDULED, "7", minutes_ago(50))


def test_an_old_build_that_the_ledger_has_as_unfinished_is_read_from_the_list() -> None:
    script = SCRIPTS["jenkins"]()
    script.add("p1", "run-7", stage("success", started=60 * 24, finished=5))
    assert one("jenkins", script, open_runs=(open_run("7"),)).status is RunStatus.SUCCESS
    assert len(script.requests) == len(script.for_runs)


# AWS


def refusal(kind: str) -> Reply:
    return ok({"__type": f"com.amazonaws.swf.service.v2.model#{kind}"}, 400)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("UnrecognizedClientException", AuthError),
        ("InvalidSignatureException", AuthError),
        ("ExpiredTokenException", AuthError),
        ("AccessDeniedException", AuthError),
        ("ThrottlingException", RateLimited),
        ("StateMachineDoesNotExist", NotAtPartner),
        ("ValidationException", Permanent),
    ],
)
def test_an_error_of_aws_is_understood_although_its_status_is_400(kind: str, error: type[Exception]) -> None:
    script = SCRIPTS["step_functions"]()
    script.fault = lambda request: refusal(kind) if script.is_for_runs(request) else None
    synced = sync("step_functions", script, [SyncTarget("p1", SINCE)])
    assert type(synced.errors["p1"]) is error or kind == "ValidationException"
    assert isinstance(synced.errors["p1"], error)
    assert len(script.for_runs) == (3 if kind == "ThrottlingException" else 1)


def test_a_failed_execution_says_why_once_it_is_known_to_fail_and_keeps_no_data_of_clients() -> None:
    script = SCRIPTS["step_functions"]()
    script.add("p1", "run-1", stage("failed", started=200, finished=190))
    found = one("step_functions", script, failing_runs=("run-1",))
    assert found.error_message == "no space left"
    assert "input" not in found.payload


def test_temporary_aws_keys_are_taken_with_their_token() -> None:
    script = SCRIPTS["step_functions"]()
    script.add("p1", "run-1", ENDED)
    keys = {**script.credentials, "session_token": "session-1"}
    assert with_feed("step_functions", script, lambda feed: feed.check(), keys).ok
    assert {request.headers["x-amz-security-token"] for request in script.requests} == {"session-1"}


def test_an_error_of_airflow_inside_the_answer_of_mwaa_is_one() -> None:
    script = SCRIPTS["mwaa"]()
    inside = {"RestApiStatusCode": 500, "RestApiResponse": {"dag_runs": [], "detail": "database is locked"}}
    script.fault = lambda request: ok(inside)
    synced = sync("mwaa", script, [SyncTarget("p1", SINCE)])
    assert "the partner reports: database is locked" in str(synced.errors["p1"])


def test_paths_of_mwaa_fit_its_limit() -> None:
    """AWS takes at most 64 characters."""
    paths = [stream.body["Path"] for stream in shipped()["mwaa"].streams]
    assert all(len(path) <= 64 and "${" not in path for path in paths)


# Google


def test_a_service_account_reads_an_airflow_of_cloud_composer() -> None:
    for api in ("composer", "composer_airflow_2"):
        script = SCRIPTS[api]()
        script.add("p1", "run-1", ENDED)
        assert one(api, script).status is RunStatus.SUCCESS
        assert [request.path for request in script.requests].count("/base/token") == 1


# The words themselves


def test_an_error_is_matched_by_status_place_and_text() -> None:
    wanted = ErrorMatch(status=400, selector="error.code", contains="Gone")
    assert wanted.matches(400, {"error": {"code": "RunGone"}})
    assert not wanted.matches(404, {"error": {"code": "RunGone"}})
    assert not wanted.matches(400, {"error": {"code": "Bad"}})
    assert not wanted.matches(400, None)
    assert ErrorMatch(status=410).matches(410, None)


def test_names_that_no_request_knows_are_refused() -> None:
    with pytest.raises(ValidationError, match="there is no"):
        Discover(path="/x", id="id", query={"a": "${edn}"})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="used in a template and is not described"):
        Rest.model_validate({**shipped()["jenkins"].model_dump(exclude_unset=True), "base_url": "https://${options.x}"})
