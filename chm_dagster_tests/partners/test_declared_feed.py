"""The declarative feed: plans, streams, every paginator, time ranges, lookups, and when it must stop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from chm_dagster.domain.runs import OpenRun
from chm_dagster.errors import NotAtPartner, Permanent, RemoteError, SchemaDrift, Transient
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.engine.sync import RestFeed
from chm_dagster.partners.port import PipelinesFailed, PipelinesSynced, RecordBatch, RunsNotFound, SyncTarget
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, json_reply, page_reply, status_reply
from chm_dagster_tests.http.setup import NOW, partner_http

DATE = {"Date": "Sun, 01 Mar 2026 11:58:00 GMT"}
SERVER_TIME = NOW - timedelta(minutes=2)
SINCE = NOW - timedelta(hours=1)
BASE: dict[str, Any] = {
    "title": "Acme",
    "reopens": True,
    "page_size": 3,
    "scope": {"account": True, "filter_by": "id", "any_id": "all", "account_threshold": 2, "account_threshold_full": 2},
    "streams": [{"name": "runs", "path": "/p/${id}/runs", "query": {"since": "${since}"}}],
    "runs": {
        "data_selector": "runs",
        "pipeline": ["job"],
        "id": "id",
        "status": {"selector": "state", "map": {"ok": "success", "busy": "running", "planned": "drop"}},
        "started": ["start"],
    },
}
Response = Callable[[Request], Reply]
Event = RecordBatch | PipelinesSynced | PipelinesFailed | RunsNotFound


def rest(**changes: Any) -> Rest:
    return Rest.model_validate({**BASE, **changes})


def sync(answer: Response, targets: Sequence[SyncTarget], **changes: Any) -> tuple[list[Event], list[Request]]:
    async def scene() -> tuple[list[Event], list[Request]]:
        async with FaultServer(answer) as server:
            http = partner_http(server.base_url)
            history = changes.pop("history", None)
            feed = RestFeed(rest(**changes), http, options={}, overlap=timedelta(minutes=5), history=history)
            events = [event async for event in feed.sync(targets)]
            await feed.aclose()
            return events, server.requests

    return asyncio.run(scene())


def run(number: int, job: str = "p0", **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "job": job, "state": "ok", "start": "2026-03-01T11:30:00Z", **more}


def runs(*items: Any, **more: Any) -> Reply:
    return json_reply({"runs": list(items), **more}, headers=DATE)


def targets(count: int, since: datetime | None = SINCE) -> list[SyncTarget]:
    return [SyncTarget(f"p{n}", since) for n in range(count)]


def found(events: Sequence[Event]) -> list[str]:
    return [record["id"] for event in events if isinstance(event, RecordBatch) for _, record in event.records]


def fates(events: Sequence[Event]) -> dict[str, datetime | RemoteError]:
    ends: dict[str, datetime | RemoteError] = {}
    for event in events:
        if isinstance(event, PipelinesSynced | PipelinesFailed):
            for external_id in event.external_ids:
                assert external_id not in ends
                ends[external_id] = event.synced_through if isinstance(event, PipelinesSynced) else event.error
    return ends


def error(events: Sequence[Event]) -> RemoteError:
    (end,) = {str(end): end for end in fates(events).values()}.values()
    assert isinstance(end, RemoteError), end
    return end


def asked(requests: Sequence[Request]) -> list[tuple[str, str | None]]:
    return [(request.path.removeprefix("/base"), request.query.get("since")) for request in requests]


# Plans


def test_few_pipelines_are_read_one_by_one_and_many_at_once() -> None:
    _, requests = sync(lambda _: runs(), targets(2))
    assert sorted(asked(requests)) == [("/p/p0/runs", "2026-03-01T11:00:00Z"), ("/p/p1/runs", "2026-03-01T11:00:00Z")]
    _, requests = sync(lambda _: runs(), targets(3))
    assert asked(requests) == [("/p/all/runs", "2026-03-01T11:00:00Z")]


def test_new_pipelines_and_stragglers_do_not_make_others_start_over() -> None:
    late = SINCE - timedelta(days=3)
    mixed = [*targets(3), SyncTarget("late", late), SyncTarget("new", None)]
    events, requests = sync(lambda _: runs(), mixed)
    assert sorted(asked(requests), key=str) == [
        ("/p/all/runs", "2026-03-01T11:00:00Z"),
        ("/p/late/runs", "2026-02-26T11:00:00Z"),
        ("/p/new/runs", None),
    ]
    assert len(fates(events)) == 5


def test_the_first_sync_reads_only_the_configured_history() -> None:
    _, requests = sync(lambda _: runs(), targets(1, None), history=timedelta(days=1))
    assert asked(requests) == [("/p/p0/runs", "2026-02-28T12:00:00Z")]


def test_lists_of_ids_are_split_at_the_maximum_length() -> None:
    scope = {"account": False, "filter_by": "ids", "max_ids": 2}
    streams = [{"name": "runs", "method": "POST", "path": "/runs", "body": {"ids": "${ids}"}}]
    _, requests = sync(lambda _: runs(), targets(5), scope=scope, streams=streams)
    assert sorted(len(request.json["ids"]) for request in requests) == [1, 2, 2]


def test_one_bad_id_in_a_list_fails_alone() -> None:
    scope = {"account": False, "filter_by": "ids", "max_ids": 100}
    streams = [{"name": "runs", "method": "POST", "path": "/runs", "body": {"ids": "${ids}"}}]

    def answer(request: Request) -> Reply:
        return status_reply(422) if "p5" in request.json["ids"] else runs()

    events, requests = sync(answer, targets(8), scope=scope, streams=streams)
    ends = fates(events)
    assert [i for i, end in ends.items() if isinstance(end, RemoteError)] == ["p5"]
    assert str(ends["p5"]) == "connection acme: the partner does not know pipeline 'p5' (422); check its external_id"
    assert len(requests) == 7


# Streams


TWO = [
    {"name": "active", "path": "/p/${id}/active"},
    {"name": "ended", "path": "/p/${id}/ended", "query": {"since": "${since}"}, "lookback_hours": 2},
]


def test_a_sync_reads_all_streams_and_is_dated_by_the_first_response() -> None:
    later = {"Date": "Sun, 01 Mar 2026 11:59:00 GMT"}

    def answer(request: Request) -> Reply:
        if request.path.endswith("active"):
            return runs(run(1))
        return json_reply({"runs": [run(2)]}, headers=later)

    events, requests = sync(answer, targets(1), streams=TWO)
    assert found(events) == ["r1", "r2"]
    assert asked(requests) == [("/p/p0/active", None), ("/p/p0/ended", "2026-03-01T09:00:00Z")]
    assert fates(events) == {"p0": SERVER_TIME - timedelta(minutes=5)}


def test_a_failed_stream_keeps_the_watermark_and_what_was_read() -> None:
    def answer(request: Request) -> Reply:
        return runs(run(1)) if request.path.endswith("active") else status_reply(500)

    events, _ = sync(answer, targets(1), streams=TWO)
    assert found(events) == ["r1"]
    assert isinstance(error(events), Transient)


def test_streams_can_be_limited_to_news_or_to_full_reads() -> None:
    streams = [
        {"name": "news", "path": "/news", "when": "incremental"},
        {"name": "everything", "path": "/everything", "when": "full"},
    ]
    for since, path in ((SINCE, "/news"), (None, "/everything")):
        _, requests = sync(lambda _: runs(), targets(1, since), streams=streams, scope={"filter_by": "none"})
        assert asked(requests) == [(path, None)]


def test_a_request_up_to_our_own_time_moves_the_watermark_no_further() -> None:
    ahead = {"Date": "Sun, 01 Mar 2026 12:30:00 GMT"}
    streams = [{"name": "runs", "path": "/runs", "query": {"until": "${until}"}}]
    events, _ = sync(
        lambda _: json_reply({"runs": []}, headers=ahead), targets(1), streams=streams, scope={"filter_by": "none"}
    )
    assert fates(events) == {"p0": NOW - timedelta(minutes=5)}
    events, _ = sync(lambda _: json_reply({"runs": []}, headers=ahead), targets(1))
    assert fates(events) == {"p0": NOW + timedelta(minutes=25)}


# Spans of time


def spans(requests: Sequence[Request]) -> list[tuple[str, str]]:
    return [(request.query["since"][5:16], request.query["until"][5:16]) for request in requests]


WINDOWED: dict[str, Any] = {
    "scope": {"filter_by": "none"},
    "history_days": 30,
    "streams": [
        {"name": "runs", "path": "/runs", "query": {"since": "${since}", "until": "${until}"}, "window_hours": 24}
    ],
}


def test_a_long_span_is_split_into_windows_without_gaps() -> None:
    _, requests = sync(lambda _: runs(), targets(1, NOW - timedelta(hours=60)), **WINDOWED)
    assert spans(requests) == [
        ("02-27T00:00", "02-28T00:00"),
        ("02-28T00:00", "03-01T00:00"),
        ("03-01T00:00", "03-01T12:00"),
    ]


def test_a_span_with_more_runs_than_the_partner_returns_is_halved() -> None:
    paginator = {"kind": "page", "query": {"page": "${page}"}, "total": "total", "max_results": 10}

    def answer(request: Request) -> Reply:
        whole = request.query["since"] == "2026-03-01T11:00:00Z" and request.query["until"] == "2026-03-01T12:00:00Z"
        return runs(run(1), total=11) if whole else runs(run(len(request.query["since"])), total=1)

    events, requests = sync(answer, targets(1), paginator=paginator, **WINDOWED)
    assert spans(requests) == [
        ("03-01T11:00", "03-01T12:00"),
        ("03-01T11:00", "03-01T11:30"),
        ("03-01T11:30", "03-01T12:00"),
    ]
    assert len(found(events)) == 2
    assert isinstance(fates(events)["p0"], datetime)


def test_halving_ends() -> None:
    paginator = {"kind": "page", "query": {"page": "${page}"}, "total": "total", "max_results": 10}
    events, requests = sync(lambda _: runs(run(1), total=11), targets(1), paginator=paginator, **WINDOWED)
    assert isinstance(error(events), SchemaDrift)
    assert "more of them at a time than the partner ever returns" in str(error(events))
    assert len(requests) < 10


# Pages


def pages_of(rows: Sequence[dict[str, Any]], size: int = 3) -> Callable[[int], list[dict[str, Any]]]:
    return lambda offset: list(rows[offset : offset + size])


SEVEN = [run(n, start=f"2026-03-01T11:{30 - n}:00Z", at=100.0 - n) for n in range(7)]
IDS = [row["id"] for row in SEVEN]


def by_offset(request: Request) -> Reply:
    return runs(*pages_of(SEVEN)(int(request.query["offset"])), total=7)


def by_page(request: Request) -> Reply:
    return runs(*pages_of(SEVEN)(3 * (int(request.query["page"]) - 1)), total=7)


def by_cursor(request: Request) -> Reply:
    offset = int(request.query.get("cursor") or 0)
    return runs(*pages_of(SEVEN)(offset), next=offset + 3 if offset + 3 < 7 else None)


def by_link(request: Request) -> Reply:
    offset = int(request.query.get("from", 0))
    return runs(*pages_of(SEVEN)(offset), next=f"/base/p/p0/runs?from={offset + 3}" if offset + 3 < 7 else None)


def by_link_with_slash(request: Request) -> Reply:
    offset = int(request.query.get("from", 0))
    if offset and not request.path.endswith("/runs/"):
        return status_reply(301)
    return runs(*pages_of(SEVEN)(offset), next=f"/base/p/p0/runs/?from={offset + 3}" if offset + 3 < 7 else None)


def by_header(request: Request) -> Reply:
    offset = int(request.query.get("from", 0))
    more = {"Link": f'</base/p/p0/runs?from={offset + 3}>; rel="next"'} if offset + 3 < 7 else {}
    return json_reply({"runs": pages_of(SEVEN)(offset)}, headers={**DATE, **more})


def by_key(request: Request) -> Reply:
    before = float(request.query.get("before", "inf"))
    return runs(*[row for row in SEVEN if row["at"] < before][:3])


PAGINGS: dict[str, tuple[dict[str, Any], Response, int]] = {
    "offset": ({"kind": "offset", "query": {"offset": "${offset}"}}, by_offset, 4),
    "offset with a total": ({"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"}, by_offset, 3),
    "offset whose short page ends": (
        {"kind": "offset", "query": {"offset": "${offset}"}, "short_page_ends": True},
        by_offset,
        4,
    ),
    "page": ({"kind": "page", "query": {"page": "${page}"}}, by_page, 4),
    "page with a total": ({"kind": "page", "query": {"page": "${page}"}, "total": "total"}, by_page, 3),
    "cursor": ({"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next"}, by_cursor, 3),
    "link": ({"kind": "link", "next": "next"}, by_link, 3),
    "link to a path that ends with a slash": ({"kind": "link", "next": "next"}, by_link_with_slash, 3),
    "link header": ({"kind": "link"}, by_header, 3),
    "keyset": ({"kind": "keyset", "query": {"before": "${before}"}, "field": "at", "nudge": 0.001}, by_key, 4),
}


@pytest.mark.parametrize(("paginator", "answer", "requests"), PAGINGS.values(), ids=PAGINGS)
def test_every_paginator_reads_to_the_end(paginator: dict[str, Any], answer: Response, requests: int) -> None:
    events, seen = sync(answer, targets(1), paginator=paginator)
    assert sorted(set(found(events))) == sorted(IDS)
    assert isinstance(fates(events)["p0"], datetime)
    assert len(seen) == requests


@pytest.mark.parametrize(
    ("paginator", "words"),
    [
        ({"kind": "offset", "query": {"skip": "${offset}"}}, "ignores the paginator"),
        ({"kind": "page", "query": {"skip": "${page}"}}, "ignores the paginator"),
        ({"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next"}, "cursor loop"),
        ({"kind": "link", "next": "link"}, "cursor loop"),
        ({"kind": "keyset", "query": {"before": "${before}"}, "field": "at"}, "more than 2 records share one at"),
    ],
)
def test_a_partner_that_ignores_pagination_is_drift(paginator: dict[str, Any], words: str) -> None:
    same = runs(*SEVEN[:3], next="again", link="/base/p/p0/runs?x=1")
    events, requests = sync(lambda _: same, targets(1), paginator=paginator)
    assert words in str(error(events))
    assert len(requests) <= 3


@pytest.mark.parametrize(
    ("paginator", "answer", "words"),
    [
        ({"kind": "cursor", "next": "next"}, runs(run(1)), "next is missing"),
        ({"kind": "cursor", "next": "next"}, runs(run(1), next={"a": 1}), "not a string"),
        ({"kind": "link", "next": "next"}, runs(run(1), next="https://evil.example/runs"), "leads away from base_url"),
        ({"kind": "keyset", "field": "at"}, runs(run(1), run(2), run(3)), "at is missing"),
        ({"kind": "keyset", "field": "at"}, runs(run(1, at=True), run(2, at=1), run(3, at=2)), "at is missing"),
        ({"kind": "none"}, json_reply({"items": []}), "runs is missing or not a list"),
        ({"kind": "none"}, json_reply({"runs": {}}), "runs is missing or not a list"),
    ],
)
def test_a_page_without_a_next_pointer_is_drift(paginator: dict[str, Any], answer: Reply, words: str) -> None:
    events, _ = sync(lambda _: answer, targets(1), paginator=paginator)
    assert isinstance(error(events), SchemaDrift)
    assert words in str(error(events))


def test_a_missing_cursor_or_a_flag_can_mark_the_last_page() -> None:
    paginator = {"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next", "missing_next_ends": True}
    assert found(sync(lambda _: runs(run(1)), targets(1), paginator=paginator)[0]) == ["r1"]
    flagged = {"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next", "has_more": "more"}
    events, requests = sync(lambda _: runs(run(1), next="x", more=False), targets(1), paginator=flagged)
    assert len(requests) == 1
    assert isinstance(fates(events)["p0"], datetime)


def test_a_partner_without_cursors_falls_back_to_offsets_after_one_request() -> None:
    paginator = {
        "kind": "cursor",
        "query": {"cursor": "${cursor}"},
        "first_cursor": "",
        "next": "next",
        "fallback": {"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"},
    }

    def answer(request: Request) -> Reply:
        return by_offset(request) if "offset" in request.query else runs(*SEVEN[:3], total=7)

    async def scene() -> tuple[list[Event], list[Event], list[Request]]:
        async with FaultServer(answer) as server:
            feed = RestFeed(rest(paginator=paginator), partner_http(server.base_url), options={}, overlap=timedelta(0))
            first = [event async for event in feed.sync(targets(1))]
            second = [event async for event in feed.sync(targets(1))]
            await feed.aclose()
            return first, second, server.requests

    first, second, requests = asyncio.run(scene())
    assert sorted(found(first)) == sorted(found(second)) == sorted(IDS)
    assert isinstance(fates(first)["p0"], datetime)
    assert [("cursor" in request.query) for request in requests] == [True] + [False] * 6


def test_a_page_full_of_equal_values_is_skipped_by_offset_where_supported() -> None:
    rows = [run(n, at="2026-03-01T11:00:00Z") for n in range(8)] + [run(9, at="2026-03-01T10:00:00Z")]

    def answer(request: Request) -> Reply:
        before = request.query.get("before", "9")
        offset = int(request.query.get("offset", 0))
        return runs(*[row for row in rows if row["at"] <= before][offset : offset + 3])

    paginator = {
        "kind": "keyset",
        "query": {"before": "${before}", "offset": "${offset}"},
        "field": "at",
        "short_page_ends": True,
    }
    events, requests = sync(answer, targets(1), paginator=paginator)
    assert set(found(events)) == {row["id"] for row in rows}
    assert isinstance(fates(events)["p0"], datetime)
    assert len(requests) <= 5


# Records


def test_planned_runs_and_other_items_are_left_out() -> None:
    rows = [run(1), run(2, state="planned"), run(3, kind="reset"), run(4, kind="sync")]
    events, _ = sync(lambda _: runs(*rows), targets(1), runs={**BASE["runs"], "only": {"kind": ["sync"]}})
    assert found(events) == ["r4"]
    events, _ = sync(lambda _: runs(*rows), targets(1))
    assert found(events) == ["r1", "r3", "r4"]


def test_a_run_of_another_pipeline_in_a_response_for_one_is_drift() -> None:
    events, _ = sync(lambda _: runs(run(1, job="p0"), run(2, job="other")), targets(1))
    assert "contains a run of another pipeline" in str(error(events))


def test_records_of_other_pipelines_and_unassigned_records_are_dropped_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    rows = [run(1), run(2, job="other"), {"id": "r3", "job": None}, {"id": "r4"}, "x"]
    events, _ = sync(lambda _: runs(*rows), targets(3))
    assert found(events) == ["r1"]
    messages = [record.getMessage() for record in caplog.records if "dropped" in record.msg]
    assert messages == [
        "connection acme: dropped 2 runs of other pipelines",
        "connection acme: dropped 2 records without a job",
    ]


def test_a_pipeline_can_be_identified_by_location_and_name_or_by_name() -> None:
    fields = {**BASE["runs"], "pipeline": ["${where}/${job}", "job"]}
    rows = [run(1, where="eu"), run(2, where="us"), run(3, job="p1", where="us")]
    wanted = [SyncTarget("eu/p0", SINCE), SyncTarget("p1", SINCE), SyncTarget("zzz", SINCE)]
    events, _ = sync(lambda _: runs(*rows), wanted, runs=fields)
    owners = {
        record["id"]: owner for event in events if isinstance(event, RecordBatch) for owner, record in event.records
    }
    assert owners == {"r1": "eu/p0", "r3": "p1"}


def test_an_error_in_a_200_response_is_an_error() -> None:
    errors = [{"selector": "errors", "message": ["errors.0.message"]}, {"selector": "code", "unless": ["Success"]}]
    bad = json_reply({"errors": [{"message": "bad field; token=hunter2"}], "runs": []})
    events, _ = sync(lambda _: bad, targets(1), errors=errors)
    assert isinstance(error(events), Permanent)
    assert str(error(events)) == "connection acme: the partner reports: bad field; token=***"
    events, _ = sync(lambda _: json_reply({"code": "Oops", "runs": []}), targets(1), errors=errors)
    assert str(error(events)) == "connection acme: the partner reports: an error without a text"
    events, _ = sync(lambda _: runs(code="Success", errors=[]), targets(1), errors=errors)
    assert isinstance(fates(events)["p0"], datetime)


# Unfinished runs


OPEN_PASSES = [*BASE["streams"], {"name": "unfinished", "path": "/p/${id}/unfinished", "when": "open"}]
ONE = {"path": "/p/${id}/runs/${run_id}"}


def still_open(*ids: str) -> tuple[OpenRun, ...]:
    return tuple(OpenRun(run_id, None, 0, None, None, {}) for run_id in ids)


def gone(events: Sequence[Event]) -> list[tuple[str, list[str]]]:
    return [(e.external_id, [r.external_run_id for r in e.runs]) for e in events if isinstance(e, RunsNotFound)]


def one_by_one(request: Request) -> Reply:
    if request.path.endswith("/runs"):
        return runs(run(1, state="busy"))
    if request.path.endswith("/unfinished"):
        return runs(run(2, state="busy"))
    return json_reply(run(3, state="ok"), headers=DATE) if request.path.endswith("/runs/r3") else status_reply(404)


def test_only_runs_that_no_stream_returned_are_looked_up_and_missing_ones_are_gone() -> None:
    target = SyncTarget("p0", SINCE, still_open("r1", "r2", "r3", "r4"))
    events, requests = sync(one_by_one, [target], streams=OPEN_PASSES, lookup=ONE)
    assert [path for path, _ in asked(requests)] == ["/p/p0/runs", "/p/p0/unfinished", "/p/p0/runs/r3", "/p/p0/runs/r4"]
    assert found(events) == ["r1", "r2", "r3"]
    assert gone(events) == [("p0", ["r4"])]
    assert isinstance(events[-1], PipelinesSynced)


def test_nothing_is_looked_up_if_every_run_was_returned() -> None:
    _, requests = sync(one_by_one, [SyncTarget("p0", SINCE, still_open("r1"))], streams=OPEN_PASSES, lookup=ONE)
    assert [path for path, _ in asked(requests)] == ["/p/p0/runs"]


def test_many_runs_are_looked_up_at_once_where_supported() -> None:
    lookup = {"method": "POST", "path": "/lookup", "body": {"ids": "${run_ids}"}, "max_ids": 2, "data_selector": "runs"}

    def answer(request: Request) -> Reply:
        if request.path.endswith("/lookup"):
            return runs(*[run(int(i[1:])) for i in request.json["ids"] if i != "r6"])
        return runs()

    target = SyncTarget("p0", SINCE, still_open("r5", "r6", "r7"))
    events, requests = sync(answer, [target], lookup=lookup)
    assert [request.json["ids"] for request in requests if request.json] == [["r5", "r6"], ["r7"]]
    assert found(events) == ["r5", "r7"]
    assert gone(events) == [("p0", ["r6"])]


@pytest.mark.parametrize("status", [400, 403])
def test_a_refused_lookup_says_nothing_about_the_run(status: int) -> None:
    def answer(request: Request) -> Reply:
        return runs() if request.path.endswith("/runs") else status_reply(status)

    events, _ = sync(answer, [SyncTarget("p0", SINCE, still_open("r1"))], lookup=ONE)
    assert gone(events) == []
    assert isinstance(fates(events)["p0"], datetime)


@pytest.mark.parametrize(("body", "items"), [({"run": run(1)}, "data"), (run(2), ""), ({"id": None}, "")])
def test_a_response_about_something_else_does_not_end_the_run(
    body: Any, items: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Request) -> Reply:
        return runs() if request.path.endswith("/runs") else json_reply(body)

    events, _ = sync(answer, [SyncTarget("p0", SINCE, still_open("r1"))], lookup={**ONE, "data_selector": items})
    assert gone(events) == []
    assert found(events) == []
    assert isinstance(fates(events)["p0"], datetime)
    assert "the response about one run is not about that run" in caplog.text


def test_a_transient_lookup_failure_keeps_the_watermark() -> None:
    def answer(request: Request) -> Reply:
        return runs() if request.path.endswith("/runs") else status_reply(503)

    events, _ = sync(answer, [SyncTarget("p0", SINCE, still_open("r1"))], lookup=ONE)
    assert gone(events) == []
    assert isinstance(error(events), Transient)


def test_a_run_is_not_gone_because_a_proxy_sends_a_page_instead_of_its_api() -> None:
    target = SyncTarget("p0", SINCE, still_open("r1"))
    events, _ = sync(lambda r: runs() if r.path.endswith("/runs") else page_reply(404), [target], lookup=ONE)
    assert gone(events) == []
    (end,) = [event for event in events if isinstance(event, PipelinesSynced)]
    why = "connection acme: /p/p0/runs/r1: refused (404), with a web page and not with JSON; check base_url"
    assert end.unread == {"p0": f"an unfinished run could not be read: {why}"}
    own_pages = {**ONE, "not_found": [{"status": 404, "page": True}]}
    events, _ = sync(lambda r: runs() if r.path.endswith("/runs") else page_reply(404), [target], lookup=own_pages)
    assert gone(events) == [("p0", ["r1"])]


def test_a_sync_looks_up_at_most_a_hundred_single_runs() -> None:
    target = SyncTarget("p0", SINCE, still_open(*(f"x{n}" for n in range(250))))
    events, requests = sync(lambda r: runs() if r.path.endswith("/runs") else status_reply(404), [target], lookup=ONE)
    assert len(requests) == 101
    assert len([run_id for _, ids in gone(events) for run_id in ids]) == 100


def test_the_same_run_id_in_two_pipelines_is_two_runs() -> None:
    wanted = [SyncTarget(f"p{n}", SINCE, still_open("same")) for n in range(3)]

    def answer(request: Request) -> Reply:
        if request.path.endswith("/runs"):
            return runs({**run(1, job="p1"), "id": "same"})
        return json_reply({**run(1, job="p2"), "id": "same"}) if "/p2/" in request.path else status_reply(404)

    events, _ = sync(answer, wanted, lookup=ONE)
    assert gone(events) == [("p0", ["same"])]
    owners = [owner for event in events if isinstance(event, RecordBatch) for owner, _ in event.records]
    assert owners == ["p1", "p2"]


# Lists that shift while they are read


def numbered(request: Request, rows: Sequence[dict[str, Any]]) -> Response:
    return runs(*pages_of(rows)(int(request.query["offset"])), total=len(rows))


@pytest.mark.parametrize("total", [None, "total"])
def test_a_run_that_leaves_the_list_pulls_no_other_past_the_edge_of_a_page(total: str | None) -> None:
    rows = [run(n) for n in range(9)]

    def answer(request: Request) -> Response:
        reply = numbered(request, rows)
        if request.query["offset"] == "0" and len(rows) == 9:
            del rows[0:2]
        return reply

    paginator = {"kind": "offset", "query": {"offset": "${offset}"}, "total": total}
    events, requests = sync(answer, targets(1), paginator=paginator)
    assert set(found(events)) == {f"r{n}" for n in range(9)}
    assert isinstance(fates(events)["p0"], datetime)
    assert len(requests) <= 8


def test_a_page_in_another_order_is_noticed_by_the_total_and_the_list_is_read_again() -> None:
    rows = [run(n) for n in range(8)]
    served = []

    def answer(request: Request) -> Response:
        served.append(request.query["offset"])
        first_page_is_spoiled = len(served) == 1
        return numbered(request, rows[::-1] if first_page_is_spoiled else rows)

    paginator = {"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"}
    events, _ = sync(answer, targets(1), paginator=paginator)
    assert set(found(events)) == {f"r{n}" for n in range(8)}
    assert isinstance(fates(events)["p0"], datetime)


def test_a_list_with_fewer_rows_than_its_total_keeps_the_watermark() -> None:
    rows = [run(n) for n in range(4)]

    def answer(request: Request) -> Response:
        return runs(*pages_of(rows)(int(request.query["offset"])), total=9)

    paginator = {"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"}
    events, _ = sync(answer, targets(1), paginator=paginator)
    assert isinstance(error(events), Transient)
    assert str(error(events)) == "connection acme: runs: it changes while it is read; its watermark stays"
    assert isinstance(
        fates(sync(answer, targets(1), paginator={**paginator, "total_is_exact": False})[0])["p0"], datetime
    )


def test_a_numbered_list_that_shrinks_is_read_again() -> None:
    rows = [run(n) for n in range(9)]

    def answer(request: Request) -> Response:
        page = int(request.query["page"])
        reply = runs(*pages_of(rows)(3 * (page - 1)), total=len(rows))
        if page == 1 and len(rows) == 9:
            del rows[0]
        return reply

    paginator = {"kind": "page", "query": {"page": "${page}"}, "total": "total"}
    events, _ = sync(answer, targets(1), paginator=paginator)
    assert set(found(events)) == {f"r{n}" for n in range(9)}


def test_a_run_that_joins_the_list_is_no_reason_to_read_it_again() -> None:
    rows = [run(n) for n in range(7)]

    def answer(request: Request) -> Response:
        reply = numbered(request, rows)
        rows.append(run(100 + len(rows)))
        return reply

    paginator = {"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"}
    events, requests = sync(answer, targets(1), paginator=paginator)
    assert {f"r{n}" for n in range(7)} <= set(found(events))
    assert [request.query["offset"] for request in requests].count("0") == 1


# Pipelines that the partner does not know


LISTED = {"path": "/jobs", "data_selector": "jobs", "id": "id"}


def knows(*jobs: str) -> Response:
    return json_reply({"jobs": [{"id": job} for job in jobs]})


def test_a_quiet_pipeline_that_is_not_listed_is_not_at_the_partner() -> None:
    def answer(request: Request) -> Response:
        return knows("p0", "p1") if request.path.endswith("/jobs") else runs(run(1, job="p0"))

    events, requests = sync(answer, [*targets(3), SyncTarget("new", None)], discover=LISTED)
    ends = fates(events)
    assert {i for i, end in ends.items() if isinstance(end, NotAtPartner)} == {"p2"}
    assert str(ends["p2"]) == "connection acme: the partner does not list pipeline 'p2'; check its external_id"
    assert len([request for request in requests if request.path.endswith("/jobs")]) == 1


def test_a_pipeline_with_runs_is_known_whatever_the_list_contains() -> None:
    def answer(request: Request) -> Response:
        if request.path.endswith("/jobs"):
            return knows("p1", "p2")
        return runs(run(1, job="p0"))

    events, _ = sync(answer, targets(3), discover=LISTED)
    assert not any(isinstance(end, RemoteError) for end in fates(events).values())


@pytest.mark.parametrize("reply", [status_reply(403), status_reply(500), json_reply({"x": 1})])
def test_a_list_of_pipelines_that_cannot_be_read_claims_nothing(reply: Response) -> None:
    events, _ = sync(lambda r: reply if r.path.endswith("/jobs") else runs(), targets(3), discover=LISTED)
    assert len(fates(events)) == 3
    assert not any(isinstance(end, RemoteError) for end in fates(events).values())


def test_an_id_for_which_the_partner_returns_nothing_is_looked_for_in_its_list() -> None:
    def answer(request: Request) -> Response:
        return knows("p0") if request.path.endswith("/jobs") else runs()

    scope = {**BASE["scope"], "unknown_is_empty": True}
    events, requests = sync(answer, targets(2), discover=LISTED, scope=scope)
    assert {i for i, end in fates(events).items() if isinstance(end, NotAtPartner)} == {"p1"}
    assert len(requests) == 3
    _, requests = sync(answer, targets(2), discover=LISTED)
    assert len(requests) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_the_unfinished_runs_of_an_unknown_pipeline_end_on_every_reading_path(count: int) -> None:
    def answer(request: Request) -> Response:
        if request.path.endswith("/jobs"):
            return knows("p0", "p1")
        if request.path.endswith("/all/runs"):
            return runs()
        return status_reply(404)

    wanted = [*targets(count)[:-1], SyncTarget(f"p{count + 1}", SINCE, still_open("r1"))]
    events, _ = sync(answer, wanted, discover=LISTED)
    assert gone(events) == [(f"p{count + 1}", ["r1"])]
    assert isinstance(fates(events)[f"p{count + 1}"], NotAtPartner)


# Runs that make a pipeline fail


@pytest.mark.parametrize("looks", [True, False])
def test_a_failing_run_is_looked_up_whatever_its_age(looks: bool) -> None:
    def answer(request: Request) -> Response:
        if request.path.endswith("/runs"):
            return runs()
        return json_reply(run(3)) if request.path.endswith("/r3") else status_reply(404)

    target = SyncTarget("p0", SINCE, failing_runs=("r3", "r4"))
    events, requests = sync(answer, [target], lookup={**ONE, "failing": looks})
    assert found(events) == (["r3"] if looks else [])
    assert gone(events) == [], "a finished run keeps its outcome, deleted or not"
    assert len(requests) == (3 if looks else 1)


def test_a_stream_reaches_the_oldest_unfinished_run_where_none_can_be_looked_up() -> None:
    started = SINCE - timedelta(days=2)
    open_run = OpenRun("r1", started, 0, None, None, {})
    streams = [{**BASE["streams"][0], "reaches_open_runs": True}]
    _, requests = sync(lambda _: runs(), [SyncTarget("p0", SINCE, (open_run,))], streams=streams)
    assert asked(requests) == [("/p/p0/runs", "2026-02-27T11:00:00Z")]


# Errors


@pytest.mark.parametrize("problem", ["token expired", {"message": "token expired"}])
def test_an_error_beside_an_empty_list_is_an_error(problem: Any) -> None:
    events, _ = sync(lambda _: runs(error=problem), targets(1))
    assert str(error(events)) == "connection acme: the partner reports: token expired"
    events, _ = sync(lambda _: runs(run(1), error="a warning"), targets(1))
    assert isinstance(fates(events)["p0"], datetime)


def test_a_run_is_gone_only_if_status_and_text_say_so() -> None:
    bodies = {"r1": {"code": "X", "why": "Run 1 does not exist."}, "r2": {"code": "X", "why": "bad token"}, "r3": {}}

    def answer(request: Request) -> Response:
        if request.path.endswith("/runs"):
            return runs()
        return json_reply(bodies[request.path.rpartition("/")[2]], 400)

    lookup = {**ONE, "not_found": [{"status": 400, "selector": "why", "contains": "does not exist"}]}
    events, _ = sync(answer, [SyncTarget("p0", SINCE, still_open("r1", "r2", "r3"))], lookup=lookup)
    assert gone(events) == [("p0", ["r1"])]


def test_null_in_place_of_a_list_is_empty_only_where_that_is_said() -> None:
    empty = json_reply({"runs": None}, headers=DATE)
    events, _ = sync(lambda _: empty, targets(1), runs={**BASE["runs"], "missing_data_is_empty": True})
    assert isinstance(fates(events)["p0"], datetime)
    events, _ = sync(lambda _: empty, targets(1))
    assert isinstance(error(events), SchemaDrift)


def test_an_id_may_be_several_segments_of_a_path() -> None:
    streams = [{"name": "runs", "path": "/job/${id:path}/runs"}]
    _, requests = sync(lambda _: runs(), [SyncTarget("team/job/load?", SINCE)], streams=streams)
    assert [request.path for request in requests] == ["/base/job/team/job/load%3F/runs"]


# Other forms of lists


def test_a_cursor_may_be_in_a_header() -> None:
    def answer(request: Request) -> Reply:
        offset = int(request.query.get("cursor", 0))
        more = {"X-Next": str(offset + 3)} if offset + 3 < 7 else {}
        return json_reply({"runs": pages_of(SEVEN)(offset)}, headers={**DATE, **more})

    paginator = {"kind": "cursor", "query": {"cursor": "${cursor}"}, "next_header": "x-next"}
    events, requests = sync(answer, targets(1), paginator=paginator)
    assert found(events) == IDS
    assert len(requests) == 3


def test_runs_may_be_nested_in_the_items_of_a_list() -> None:
    items = [{"job": "p0", "runs": [run(1), run(2)]}, {"job": "p1", "runs": []}, {"job": "p2", "runs": [{"id": "r3"}]}]
    bare = [{**item, "runs": [{k: v for k, v in r.items() if k != "job"} for r in item["runs"]]} for item in items]
    shape = {**BASE["runs"], "data_selector": "jobs", "each": "runs"}
    events, _ = sync(lambda _: json_reply({"jobs": bare}, headers=DATE), targets(3), runs=shape)
    owners = [(owner, r["id"]) for e in events if isinstance(e, RecordBatch) for owner, r in e.records]
    assert owners == [("p0", "r1"), ("p0", "r2"), ("p2", "r3")]


def test_a_list_without_a_filter_is_read_from_the_newest_run_to_the_watermark() -> None:
    rows = [run(n, start=(NOW - timedelta(minutes=25 * n)).isoformat()) for n in range(12)]

    def answer(request: Request) -> Reply:
        return runs(*pages_of(rows)(int(request.query["offset"])))

    paginator = {"kind": "offset", "query": {"offset": "${offset}"}}
    streams = [{"name": "runs", "path": "/p/${id}/runs", "newest_first": "start"}]
    events, requests = sync(answer, targets(1), paginator=paginator, streams=streams)
    assert {"r0", "r1", "r2"} <= set(found(events))
    assert len(requests) == 2
    assert isinstance(fates(events)["p0"], datetime)
    events, _ = sync(answer, targets(1, None), paginator=paginator, streams=streams)
    assert len(set(found(events))) == 12
