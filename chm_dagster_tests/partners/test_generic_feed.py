"""The generic feed: pagination, grouping, watermarks, and isolated failures."""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.errors import AuthError, NotAtPartner, RateLimited, RemoteError, SchemaDrift, Transient
from chm_dagster.http.client import DEFAULT_POLICY, HttpClient, HttpPolicy
from chm_dagster.http.failures import Misconfigured
from chm_dagster.partners.engine.requests import MAX_PAGES
from chm_dagster.partners.engine.sync import RestFeed
from chm_dagster.partners.platforms import GENERIC, shipped
from chm_dagster.partners.port import (
    PipelinesFailed,
    PipelinesSynced,
    Probe,
    RecordBatch,
    RunFeed,
    SourcePipeline,
    SyncTarget,
)
from chm_dagster_tests.http.fault_server import (
    FaultServer,
    Reply,
    Request,
    in_turn,
    json_reply,
    respond,
    runs_reply,
    status_reply,
    then_close,
)
from chm_dagster_tests.http.setup import NOW, TOKEN, partner_http

DATE = {"Date": "Sun, 01 Mar 2026 11:58:00 GMT"}
LATER = {"Date": "Sun, 01 Mar 2026 11:59:00 GMT"}
SERVER_TIME = datetime(2026, 3, 1, 11, 58, tzinfo=UTC)
SINCE = datetime(2026, 3, 1, 11, 0, tzinfo=UTC)
ABSENT = status_reply(404)

Event = RecordBatch | PipelinesSynced | PipelinesFailed
Response = Callable[[Request], Reply]


def sync(
    answer: Response,
    targets: Sequence[SyncTarget],
    *,
    concurrency: int = 8,
    max_body_bytes: int = DEFAULT_POLICY.max_body_bytes,
    **options: Any,
) -> tuple[list[Event], list[Request]]:
    policy = HttpPolicy(concurrency=concurrency, max_body_bytes=max_body_bytes)

    async def scene() -> tuple[list[Event], list[Request]]:
        async with FaultServer(answer) as server:
            feed: RunFeed = generic_feed(partner_http(server.base_url, policy=policy), **options)
            events = [event async for event in feed.sync(targets)]
            await feed.aclose()
            return events, [request for request in server.requests if request.path != "/base/pipelines"]

    return asyncio.run(scene())


def generic_feed(
    http: HttpClient,
    *,
    overlap: timedelta = timedelta(minutes=5),
    account_threshold: int = 50,
    max_pages: int = MAX_PAGES,
) -> RestFeed:
    rest = shipped()[GENERIC]
    thresholds = {"account_threshold": account_threshold, "account_threshold_full": account_threshold}
    scope = rest.scope.model_copy(update=thresholds)
    return RestFeed(rest.model_copy(update={"scope": scope}), http, options={}, overlap=overlap, max_pages=max_pages)


def targets(count: int, since: datetime | None = SINCE) -> list[SyncTarget]:
    return [SyncTarget(f"p{n}", since) for n in range(count)]


def pages(events: Sequence[Event]) -> list[RecordBatch]:
    return [event for event in events if isinstance(event, RecordBatch)]


def fates(events: Sequence[Event]) -> dict[str, datetime | RemoteError]:
    """The result of each target; fails if a target ended twice or had a page after its end."""
    ends: dict[str, datetime | RemoteError] = {}
    for event in events:
        if isinstance(event, RecordBatch):
            assert not [owner for owner, _ in event.records if owner in ends]
            continue
        for external_id in event.external_ids:
            assert external_id not in ends
            ends[external_id] = event.synced_through if isinstance(event, PipelinesSynced) else event.error
    return ends


def only_error(events: Sequence[Event]) -> RemoteError:
    (end,) = fates(events).values()
    assert isinstance(end, RemoteError)
    return end


# One by one


def test_a_pipeline_is_read_page_by_page_and_is_then_known_up_to_the_first_answer() -> None:
    answer = in_turn(runs_reply([{"id": 1}, "odd", None], "two", DATE), runs_reply([{"id": 2}], None, LATER))
    events, requests = sync(answer, [SyncTarget("p0", SINCE)])
    assert [page.records for page in pages(events)] == [
        [("p0", {"id": 1}), ("p0", "odd"), ("p0", None)],
        [("p0", {"id": 2})],
    ]
    assert {page.observed_at for page in pages(events)} == {NOW}
    assert events[-1] == PipelinesSynced(("p0",), SERVER_TIME - timedelta(minutes=5), NOW, SERVER_TIME)
    asked = {"updated_since": "2026-03-01T11:00:00Z", "limit": "1000"}
    assert [request.query for request in requests] == [asked, {**asked, "cursor": "two"}]
    assert {request.path for request in requests} == {"/base/pipelines/p0/runs"}


def test_without_a_watermark_everything_is_read() -> None:
    _, requests = sync(in_turn(runs_reply([])), [SyncTarget("p0", None)])
    assert requests[0].query == {"limit": "1000"}


def test_without_a_date_header_our_own_clock_is_used() -> None:
    events, _ = sync(in_turn(runs_reply([])), [SyncTarget("p0", None)], overlap=timedelta(minutes=1))
    assert events == [PipelinesSynced(("p0",), NOW - timedelta(minutes=1), NOW, None, timedelta(minutes=1))]


@pytest.mark.parametrize("count", [1, 60])
def test_the_first_request_of_a_stream_sets_its_time(count: int) -> None:
    async def scene() -> list[Event]:
        minutes = iter(range(100))
        pages = [runs_reply([{"id": n, "pipeline_id": "p0"}], cursor) for n, cursor in enumerate(["a", "b", None])]
        async with (
            FaultServer(in_turn(*pages)) as server,
            partner_http(server.base_url, clock=lambda: NOW + timedelta(minutes=next(minutes))) as http,
        ):
            return [event async for event in generic_feed(http).sync(targets(count))]

    *read, done = asyncio.run(scene())
    first = pages(read)[0].observed_at
    assert [page.observed_at - first for page in pages(read)] == [timedelta(minutes=n) for n in range(3)]
    assert isinstance(done, PipelinesSynced)
    assert (done.observed_at, done.synced_through) == (first, first - timedelta(minutes=5))


def test_a_watermark_in_another_zone_is_sent_in_utc() -> None:
    _, requests = sync(in_turn(runs_reply([])), [SyncTarget("p0", datetime.fromisoformat("2026-03-01T13:00:00+02:00"))])
    assert requests[0].query["updated_since"] == "2026-03-01T11:00:00Z"


def test_an_odd_id_is_requested_unchanged() -> None:
    odd = "a/b c?x#é.."
    events, requests = sync(in_turn(runs_reply([{"id": 1, "pipeline_id": odd}])), [SyncTarget(odd, None)])
    assert requests[0].path == "/base/pipelines/a%2Fb%20c%3Fx%23%C3%A9../runs"
    assert unquote(requests[0].path) == f"/base/pipelines/{odd}/runs"
    assert isinstance(fates(events)[odd], datetime)


def test_a_target_named_twice_is_read_once_from_its_earliest_watermark() -> None:
    older = SINCE - timedelta(minutes=30)
    events, requests = sync(
        in_turn(runs_reply([])), [SyncTarget("p0", SINCE), SyncTarget("p0", older), SyncTarget("p0", SINCE)]
    )
    assert len(fates(events)) == 1
    assert [request.query["updated_since"] for request in requests] == ["2026-03-01T10:30:00Z"]
    _, requests = sync(
        in_turn(runs_reply([])), [SyncTarget("p0", SINCE), SyncTarget("p0", None), SyncTarget("p0", SINCE)]
    )
    assert "updated_since" not in requests[0].query


def test_without_pipelines_there_are_no_requests() -> None:
    assert sync(in_turn(runs_reply([])), []) == ([], [])


def test_one_failing_pipeline_does_not_affect_others() -> None:
    def answer(request: Request) -> Reply:
        if "/p1/" in request.path:
            return ABSENT
        return status_reply(500) if "/p2/" in request.path else runs_reply([{"id": 1}])

    events, requests = sync(answer, targets(4))
    ends = fates(events)
    assert str(ends["p1"]) == "connection acme: the partner does not know pipeline 'p1' (404); check its external_id"
    assert type(ends["p1"]) is NotAtPartner
    assert str(ends["p2"]) == "connection acme: /pipelines/p2/runs: answered 500"
    assert type(ends["p2"]) is Transient
    assert isinstance(ends["p0"], datetime)
    assert isinstance(ends["p3"], datetime)
    assert len(requests) == 1 + 1 + 3 + 1


def test_a_run_of_another_pipeline_is_not_accepted() -> None:
    lie = runs_reply([{"id": 1, "pipeline_id": "p0"}, {"id": 2, "pipeline_id": "sentinel"}])
    events, _ = sync(in_turn(lie), [SyncTarget("p0", None)])
    assert pages(events) == []
    assert isinstance(only_error(events), SchemaDrift)
    assert (
        str(only_error(events)) == "connection acme: the response for pipeline 'p0' contains a run of another pipeline"
    )


@pytest.mark.parametrize(("own", "accepted"), [("7", True), (7, True), (None, True), ("07", False), (7.0, False)])
def test_the_pipeline_id_of_a_run_must_be_the_requested_one(own: object, accepted: bool) -> None:
    events, _ = sync(in_turn(runs_reply([{"id": 1, "pipeline_id": own}])), [SyncTarget("7", None)])
    assert isinstance(fates(events)["7"], datetime) is accepted


# Endless pages and invalid pages


@pytest.mark.parametrize(
    "body",
    [{"next_cursor": None}, {"runs": None, "next_cursor": None}, {"runs": {"id": 1}, "next_cursor": None}, {}],
)
def test_runs_must_be_a_list(body: dict[str, Any]) -> None:
    events, _ = sync(in_turn(json_reply(body)), [SyncTarget("p0", None)])
    assert str(only_error(events)) == "connection acme: runs is missing or not a list"
    assert isinstance(only_error(events), SchemaDrift)


def test_a_missing_cursor_key_is_drift_and_not_the_last_page() -> None:
    events, _ = sync(in_turn(json_reply({"runs": [{"id": 1}]})), [SyncTarget("p0", None)])
    assert isinstance(only_error(events), SchemaDrift)
    assert "next_cursor is missing" in str(only_error(events))


@pytest.mark.parametrize("cursor", [True, 1.5, {}, [], "x" * 5_000])
def test_a_cursor_of_another_kind_is_drift(cursor: object) -> None:
    events, requests = sync(in_turn(json_reply({"runs": [], "next_cursor": cursor})), [SyncTarget("p0", None)])
    assert isinstance(only_error(events), SchemaDrift)
    assert len(requests) == 1


def test_an_empty_string_ends_a_stream_and_a_number_is_a_cursor() -> None:
    answer = in_turn(json_reply({"runs": [], "next_cursor": 2}), json_reply({"runs": [], "next_cursor": ""}))
    events, requests = sync(answer, [SyncTarget("p0", None)])
    assert isinstance(fates(events)["p0"], datetime)
    assert requests[1].query["cursor"] == "2"


def test_a_cursor_that_was_seen_before_is_a_loop() -> None:
    answer = in_turn(*(runs_reply([{"id": 1}], cursor) for cursor in ("a", "b", "c", "a")), runs_reply([], None))
    events, requests = sync(answer, [SyncTarget("p0", None)])
    assert isinstance(only_error(events), SchemaDrift)
    assert "cursor loop" in str(only_error(events))
    assert len(requests) == 4


def endless(runs: Sequence[Any]) -> Response:
    return lambda request: runs_reply(runs, str(int(request.query.get("cursor", "0")) + 1))


def test_endless_empty_pages_are_drift() -> None:
    events, requests = sync(endless([]), [SyncTarget("p0", None)])
    assert "more than 10 empty pages in a row" in str(only_error(events))
    assert len(requests) == 11


def test_ten_empty_pages_in_a_row_are_allowed_again_and_again() -> None:
    ten = [runs_reply([], f"c{n}") for n in range(10)]
    more = [runs_reply([], f"d{n}") for n in range(10)]
    answer = in_turn(*ten, runs_reply([{"id": 1}], "c"), *more, runs_reply([{"id": 2}]))
    events, requests = sync(answer, [SyncTarget("p0", None)])
    assert isinstance(fates(events)["p0"], datetime)
    assert len(requests) == 22


def test_an_endless_stream_is_cut_off() -> None:
    events, requests = sync(endless([{"id": 1}]), [SyncTarget("p0", None)], max_pages=7)
    assert isinstance(only_error(events), SchemaDrift)
    assert "no end after 7 pages" in str(only_error(events))
    assert len(requests) == len(pages(events)) == 7


# Account-wide


def account(*replies: Reply) -> Response:
    """`/runs` returns these replies in turn; requests for single pipelines return no runs."""
    at_once = in_turn(*replies)
    return lambda request: at_once(request) if request.path == "/base/runs" else runs_reply([])


def test_many_pipelines_are_read_by_one_stream_from_the_earliest_watermark() -> None:
    asked = [*targets(60), SyncTarget("last", SINCE - timedelta(minutes=20)), SyncTarget("7", SINCE)]
    first = runs_reply([{"id": 1, "pipeline_id": "p1"}, {"id": 2, "pipeline_id": 7}], "two", DATE)
    events, requests = sync(account(first, runs_reply([{"id": 3, "pipeline_id": "last"}], None, LATER)), asked)
    assert [list(page.records) for page in pages(events)] == [
        [("p1", {"id": 1, "pipeline_id": "p1"}), ("7", {"id": 2, "pipeline_id": 7})],
        [("last", {"id": 3, "pipeline_id": "last"})],
    ]
    assert fates(events) == {target.external_id: SERVER_TIME - timedelta(minutes=5) for target in asked}
    assert [(request.path, request.query["updated_since"]) for request in requests] == [
        ("/base/runs", "2026-03-01T10:40:00Z")
    ] * 2


def test_up_to_the_threshold_pipelines_are_read_one_by_one() -> None:
    _, requests = sync(account(runs_reply([])), targets(5), account_threshold=5)
    assert len(requests) == 5
    _, requests = sync(account(runs_reply([])), targets(6), account_threshold=5)
    assert len(requests) == 1


def test_records_of_other_pipelines_and_unassigned_records_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    nobody: list[Any] = [
        None,
        "x",
        {"id": 4},
        {"id": 5, "pipeline_id": ""},
        {"id": 6, "pipeline_id": True},
        {"pipeline_id": {}},
    ]
    reply = runs_reply([{"id": 1, "pipeline_id": "p1"}, {"id": 2, "pipeline_id": "sentinel"}, *nobody])
    events, _ = sync(account(reply), targets(3), account_threshold=2)
    assert [list(page.records) for page in pages(events)] == [[("p1", {"id": 1, "pipeline_id": "p1"})]]
    assert len(fates(events)) == 3
    found = [(record.levelname, record.getMessage()) for record in caplog.records if "dropped" in record.msg]
    assert found == [
        ("INFO", "connection acme: dropped 1 runs of other pipelines"),
        ("WARNING", "connection acme: dropped 6 records without a pipeline_id"),
    ]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_partner_without_the_account_wide_endpoint_is_asked_for_it_once(status: int) -> None:
    async def scene() -> tuple[list[Event], list[Event], list[str]]:
        def answer(request: Request) -> Reply:
            return status_reply(status) if request.path == "/base/runs" else runs_reply([{"id": 1}])

        async with FaultServer(answer) as server:
            feed = generic_feed(partner_http(server.base_url), account_threshold=2)
            mixed = [*targets(3), *(SyncTarget(f"new{n}", None) for n in range(3))]
            first = [event async for event in feed.sync(mixed)]
            second = [event async for event in feed.sync(mixed)]
            await feed.aclose()
            return first, second, [request.path for request in server.requests]

    first, second, paths = asyncio.run(scene())
    for events in (first, second):
        assert len(fates(events)) == 6
        assert all(isinstance(end, datetime) for end in fates(events).values())
    assert paths.count("/base/runs") == 1
    assert len(paths) == 13


def test_a_broken_account_wide_stream_fails_its_pipelines_and_does_not_count_as_unsupported() -> None:
    replies = [runs_reply([{"id": 1, "pipeline_id": "p1"}], "two"), status_reply(404)]
    events, requests = sync(account(*replies), targets(3), account_threshold=2)
    assert len(pages(events)) == 1
    assert [str(end) for end in fates(events).values()] == ["connection acme: /runs: refused (404)"] * 3
    assert len(requests) == 2


def test_new_pipelines_do_not_make_the_others_start_over() -> None:
    mixed = [*targets(3), *(SyncTarget(f"new{n}", None) for n in range(2))]
    events, requests = sync(account(runs_reply([])), mixed, account_threshold=2)
    assert len(fates(events)) == 5
    assert sorted((request.path, request.query.get("updated_since")) for request in requests if request.path) == [
        ("/base/pipelines/new0/runs", None),
        ("/base/pipelines/new1/runs", None),
        ("/base/runs", "2026-03-01T11:00:00Z"),
    ]


def test_many_new_and_many_late_pipelines_get_separate_streams() -> None:
    long_ago = SINCE - timedelta(days=9)
    mixed = [
        *targets(3),
        *(SyncTarget(f"new{n}", None) for n in range(3)),
        *(SyncTarget(f"l{n}", long_ago) for n in range(3)),
    ]
    events, requests = sync(account(runs_reply([])), mixed, account_threshold=2)
    assert len(fates(events)) == 9
    assert [(request.path, request.query.get("updated_since")) for request in requests] == [
        ("/base/runs", "2026-03-01T11:00:00Z"),
        ("/base/runs", "2026-02-20T11:00:00Z"),
        ("/base/runs", None),
    ]


def test_a_few_stragglers_do_not_delay_the_account_wide_stream() -> None:
    mixed = [
        *targets(3),
        SyncTarget("late", SINCE - timedelta(hours=1, seconds=1)),
        SyncTarget("ok", SINCE - timedelta(hours=1)),
    ]
    _, requests = sync(account(runs_reply([])), mixed, account_threshold=2)
    assert [(request.path, request.query["updated_since"]) for request in requests] == [
        ("/base/runs", "2026-03-01T10:00:00Z"),
        ("/base/pipelines/late/runs", "2026-03-01T09:59:59Z"),
    ]


# Problems of the whole partner


def test_refused_credentials_cost_one_request_for_twenty_pipelines() -> None:
    events, requests = sync(in_turn(status_reply(401)), targets(20))
    assert len(requests) == 1
    assert len(fates(events)) == 20
    assert all(isinstance(end, AuthError) for end in fates(events).values())


def test_refused_credentials_at_the_account_wide_endpoint_cost_one_request_too() -> None:
    events, requests = sync(in_turn(status_reply(403)), [*targets(60), SyncTarget("new", None)])
    assert len(requests) == 1
    assert [type(end) for end in fates(events).values()] == [AuthError] * 61


def test_credentials_that_expire_midway_stop_the_rest_and_keep_what_was_read() -> None:
    answer = in_turn(runs_reply([{"id": 1}]), runs_reply([{"id": 1}], "two"), status_reply(401))
    events, requests = sync(answer, targets(9), concurrency=1)
    ends = list(fates(events).values())
    assert isinstance(ends[0], datetime)
    assert [type(end) for end in ends[1:]] == [AuthError] * 8
    assert len(pages(events)) == 2
    assert len(requests) == 3


def test_five_failures_in_a_row_end_the_sync() -> None:
    events, requests = sync(in_turn(status_reply(500)), targets(40), concurrency=1)
    assert len(requests) == 5 * 3
    assert [type(end) for end in fates(events).values()] == [Transient] * 40
    assert len({str(end) for end in list(fates(events).values())[4:]}) == 1


def test_a_partner_that_has_moved_is_not_asked_for_every_pipeline() -> None:
    events, requests = sync(in_turn(status_reply(301, {"Location": "/new"})), targets(40), concurrency=1)
    assert len(requests) == 5
    assert [type(end) for end in fates(events).values()] == [Misconfigured] * 40


def test_missing_pipelines_do_not_end_the_sync() -> None:
    events, requests = sync(in_turn(ABSENT), targets(20), concurrency=1)
    assert len(requests) == len(fates(events)) == 20


def test_failures_with_successes_in_between_do_not_end_the_sync() -> None:
    def answer(request: Request) -> Reply:
        number = int(request.path.split("/p")[2].partition("/")[0])
        return runs_reply([]) if number % 5 == 4 else status_reply(500)

    events, _ = sync(answer, targets(30), concurrency=1)
    assert sum(isinstance(end, datetime) for end in fates(events).values()) == 6


def test_a_partner_that_asks_for_a_long_pause_gets_it() -> None:
    events, requests = sync(in_turn(status_reply(429, {"Retry-After": "900"})), targets(20))
    assert len(requests) == 1
    errors = list(fates(events).values())
    assert len(errors) == 20
    assert all(isinstance(error, RateLimited) and error.retry_after == 900.0 for error in errors)


def test_the_next_sync_tries_again() -> None:
    async def scene() -> list[Event]:
        async with FaultServer(in_turn(status_reply(401), runs_reply([]))) as server:
            feed = generic_feed(partner_http(server.base_url))
            assert isinstance(only_error([event async for event in feed.sync(targets(1))]), AuthError)
            events = [event async for event in feed.sync(targets(1))]
            await feed.aclose()
            return events

    assert isinstance(fates(asyncio.run(scene()))["p0"], datetime)


# Concurrency


def test_pipelines_are_read_concurrently_up_to_the_limit() -> None:
    async def scene() -> int:
        async with FaultServer(lambda _: runs_reply([], after=0.02)) as server:
            feed = generic_feed(partner_http(server.base_url, policy=HttpPolicy(concurrency=4)))
            assert len(fates([event async for event in feed.sync(targets(20))])) == 20
            await feed.aclose()
            return server.most_open

    assert asyncio.run(scene()) == 4


def test_a_slow_reader_slows_the_requests() -> None:
    async def scene() -> int:
        async with FaultServer(in_turn(runs_reply([{"id": 1}]))) as server:
            feed = generic_feed(partner_http(server.base_url, policy=HttpPolicy(concurrency=2)))
            async with aclosing(feed.sync(targets(40))) as events:
                await anext(events)
                await asyncio.sleep(0.2)
                asked = len(server.requests)
            await feed.aclose()
            return asked

    assert asyncio.run(scene()) <= 6


def test_a_reader_that_stops_early_cancels_open_requests() -> None:
    async def scene() -> None:
        def answer(request: Request) -> Reply:
            return runs_reply([{"id": 1}], after=0.0 if "/p0/" in request.path else 30.0)

        async with FaultServer(answer) as server:
            feed = generic_feed(partner_http(server.base_url))
            before = asyncio.all_tasks()
            async with aclosing(feed.sync(targets(40))) as events:
                await anext(events)
                await asyncio.sleep(0.1)
                assert len(server.requests) > 1
            own = {task for task in asyncio.all_tasks() - before if "_serve" not in repr(task)}
            assert own == set()
            asked = len(server.requests)
            await asyncio.sleep(0.05)
            assert len(server.requests) == asked
            await feed.aclose()

    asyncio.run(scene())


class Unprintable:
    def __str__(self) -> str:
        raise TypeError("no text")


def test_a_bug_is_raised_instead_of_hanging_the_reader() -> None:
    async def scene() -> None:
        async with FaultServer(in_turn(runs_reply([]))) as server:
            feed = generic_feed(partner_http(server.base_url))
            not_a_text: Any = Unprintable()
            with pytest.raises(TypeError):
                async with asyncio.timeout(5):
                    async for _ in feed.sync([SyncTarget(not_a_text, None)]):
                        pass
            await feed.aclose()

    asyncio.run(scene())


# Probing


def probe(answer: Response) -> tuple[Probe, list[Request]]:
    async def scene() -> tuple[Probe, list[Request]]:
        async with FaultServer(answer) as server:
            feed = generic_feed(partner_http(server.base_url, policy=HttpPolicy(deadline=1.0)))
            found = await feed.check()
            await feed.aclose()
            return found, server.requests

    return asyncio.run(scene())


def by_path(**replies: Reply) -> Response:
    return lambda request: replies.get(request.path.removeprefix("/base").strip("/") or "root", ABSENT)


@pytest.mark.parametrize(
    ("answer", "ok", "words", "requests"),
    [
        (by_path(runs=runs_reply([])), True, "reads all pipelines in one request", 1),
        (by_path(pipelines=json_reply({"pipelines": []})), True, "reads pipelines one by one", 2),
        (by_path(root=json_reply({"name": "partner"})), True, "reads pipelines one by one", 3),
        (by_path(), False, "is the path of base_url right?", 3),
        (by_path(runs=status_reply(401)), False, "credentials refused (401)", 1),
        (by_path(runs=status_reply(302, {"Location": "/login"})), False, "redirect (302)", 1),
        (by_path(runs=status_reply(400)), False, "refused (400)", 1),
        (by_path(runs=json_reply({"items": []})), False, "runs is missing or not a list", 1),
        (by_path(runs=respond(b"<p>", headers={"Content-Type": "text/html"})), False, "not JSON but text/html", 1),
        (by_path(runs=then_close(b"")), False, "broke off (closed early, or not HTTP)", 3),
        (by_path(runs=status_reply(503)), False, "connection acme: /runs: answered 503", 3),
    ],
)
def test_a_probe_reports_what_is_wrong(answer: Response, ok: bool, words: str, requests: int) -> None:
    found, asked = probe(answer)
    assert found.ok is ok
    assert words in found.detail
    assert len(asked) == requests
    assert TOKEN not in found.detail


def test_a_probe_of_an_unreachable_partner_says_so() -> None:
    async def scene() -> Probe:
        async with FaultServer(in_turn(ABSENT)) as server:
            url = server.base_url
        feed = generic_feed(partner_http(url))
        found = await feed.check()
        await feed.aclose()
        return found

    found = asyncio.run(scene())
    assert not found.ok
    assert re.fullmatch(r".*connection acme: cannot connect to 127.0.0.1:\d+ \(connection refused\)", found.detail)


# Discovery


def discovered(answer: Response) -> Any:
    async def scene() -> Any:
        async with FaultServer(answer) as server:
            feed = generic_feed(partner_http(server.base_url))
            try:
                return await feed.discover()
            except RemoteError as error:
                return error
            finally:
                await feed.aclose()

    return asyncio.run(scene())


def test_pipelines_are_listed_page_by_page() -> None:
    items = [
        {"id": "b", "name": "Bills", "type": "export", "platform": "dbt"},
        {"id": "a", "name": " ", "type": "odd", "platform": "odd"},
        {"name": "nobody"},
        "x",
        {"id": 5},
    ]
    pages = in_turn(
        json_reply({"pipelines": items, "next_cursor": "two"}),
        json_reply({"pipelines": [{"id": "c", "type": []}], "next_cursor": None}),
    )
    assert discovered(pages) == [
        SourcePipeline("5", "5", PipelineType.INGESTION),
        SourcePipeline("a", "a", PipelineType.INGESTION),
        SourcePipeline("b", "Bills", PipelineType.EXPORT, platform=Platform.DBT),
        SourcePipeline("c", "c", PipelineType.INGESTION),
    ]


def test_a_list_of_pipelines_that_never_ends_is_drift() -> None:
    assert isinstance(discovered(in_turn(json_reply({"pipelines": [], "next_cursor": "x"}))), SchemaDrift)
