"""Every shipped API behaves as the port promises, whatever its server does. A new one cannot be forgotten."""

import logging
from datetime import timedelta
from typing import Any

import pytest

from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import AuthError, PartnerError, Permanent, RateLimited, SchemaDrift, Transient
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.declared.proving import fitting
from chm_dagster.partners.platforms.registry import shipped
from chm_dagster.partners.port import Target
from chm_dagster_tests.partners.fault_server import Reply, Request, status_reply
from chm_dagster_tests.partners.scene import open_run, sweep, with_feed
from chm_dagster_tests.partners.scripts import SCRIPTS
from chm_dagster_tests.partners.scripts.script import NOW, Script, Stage, minutes_ago, ok, stage

APIS = sorted(shipped())
SINCE = minutes_ago(90)
ENDED = stage("success", started=60, finished=50)

every_api = pytest.mark.parametrize("api", APIS)


def spec(api: str) -> Rest:
    return shipped()[api]


def targets(script: Script, since: Any = SINCE, **more: Any) -> list[Target]:
    return [Target(pipeline, since, **more) for pipeline in script.pipelines]


def number(n: int) -> str:
    """A run id: some platforms count, and take the number alone."""
    return f"run-{1000 + n}"


def ids(swept: Any) -> list[str]:
    """Run ids as numbers: those of platforms that count have no prefix."""
    return sorted(found.external_run_id.rpartition("-")[2] for found in swept.observations)


def test_every_shipped_api_has_a_script() -> None:
    assert set(SCRIPTS) == set(APIS)


@every_api
def test_it_says_how_it_is_known(api: str) -> None:
    assert spec(api).verified in ("real_server", "documentation")
    assert spec(api).sources
    assert (spec(api).verified == "real_server") == (api in {"airflow", "prefect", "dagster"})


# Pages


@every_api
@pytest.mark.parametrize("since", [SINCE, None], ids=["news", "everything"])
def test_every_run_of_many_pages_comes(api: str, since: Any) -> None:
    script = SCRIPTS[api]()
    count = 2 * spec(api).page_size + 1
    for n in range(count):
        script.add(script.pipelines[0], number(n), stage("success", started=60 + n / 1000, finished=50 + n / 1000))
    swept = sweep(api, script, targets(script, since))
    assert set(ids(swept)) == {str(1000 + n) for n in range(count)}
    assert swept.errors == {}
    assert set(swept.done) == set(script.pipelines)


@every_api
def test_a_server_that_cuts_pages_short_hides_nothing(api: str) -> None:
    if spec(api).paging.short_page_ends:
        pytest.skip("it is known never to cut pages short")
    script = SCRIPTS[api](page=3)
    for n in range(10):
        script.add(script.pipelines[n % 3], number(n), stage("failed", started=60 + n, finished=50 + n))
    assert set(ids(sweep(api, script, targets(script)))) == {str(1000 + n) for n in range(10)}


@every_api
def test_no_runs_are_no_failure_and_move_the_watermark(api: str) -> None:
    script = SCRIPTS[api]()
    swept = sweep(api, script, targets(script))
    assert (swept.mapped, swept.errors) == ([], {})
    assert {end.synced_through for end in swept.done.values()} == {NOW - timedelta(minutes=5)}


@every_api
def test_what_is_older_than_the_watermark_is_not_asked_for_again(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("success", started=60 * 24 * 9, finished=60 * 24 * 9 - 10))
    script.add(script.pipelines[0], number(2), ENDED)
    assert ids(sweep(api, script, targets(script))) == ["1002"]


def stuck(script: Script) -> None:
    """From now on every request for runs is answered with the first answer, whatever page it asks for."""
    kept: dict[str, Reply] = {}

    def fault(request: Request) -> Reply | None:
        if not script.is_for_runs(request):
            return None
        if "first" not in kept:
            script.fault = lambda _: None
            kept["first"] = script(request)
            script.requests.pop()
            script.fault = fault
        return kept["first"]

    script.fault = fault


@every_api
def test_a_server_that_never_gets_on_is_drift_and_not_an_endless_sweep(api: str) -> None:
    script = SCRIPTS[api]()
    word = "running" if spec(api).passes[0].name.startswith(("unfinished", "queued")) else "success"
    word = "queued" if api == "github_actions" else word
    for n in range(spec(api).page_size + 5):
        at = stage(word, started=60 + n / 1000, finished=None if word != "success" else 50 + n / 1000)
        script.add(script.pipelines[0], number(n), at)
    stuck(script)
    swept = sweep(api, script, targets(script)[:1])
    assert [type(error) for error in swept.errors.values()] == [SchemaDrift], swept.errors
    assert len(script.for_runs) <= 4


# Refusals


def failing(script: Script, reply: Reply) -> None:
    script.fault = lambda request: reply if script.is_for_runs(request) else None


@every_api
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (status_reply(401), AuthError),
        (status_reply(403), PartnerError),
        (status_reply(404), Permanent),
        (status_reply(429, {"Retry-After": "900"}), RateLimited),
        (status_reply(500), Transient),
        (status_reply(503), Transient),
        (status_reply(301, {"Location": "/x"}), Permanent),
        (ok([[]]), SchemaDrift),
        (ok({"unexpected": True}), PartnerError),
    ],
    ids=["401", "403", "404", "429", "500", "503", "301", "another shape", "another object"],
)
def test_a_refusal_fails_the_pipelines_and_keeps_their_watermark(
    api: str, reply: Reply, kind: type[PartnerError], all_logs: pytest.LogCaptureFixture
) -> None:
    script = SCRIPTS[api]()
    failing(script, reply)
    swept = sweep(api, script, targets(script))
    if api == "prefect" and kind is SchemaDrift:
        pytest.skip("a list is what it answers: the records in it are what is wrong")
    if api == "databricks" and reply is not None and kind is PartnerError and not swept.errors:
        pytest.skip("an answer without a list is what it gives where there are no runs")
    assert swept.done == {}
    assert set(swept.errors) == set(script.pipelines)
    assert all(isinstance(error, kind) for error in swept.errors.values()), swept.errors
    assert not isinstance(next(iter(swept.errors.values())), Transient) or kind in (Transient, RateLimited)
    shown = " ".join([*map(str, swept.errors.values()), *all_logs.messages])
    assert "good-secret" not in shown
    assert len(script.requests) <= 14


@every_api
def test_a_pipeline_that_the_partner_does_not_know_is_named(api: str) -> None:
    if spec(api).scope.narrow == "none":
        pytest.skip("it is read as a whole")
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    if spec(api).scope.narrow == "many":
        unknown = "not-a-uuid"
        script.fault = lambda request: status_reply(422) if unknown.encode() in request.body else None
    else:
        unknown = "nobody"
    swept = sweep(api, script, [Target(script.pipelines[0], SINCE), Target(unknown, SINCE)])
    assert ids(swept) == ["1001"]
    assert set(swept.done) == {script.pipelines[0]}
    assert f"does not know pipeline '{unknown}'" in str(swept.errors[unknown])


# Records


@every_api
def test_an_unknown_status_counts_as_running_and_shows_its_word(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("LEVITATING", started=60, finished=50))
    (found,) = sweep(api, script, targets(script)).by_run.values()
    assert (found.status, found.unknown_status, found.finished_at) == (RunStatus.RUNNING, True, None)
    assert "levitating" in (found.status_reason or "").lower() or api == "dbt"


@every_api
def test_rows_that_are_no_runs_cost_nobody_else_anything(api: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    runs = spec(api).runs
    script.add(script.pipelines[0], number(2), ENDED, {runs.id: None})
    script.add(script.pipelines[0], number(3), ENDED, {runs.started[0]: "yesterday"})
    script.junk = [None, "x", 7, [], {}]
    swept = sweep(api, script, [Target(script.pipelines[0], SINCE)])
    assert ids(swept) == ["1001"]
    assert set(swept.done) == {script.pipelines[0]}
    reasons = {rejection.reason for rejection in swept.rejections}
    assert any(reason.startswith(runs.id) for reason in reasons), reasons
    assert any(reason.startswith(runs.started[0]) for reason in reasons), reasons
    dropped = [record for record in caplog.records if record.levelno == logging.WARNING and "dropped" in record.msg]
    assert bool(dropped) != any("not an object" in reason for reason in reasons)


@every_api
def test_a_format_in_which_no_run_says_whose_it_is_does_not_pass_for_no_news(api: str) -> None:
    script = SCRIPTS[api]()
    if not script.names_the_pipeline:
        pytest.skip("its runs never say it")
    script.junk = [{"a": 1}, {"b": 2}]
    many = [Target(f"p{n}", SINCE) for n in range(300)]
    swept = sweep(api, script, many)
    assert swept.done == {}
    assert {str(error) for error in swept.errors.values()} == {
        f"connection acme: no run says in {spec(api).runs.pipeline[0]} which pipeline it belongs to"
    }


@every_api
def test_runs_of_the_future_are_left_out_or_wait_and_poison_nothing(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    script.add(script.pipelines[0], number(2), stage("running", started=-3 * 1440))
    script.add(
        script.pipelines[0],
        number(3),
        Stage("queued", None, None, NOW + timedelta(days=30)),
    )
    swept = sweep(api, script, targets(script))
    assert "1001" in ids(swept)
    assert all(found.started_at is None or found.started_at <= NOW for found in swept.observations)
    assert {end.synced_through for end in swept.done.values()} == {NOW - timedelta(minutes=5)}


# Life


@every_api
def test_a_run_is_followed_through_its_life(api: str) -> None:
    script = SCRIPTS[api]()
    run = script.add(script.pipelines[0], number(1), stage("queued", started=None))
    seen = []
    for at in (
        stage("queued", started=None),
        stage("running", started=30),
        stage("failed", started=30, finished=20),
    ):
        run.stage = at
        seen += sweep(api, script, targets(script)).by_run.values()
    assert [found.status for found in seen] == [RunStatus.RUNNING, RunStatus.RUNNING, RunStatus.FAILED]
    assert seen == sorted(seen, key=lambda found: found.knowledge)
    last = seen[-1]
    assert (last.started_at, last.finished_at) == (minutes_ago(30), minutes_ago(20))
    assert last.duration_seconds == 600
    assert seen[1].finished_at is None
    assert ("no space left" in (last.error_message or "")) == (
        spec(api).runs.error != [] or spec(api).enrich is not None
    )
    assert last.unknown_status is False


@every_api
def test_a_canceled_run_is_told_from_a_failed_one_where_the_partner_does(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("canceled", started=60, finished=50))
    (found,) = sweep(api, script, targets(script)).by_run.values()
    assert found.status is (RunStatus.FAILED if script.words["canceled"] == "failed" else RunStatus.CANCELED)
    assert found.error_message is None or found.status is RunStatus.FAILED


@every_api
def test_a_re_run_under_the_same_id_is_newer_and_a_late_answer_is_older(api: str) -> None:
    script = SCRIPTS[api]()
    run = script.add(script.pipelines[0], number(1), stage("failed", started=60, finished=50))
    (failed,) = sweep(api, script, targets(script)).by_run.values()
    run.stage = stage("running", started=30, attempt=1)
    (again,) = sweep(api, script, targets(script)).by_run.values()
    run.stage = stage("success", started=30, finished=10, attempt=1)
    (success,) = sweep(api, script, targets(script)).by_run.values()
    assert success.knowledge > failed.knowledge
    assert success.error_message is None
    assert spec(api).reopens == script.reopens
    if spec(api).reopens:
        assert failed.knowledge < again.knowledge < success.knowledge
        assert (again.finished_at, again.error_message) == (None, None)
    else:
        assert again.knowledge < failed.knowledge


@every_api
def test_an_unfinished_run_that_vanished_is_gone_and_one_that_is_there_is_not(api: str) -> None:
    if spec(api).lookup is None:
        pytest.skip("single runs cannot be asked for")
    script = SCRIPTS[api]()
    long_ago = stage("running", started=60 * 24 * 20)
    script.add(script.pipelines[0], number(1), long_ago)
    bare = script.record(script.runs[0]).get(spec(api).runs.id) != number(1)
    known = [n.rpartition("-")[2] if bare else n for n in (number(1), number(2))]
    runs = tuple(open_run(run_id) for run_id in known)
    swept = sweep(api, script, [Target(script.pipelines[0], SINCE, runs), *targets(script)[1:]])
    assert swept.gone == [(script.pipelines[0], known[1])]
    assert swept.by_run[known[0]].status is RunStatus.RUNNING
    assert swept.errors == {}


@every_api
def test_a_finished_run_that_nobody_saw_end_is_found_by_its_id(api: str) -> None:
    if spec(api).lookup is None:
        pytest.skip("single runs cannot be asked for")
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("success", started=60 * 24 * 20, finished=60 * 24 * 19))
    bare = script.record(script.runs[0]).get(spec(api).runs.id) != number(1)
    run_id = "1001" if bare else number(1)
    swept = sweep(api, script, [Target(script.pipelines[0], SINCE, (open_run(run_id),))])
    assert swept.by_run[run_id].status is RunStatus.SUCCESS
    assert swept.gone == []


def test_a_job_of_airbyte_that_ends_between_two_pages_costs_no_other_job() -> None:
    script = SCRIPTS["airbyte"](page=2)
    for n in range(5):
        script.add(script.pipelines[0], number(n), stage("running", started=50 - n))

    def ends(request: Request) -> Reply | None:
        if request.query.get("offset") == "2":
            script.runs[0].stage = stage("success", started=50, finished=0)
        return None

    script.fault = ends
    swept = sweep("airbyte", script, targets(script)[:1])
    assert {str(1000 + n) for n in range(5)} <= {found.external_run_id for found in swept.observations}


# What it costs


@every_api
def test_a_thousand_quiet_pipelines_cost_a_handful_of_requests(api: str) -> None:
    if not spec(api).scope.account:
        pytest.skip("it can only be read pipeline by pipeline")
    script = SCRIPTS[api]()
    swept = sweep(api, script, [Target(f"p{n}", SINCE) for n in range(1_000)])
    assert len(swept.done) == 1_000
    assert len(script.for_runs) <= script.passes <= 5
    assert len(script.requests) <= 5


# Who is there


@every_api
def test_a_probe_of_a_healthy_partner_tells_what_it_found(api: str) -> None:
    probe = with_feed(api, SCRIPTS[api](), lambda feed: feed.check())
    assert probe.ok, probe
    topics = [finding.topic for finding in probe.findings]
    assert topics == (["version"] if spec(api).check.version else []) + ["auth", "rights"]
    if spec(api).check.version:
        assert probe.findings[0].sentence.startswith(f"{spec(api).title}, version ")


@every_api
def test_a_probe_with_wrong_credentials_blames_them_and_names_their_variables(api: str) -> None:
    script = SCRIPTS[api]()
    if not script.credentials:
        pytest.skip("it knows no credentials")
    wrong = dict.fromkeys(script.credentials, "bad-secret")
    probe = with_feed(api, script, lambda feed: feed.check(), wrong)
    assert not probe.ok
    assert probe.findings[-1].topic == "auth"
    assert all(f"ACME_{name.upper()}" in probe.detail for name in wrong)
    assert "bad-secret" not in repr(probe)


@every_api
def test_a_probe_without_rights_does_not_blame_the_password_where_it_knows_better(api: str) -> None:
    script = SCRIPTS[api]()

    def fault(request: Request) -> Reply | None:
        return None if script.unproven(request) is not None else status_reply(403)

    script.fault = fault
    probe = with_feed(api, script, lambda feed: feed.check())
    assert not probe.ok
    way = fitting(spec(api).auth, frozenset(script.credentials))
    signs_in = way is not None and way.kind == "login"
    assert probe.findings[-1].topic == ("rights" if signs_in else "auth")


@every_api
def test_its_pipelines_are_listed_for_the_inventory(api: str) -> None:
    script = SCRIPTS[api]()
    found = with_feed(api, script, lambda feed: feed.discover())
    wanted = [f"defs/{name}" for name in script.pipelines] if api.startswith("dagster") else list(script.pipelines)
    assert [pipeline.external_id for pipeline in found] == wanted
    assert all(pipeline.name for pipeline in found)
