"""Every shipped API behaves as the port promises, whatever its server does. New APIs are included automatically."""

import logging
from datetime import timedelta
from math import ceil
from typing import Any

import pytest

from chm_dagster.domain.runs import RunStatus
from chm_dagster.errors import AuthError, Permanent, RateLimited, RemoteError, SchemaDrift, Transient
from chm_dagster.partners.credentials import matching
from chm_dagster.partners.engine.discovery import LISTING_PAGES
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.sync import ANSWER_SECONDS, MAX_QUESTIONS
from chm_dagster.partners.platforms import shipped
from chm_dagster.partners.port import SyncTarget
from chm_dagster_tests.http.fault_server import Reply, Request, status_reply
from chm_dagster_tests.partners.scene import open_run, sync, with_feed
from chm_dagster_tests.partners.scripts import SCRIPTS
from chm_dagster_tests.partners.scripts.script import NOW, Script, Stage, minutes_ago, ok, stage

APIS = sorted(shipped())
SINCE = minutes_ago(90)
ENDED = stage("success", started=60, finished=50)

every_api = pytest.mark.parametrize("api", APIS)


def spec(api: str) -> Rest:
    return shipped()[api]


def targets(script: Script, since: Any = SINCE, **more: Any) -> list[SyncTarget]:
    return [SyncTarget(pipeline, since, **more) for pipeline in script.pipelines]


def number(n: int) -> str:
    """A run id: some platforms use plain numbers."""
    return f"run-{1000 + n}"


def ids(synced: Any) -> list[str]:
    """Run ids as numbers, for platforms whose ids have no prefix."""
    return sorted(found.external_run_id.rpartition("-")[2] for found in synced.observations)


def test_every_shipped_api_has_a_script() -> None:
    assert set(SCRIPTS) == set(APIS)


@every_api
def test_it_states_how_it_was_verified(api: str) -> None:
    assert spec(api).verified in ("real_server", "documentation")
    assert spec(api).sources
    assert (spec(api).verified == "real_server") == (api in {"airflow", "prefect", "dagster"})


# News


@every_api
def test_what_is_new_is_found_in_a_few_requests_or_not_asked(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    found = with_feed(api, script, lambda feed: feed.recent(targets(script)))
    assert found is not None
    assert [owner for batch in found for owner, _ in batch.records] == [script.pipelines[0]]
    assert len(script.for_runs) <= MAX_QUESTIONS


@every_api
@pytest.mark.parametrize("number_of_pipelines", [4, 400])
def test_asking_many_pipelines_for_news_takes_no_more_requests(api: str, number_of_pipelines: int) -> None:
    script, scope = SCRIPTS[api](), spec(api).scope
    script.add(script.pipelines[0], number(1), ENDED)
    # Most of them are gone at the partner: that must not hide the news of the others.
    names = [*script.pipelines, *(f"{script.pipelines[0][:-1]}{n}" for n in range(10, number_of_pipelines + 7))]
    found = with_feed(api, script, lambda feed: feed.recent([SyncTarget(name, SINCE) for name in names]))
    most = min(MAX_QUESTIONS, (spec(api).requests_per_minute or 1_000) * ANSWER_SECONDS / 60 / 2)
    batches = ceil(len(names) / scope.max_ids) if scope.filter_by == "ids" else len(names)
    if scope.account or scope.filter_by == "none" or batches * len(spec(api).streams) <= most:
        assert found is not None and [owner for batch in found for owner, _ in batch.records] == [script.pipelines[0]]
    else:
        assert (found, script.for_runs) == (None, [])
    assert len(script.for_runs) <= MAX_QUESTIONS


@every_api
def test_asking_for_news_raises_what_a_sync_would_report(api: str) -> None:
    script = SCRIPTS[api]()
    script.fault = lambda request: status_reply(401)
    with pytest.raises(RemoteError):
        with_feed(api, script, lambda feed: feed.recent(targets(script)))


# Pages


@every_api
@pytest.mark.parametrize("since", [SINCE, None], ids=["news", "everything"])
def test_every_run_of_many_pages_is_read(api: str, since: Any) -> None:
    script = SCRIPTS[api]()
    count = 2 * spec(api).page_size + 1
    for n in range(count):
        script.add(script.pipelines[0], number(n), stage("success", started=60 + n / 1000, finished=50 + n / 1000))
    synced = sync(api, script, targets(script, since))
    assert set(ids(synced)) == {str(1000 + n) for n in range(count)}
    assert synced.errors == {}
    assert set(synced.done) == set(script.pipelines)


@every_api
def test_a_server_with_short_pages_hides_nothing(api: str) -> None:
    if spec(api).paginator.short_page_ends or spec(api).paginator.kind == "none":
        pytest.skip("it is known never to cut pages short, or has none")
    script = SCRIPTS[api](page=3)
    for n in range(10):
        script.add(script.pipelines[n % 3], number(n), stage("failed", started=60 + n, finished=50 + n))
    assert set(ids(sync(api, script, targets(script)))) == {str(1000 + n) for n in range(10)}


@every_api
def test_no_runs_is_not_a_failure_and_moves_the_watermark(api: str) -> None:
    script = SCRIPTS[api]()
    synced = sync(api, script, targets(script))
    assert (synced.mapped, synced.errors) == ([], {})
    assert {end.synced_through for end in synced.done.values()} == {NOW - timedelta(minutes=5)}


@every_api
def test_runs_older_than_the_watermark_are_not_requested_again(api: str) -> None:
    script = SCRIPTS[api]()
    if not script.filters_by_time and spec(api).streams[0].newest_first is None:
        pytest.skip("one response has everything that it keeps")
    script.add(script.pipelines[0], number(1), stage("success", started=60 * 24 * 9, finished=60 * 24 * 9 - 10))
    script.add(script.pipelines[0], number(2), ENDED)
    assert ids(sync(api, script, targets(script))) == ["1002"]


def stuck(script: Script) -> None:
    """From now on, every request for runs gets the first response, whatever page it asks for."""
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
def test_a_server_that_never_advances_is_drift_and_not_an_endless_sync(api: str) -> None:
    if spec(api).paginator.kind == "none":
        pytest.skip("it has no pages")
    script = SCRIPTS[api]()
    word = "running" if spec(api).streams[0].name.startswith(("unfinished", "queued")) else "success"
    word = "queued" if spec(api).streams[0].name.startswith("queued") else word
    for n in range(spec(api).page_size + 5):
        at = stage(word, started=60 + n / 1000, finished=None if word != "success" else 50 + n / 1000)
        script.add(script.pipelines[0], number(n), at)
    stuck(script)
    synced = sync(api, script, targets(script)[:1])
    assert [type(error) for error in synced.errors.values()] == [SchemaDrift], synced.errors
    assert len(script.for_runs) <= 4


# Refusals


def failing(script: Script, reply: Reply) -> None:
    script.fault = lambda request: reply if script.is_for_runs(request) else None


@every_api
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (status_reply(401), AuthError),
        (status_reply(403), RemoteError),
        (status_reply(404), Permanent),
        (status_reply(429, {"Retry-After": "900"}), RateLimited),
        (status_reply(500), Transient),
        (status_reply(503), Transient),
        (status_reply(301, {"Location": "/x"}), Permanent),
        (ok([[]]), SchemaDrift),
        (ok({"unexpected": True}), RemoteError),
    ],
    ids=["401", "403", "404", "429", "500", "503", "301", "another shape", "another object"],
)
def test_a_refusal_fails_the_pipelines_and_keeps_their_watermark(
    api: str, reply: Reply, kind: type[RemoteError], all_logs: pytest.LogCaptureFixture
) -> None:
    script = SCRIPTS[api]()
    failing(script, reply)
    synced = sync(api, script, targets(script))
    if api == "prefect" and kind is SchemaDrift:
        pytest.skip("a list is what it answers: the records in it are what is wrong")
    if api == "databricks" and reply is not None and kind is RemoteError and not synced.errors:
        pytest.skip("an answer without a list is what it gives where there are no runs")
    assert synced.done == {}
    assert set(synced.errors) == set(script.pipelines)
    assert all(isinstance(error, kind) for error in synced.errors.values()), synced.errors
    assert not isinstance(next(iter(synced.errors.values())), Transient) or kind in (Transient, RateLimited)
    shown = " ".join([*map(str, synced.errors.values()), *all_logs.messages])
    assert "good-secret" not in shown
    assert len(script.requests) <= 14


@every_api
def test_a_pipeline_unknown_to_the_partner_is_named(api: str) -> None:
    if spec(api).scope.filter_by == "none":
        pytest.skip("it is read as a whole")
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    if spec(api).scope.filter_by == "ids":
        unknown = "not-a-uuid"
        script.fault = lambda request: status_reply(422) if unknown.encode() in request.body else None
    else:
        unknown = "nobody"
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE), SyncTarget(unknown, SINCE)])
    assert ids(synced) == ["1001"]
    assert set(synced.done) == {script.pipelines[0]}
    assert f"does not know pipeline '{unknown}'" in str(synced.errors[unknown])


# Records


@every_api
def test_an_unknown_status_counts_as_running_and_shows_its_word(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("LEVITATING", started=60, finished=50))
    (found,) = sync(api, script, targets(script)).by_run.values()
    assert (found.status, found.unknown_status, found.finished_at) == (RunStatus.RUNNING, True, None)
    assert "levitating" in (found.status_reason or "").lower() or api == "dbt"


def replacing(record: dict[str, Any], selector: str, value: Any) -> dict[str, Any]:
    """The field of the record in which the selector then finds this value."""
    name, _, rest = selector.partition(".")
    return {name: {**record[name], **replacing(record[name], rest, value)} if rest else value}


@every_api
def test_invalid_rows_do_not_affect_others(api: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    runs = spec(api).runs
    script.add(script.pipelines[0], number(2), ENDED, dict.fromkeys(runs.id))
    third = script.add(script.pipelines[0], number(3), ENDED)
    third.extra = replacing(script.record(third), runs.started[0], "yesterday")
    script.junk = [None, "x", 7, [], {}]
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE)])
    assert ids(synced) == ["1001"]
    assert set(synced.done) == {script.pipelines[0]}
    reasons = {rejection.reason for rejection in synced.rejections}
    assert any(reason.startswith(runs.id[0]) for reason in reasons), reasons
    assert any(reason.startswith(runs.started[0]) for reason in reasons), reasons
    dropped = [record for record in caplog.records if record.levelno == logging.WARNING and "dropped" in record.msg]
    assert bool(dropped) != any("not an object" in reason for reason in reasons)


@every_api
def test_a_format_without_pipeline_ids_is_not_read_as_no_news(api: str) -> None:
    script = SCRIPTS[api]()
    if not script.names_the_pipeline or not spec(api).scope.account:
        pytest.skip("its runs never say it, or are read pipeline by pipeline")
    script.junk = [{"a": 1}, {"b": 2}]
    many = [SyncTarget(f"p{n}", SINCE) for n in range(300)]
    synced = sync(api, script, many)
    assert synced.done == {}
    assert {str(error) for error in synced.errors.values()} == {
        f"connection acme: no run says in {spec(api).runs.pipeline[0]} which pipeline it belongs to"
    }


@every_api
def test_runs_in_the_future_are_left_out_or_wait_and_do_no_harm(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), ENDED)
    script.add(script.pipelines[0], number(2), stage("running", started=-3 * 1440))
    script.add(
        script.pipelines[0],
        number(3),
        Stage("queued", None, None, NOW + timedelta(days=30)),
    )
    synced = sync(api, script, targets(script))
    assert "1001" in ids(synced)
    assert all(found.started_at is None or found.started_at <= NOW for found in synced.observations)
    assert {end.synced_through for end in synced.done.values()} == {NOW - timedelta(minutes=5)}


# Life


@every_api
def test_a_run_is_followed_through_its_life(api: str) -> None:
    script = SCRIPTS[api]()
    run = script.add(script.pipelines[0], number(1), stage("queued", started=None))
    # Where a queued run gets the time of the response as its version, it starts after that.
    start = 0 if spec(api).runs.version_if_queued else 30
    seen = []
    for at in (
        stage("queued", started=None),
        stage("running", started=start),
        stage("failed", started=start, finished=start - 10),
    ):
        run.stage = at
        seen += sync(api, script, targets(script)).by_run.values()
    assert [found.status for found in seen] == [RunStatus.RUNNING, RunStatus.RUNNING, RunStatus.FAILED]
    assert seen == sorted(seen, key=lambda found: found.knowledge)
    last = seen[-1]
    assert (last.started_at, last.finished_at) == (minutes_ago(start), minutes_ago(start - 10))
    assert last.duration_seconds == 600
    assert seen[1].finished_at is None
    assert ("no space left" in (last.error_message or "")) == (
        script.error_inline or spec(api).extension in ("airflow", "dagster")
    )
    assert last.unknown_status is False


@every_api
def test_a_canceled_run_is_distinguished_from_a_failed_one_where_the_partner_does(api: str) -> None:
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("canceled", started=60, finished=50))
    (found,) = sync(api, script, targets(script)).by_run.values()
    assert found.status is (RunStatus.FAILED if script.words["canceled"] == "failed" else RunStatus.CANCELED)
    assert found.error_message is None or found.status is RunStatus.FAILED


@every_api
def test_a_re_run_under_the_same_id_is_newer_and_a_late_response_is_older(api: str) -> None:
    script = SCRIPTS[api]()
    run = script.add(script.pipelines[0], number(1), stage("failed", started=60, finished=50))
    (failed,) = sync(api, script, targets(script)).by_run.values()
    run.stage = stage("running", started=30, attempt=1)
    (again,) = sync(api, script, targets(script)).by_run.values()
    run.stage = stage("success", started=30, finished=10, attempt=1)
    (success,) = sync(api, script, targets(script)).by_run.values()
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
        pytest.skip("single runs cannot be looked up")
    script = SCRIPTS[api]()
    long_ago = stage("running", started=60 * 24 * 20)
    script.add(script.pipelines[0], number(1), long_ago)
    bare = script.record(script.runs[0]).get(spec(api).runs.id[0]) != number(1)
    known = [n.rpartition("-")[2] if bare else n for n in (number(1), number(2))]
    runs = tuple(open_run(run_id) for run_id in known)
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE, runs), *targets(script)[1:]])
    assert synced.gone == [(script.pipelines[0], known[1])]
    assert synced.by_run[known[0]].status is RunStatus.RUNNING
    assert synced.errors == {}


@every_api
def test_a_run_whose_end_was_missed_is_found_by_its_id(api: str) -> None:
    if spec(api).lookup is None:
        pytest.skip("single runs cannot be looked up")
    script = SCRIPTS[api]()
    script.add(script.pipelines[0], number(1), stage("success", started=60 * 24 * 20, finished=60 * 24 * 19))
    bare = script.record(script.runs[0]).get(spec(api).runs.id[0]) != number(1)
    run_id = "1001" if bare else number(1)
    synced = sync(api, script, [SyncTarget(script.pipelines[0], SINCE, (open_run(run_id),))])
    assert synced.by_run[run_id].status is RunStatus.SUCCESS
    assert synced.gone == []


def test_an_airbyte_job_that_ends_between_two_pages_hides_no_other_job() -> None:
    script = SCRIPTS["airbyte"](page=2)
    for n in range(5):
        script.add(script.pipelines[0], number(n), stage("running", started=50 - n))

    def ends(request: Request) -> Reply | None:
        if request.query.get("offset") == "2":
            script.runs[0].stage = stage("success", started=50, finished=0)
        return None

    script.fault = ends
    synced = sync("airbyte", script, targets(script)[:1])
    assert {str(1000 + n) for n in range(5)} <= {found.external_run_id for found in synced.observations}


# Cost


@every_api
def test_a_thousand_quiet_pipelines_cost_a_handful_of_requests(api: str) -> None:
    if not spec(api).scope.account:
        pytest.skip("it can only be read pipeline by pipeline")
    script = SCRIPTS[api]()
    # Kestra's ids are a namespace and a name: the script lists what its own ids look like.
    folder, slash, _ = script.pipelines[0].rpartition("/")
    script.pipelines = tuple(f"{folder}{slash}{10_000 + n}" for n in range(1_000))  # type: ignore[misc]
    synced = sync(api, script, [SyncTarget(pipeline, SINCE) for pipeline in script.pipelines])
    assert len(synced.done) == 1_000
    assert len(script.for_runs) <= script.passes <= 5
    pages = ceil(1_000 / (spec(api).page_size - 1))
    assert len(script.requests) <= 5 + max(LISTING_PAGES, pages)


# Probes and discovery


@every_api
def test_a_probe_of_a_healthy_partner_reports_what_it_found(api: str) -> None:
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
    wrong = script.wrong_credentials or dict.fromkeys(script.credentials, "bad-secret")
    probe = with_feed(api, script, lambda feed: feed.check(), wrong)
    assert not probe.ok
    assert probe.findings[-1].topic == "auth"
    assert all(f"ACME_{name.upper()}" in probe.detail for name in wrong)
    assert "bad-secret" not in repr(probe)


@every_api
def test_a_probe_without_rights_does_not_blame_the_password_if_it_is_correct(api: str) -> None:
    script = SCRIPTS[api]()

    def fault(request: Request) -> Reply | None:
        return None if script.unproven(request) is not None else status_reply(403)

    script.fault = fault
    probe = with_feed(api, script, lambda feed: feed.check())
    assert not probe.ok
    way = matching(spec(api).auth, frozenset(script.credentials))
    signs_in = way is not None and way.kind in ("login", "google", "github_app")
    assert probe.findings[-1].topic == ("rights" if signs_in else "auth")


@every_api
def test_its_pipelines_can_be_discovered(api: str) -> None:
    script = SCRIPTS[api]()
    found = with_feed(api, script, lambda feed: feed.discover())
    wanted = [f"defs/{name}" for name in script.pipelines] if api.startswith("dagster") else list(script.pipelines)
    assert [pipeline.external_id for pipeline in found] == wanted
    assert all(pipeline.name for pipeline in found)
