"""The declarative feed: plans, passes, pages of every kind, spans of time, look-ups, and where it must stop."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from chm_dagster.domain.runs import OpenRun
from chm_dagster.errors import PartnerError, Permanent, SchemaDrift, Transient
from chm_dagster.partners.declared.feed import RestFeed
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.port import Done, Failed, Gone, Page, Target
from chm_dagster_tests.partners.fault_server import FaultServer, Reply, Request, json_reply, status_reply
from chm_dagster_tests.partners.http_setup import NOW, partner_http

DATE = {"Date": "Sun, 01 Mar 2026 11:58:00 GMT"}
SERVER_TIME = NOW - timedelta(minutes=2)
SINCE = NOW - timedelta(hours=1)
BASE: dict[str, Any] = {
    "title": "Acme",
    "reopens": True,
    "page_size": 3,
    "scope": {"account": True, "narrow": "one", "everything": "all", "account_from": 2, "account_from_new": 2},
    "passes": [{"name": "runs", "path": "/p/${id}/runs", "query": {"since": "${since}"}}],
    "runs": {
        "items": "runs",
        "pipeline": ["job"],
        "id": "id",
        "status": {"word": "state", "map": {"ok": "success", "busy": "running", "planned": "drop"}},
        "started": ["start"],
    },
}
Answer = Callable[[Request], Reply]
Event = Page | Done | Failed | Gone


def rest(**changes: Any) -> Rest:
    return Rest.model_validate({**BASE, **changes})


def sweep(answer: Answer, targets: Sequence[Target], **changes: Any) -> tuple[list[Event], list[Request]]:
    async def scene() -> tuple[list[Event], list[Request]]:
        async with FaultServer(answer) as server:
            http = partner_http(server.base_url)
            history = changes.pop("history", None)
            feed = RestFeed(rest(**changes), http, options={}, overlap=timedelta(minutes=5), history=history)
            events = [event async for event in feed.sweep(targets)]
            await feed.aclose()
            return events, server.requests

    return asyncio.run(scene())


def run(number: int, job: str = "p0", **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "job": job, "state": "ok", "start": "2026-03-01T11:30:00Z", **more}


def runs(*items: Any, **more: Any) -> Reply:
    return json_reply({"runs": list(items), **more}, headers=DATE)


def targets(count: int, since: datetime | None = SINCE) -> list[Target]:
    return [Target(f"p{n}", since) for n in range(count)]


def found(events: Sequence[Event]) -> list[str]:
    return [record["id"] for event in events if isinstance(event, Page) for _, record in event.records]


def fates(events: Sequence[Event]) -> dict[str, datetime | PartnerError]:
    ends: dict[str, datetime | PartnerError] = {}
    for event in events:
        if isinstance(event, Done | Failed):
            for external_id in event.external_ids:
                assert external_id not in ends
                ends[external_id] = event.synced_through if isinstance(event, Done) else event.error
    return ends


def error(events: Sequence[Event]) -> PartnerError:
    (end,) = {str(end): end for end in fates(events).values()}.values()
    assert isinstance(end, PartnerError), end
    return end


def asked(requests: Sequence[Request]) -> list[tuple[str, str | None]]:
    return [(request.path.removeprefix("/base"), request.query.get("since")) for request in requests]


# Plans


def test_few_pipelines_are_read_one_by_one_and_many_at_once() -> None:
    _, requests = sweep(lambda _: runs(), targets(2))
    assert sorted(asked(requests)) == [("/p/p0/runs", "2026-03-01T11:00:00Z"), ("/p/p1/runs", "2026-03-01T11:00:00Z")]
    _, requests = sweep(lambda _: runs(), targets(3))
    assert asked(requests) == [("/p/all/runs", "2026-03-01T11:00:00Z")]


def test_new_pipelines_and_stragglers_do_not_make_the_others_start_over() -> None:
    late = SINCE - timedelta(days=3)
    mixed = [*targets(3), Target("late", late), Target("new", None)]
    events, requests = sweep(lambda _: runs(), mixed)
    assert sorted(asked(requests), key=str) == [
        ("/p/all/runs", "2026-03-01T11:00:00Z"),
        ("/p/late/runs", "2026-02-26T11:00:00Z"),
        ("/p/new/runs", None),
    ]
    assert len(fates(events)) == 5


def test_the_first_sweep_reaches_back_by_the_history_only() -> None:
    _, requests = sweep(lambda _: runs(), targets(1, None), history=timedelta(days=1))
    assert asked(requests) == [("/p/p0/runs", "2026-02-28T12:00:00Z")]


def test_lists_of_ids_are_cut_to_the_longest_that_is_allowed() -> None:
    scope = {"account": False, "narrow": "many", "max_ids": 2}
    passes = [{"name": "runs", "method": "POST", "path": "/runs", "body": {"ids": "${ids}"}}]
    _, requests = sweep(lambda _: runs(), targets(5), scope=scope, passes=passes)
    assert sorted(len(request.json["ids"]) for request in requests) == [1, 2, 2]


def test_one_bad_id_in_a_list_fails_alone() -> None:
    scope = {"account": False, "narrow": "many", "max_ids": 100}
    passes = [{"name": "runs", "method": "POST", "path": "/runs", "body": {"ids": "${ids}"}}]

    def answer(request: Request) -> Reply:
        return status_reply(422) if "p5" in request.json["ids"] else runs()

    events, requests = sweep(answer, targets(8), scope=scope, passes=passes)
    ends = fates(events)
    assert [i for i, end in ends.items() if isinstance(end, PartnerError)] == ["p5"]
    assert str(ends["p5"]) == "connection acme: the partner does not know pipeline 'p5' (422); check its external_id"
    assert len(requests) == 7


# Passes


TWO = [
    {"name": "active", "path": "/p/${id}/active"},
    {"name": "ended", "path": "/p/${id}/ended", "query": {"since": "${since}"}, "lookback_hours": 2},
]


def test_all_passes_make_one_sweep_and_the_first_answer_dates_it() -> None:
    later = {"Date": "Sun, 01 Mar 2026 11:59:00 GMT"}

    def answer(request: Request) -> Reply:
        if request.path.endswith("active"):
            return runs(run(1))
        return json_reply({"runs": [run(2)]}, headers=later)

    events, requests = sweep(answer, targets(1), passes=TWO)
    assert found(events) == ["r1", "r2"]
    assert asked(requests) == [("/p/p0/active", None), ("/p/p0/ended", "2026-03-01T09:00:00Z")]
    assert fates(events) == {"p0": SERVER_TIME - timedelta(minutes=5)}


def test_a_pass_that_fails_keeps_the_watermark_and_what_was_read() -> None:
    def answer(request: Request) -> Reply:
        return runs(run(1)) if request.path.endswith("active") else status_reply(500)

    events, _ = sweep(answer, targets(1), passes=TWO)
    assert found(events) == ["r1"]
    assert isinstance(error(events), Transient)


def test_passes_may_be_for_news_or_for_everything_alone() -> None:
    passes = [
        {"name": "news", "path": "/news", "when": "news"},
        {"name": "everything", "path": "/everything", "when": "everything"},
    ]
    for since, path in ((SINCE, "/news"), (None, "/everything")):
        _, requests = sweep(lambda _: runs(), targets(1, since), passes=passes, scope={"narrow": "none"})
        assert asked(requests) == [(path, None)]


def test_what_was_asked_for_up_to_our_own_time_is_not_known_beyond_it() -> None:
    ahead = {"Date": "Sun, 01 Mar 2026 12:30:00 GMT"}
    passes = [{"name": "runs", "path": "/runs", "query": {"until": "${until}"}}]
    events, _ = sweep(
        lambda _: json_reply({"runs": []}, headers=ahead), targets(1), passes=passes, scope={"narrow": "none"}
    )
    assert fates(events) == {"p0": NOW - timedelta(minutes=5)}
    events, _ = sweep(lambda _: json_reply({"runs": []}, headers=ahead), targets(1))
    assert fates(events) == {"p0": NOW + timedelta(minutes=25)}


# Spans of time


def spans(requests: Sequence[Request]) -> list[tuple[str, str]]:
    return [(request.query["since"][5:16], request.query["until"][5:16]) for request in requests]


WINDOWED: dict[str, Any] = {
    "scope": {"narrow": "none"},
    "history_days": 30,
    "passes": [
        {"name": "runs", "path": "/runs", "query": {"since": "${since}", "until": "${until}"}, "window_hours": 24}
    ],
}


def test_a_long_span_is_cut_into_windows_without_a_gap() -> None:
    _, requests = sweep(lambda _: runs(), targets(1, NOW - timedelta(hours=60)), **WINDOWED)
    assert spans(requests) == [
        ("02-27T00:00", "02-28T00:00"),
        ("02-28T00:00", "03-01T00:00"),
        ("03-01T00:00", "03-01T12:00"),
    ]


def test_a_span_with_more_runs_than_the_partner_gives_is_halved() -> None:
    paging = {"kind": "page", "query": {"page": "${page}"}, "total": "total", "most": 10}

    def answer(request: Request) -> Reply:
        whole = request.query["since"] == "2026-03-01T11:00:00Z" and request.query["until"] == "2026-03-01T12:00:00Z"
        return runs(run(1), total=11) if whole else runs(run(len(request.query["since"])), total=1)

    events, requests = sweep(answer, targets(1), paging=paging, **WINDOWED)
    assert spans(requests) == [
        ("03-01T11:00", "03-01T12:00"),
        ("03-01T11:00", "03-01T11:30"),
        ("03-01T11:30", "03-01T12:00"),
    ]
    assert len(found(events)) == 2
    assert isinstance(fates(events)["p0"], datetime)


def test_halving_ends() -> None:
    paging = {"kind": "page", "query": {"page": "${page}"}, "total": "total", "most": 10}
    events, requests = sweep(lambda _: runs(run(1), total=11), targets(1), paging=paging, **WINDOWED)
    assert isinstance(error(events), SchemaDrift)
    assert "more of them at a time than the partner ever gives" in str(error(events))
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


PAGINGS: dict[str, tuple[dict[str, Any], Answer, int]] = {
    "offset": ({"kind": "offset", "query": {"offset": "${offset}"}}, by_offset, 4),
    "offset with a total": ({"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"}, by_offset, 3),
    "offset whose short page ends": (
        {"kind": "offset", "query": {"offset": "${offset}"}, "short_page_ends": True},
        by_offset,
        3,
    ),
    "page": ({"kind": "page", "query": {"page": "${page}"}}, by_page, 4),
    "page with a total": ({"kind": "page", "query": {"page": "${page}"}, "total": "total"}, by_page, 3),
    "cursor": ({"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next"}, by_cursor, 3),
    "link": ({"kind": "link", "next": "next"}, by_link, 3),
    "link to a path that ends with a slash": ({"kind": "link", "next": "next"}, by_link_with_slash, 3),
    "link header": ({"kind": "link"}, by_header, 3),
    "keyset": ({"kind": "keyset", "query": {"before": "${before}"}, "field": "at", "nudge": 0.001}, by_key, 4),
}


@pytest.mark.parametrize(("paging", "answer", "requests"), PAGINGS.values(), ids=PAGINGS)
def test_every_kind_of_pages_is_read_to_its_end(paging: dict[str, Any], answer: Answer, requests: int) -> None:
    events, seen = sweep(answer, targets(1), paging=paging)
    assert sorted(set(found(events))) == sorted(IDS)
    assert isinstance(fates(events)["p0"], datetime)
    assert len(seen) == requests


@pytest.mark.parametrize(
    ("paging", "words"),
    [
        ({"kind": "offset", "query": {"skip": "${offset}"}}, "ignores the paging"),
        ({"kind": "page", "query": {"skip": "${page}"}}, "ignores the paging"),
        ({"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next"}, "cursor loop"),
        ({"kind": "link", "next": "link"}, "cursor loop"),
        ({"kind": "keyset", "query": {"before": "${before}"}, "field": "at"}, "more than 2 records share one at"),
    ],
)
def test_a_partner_that_ignores_the_paging_is_drift(paging: dict[str, Any], words: str) -> None:
    same = runs(*SEVEN[:3], next="again", link="/base/p/p0/runs?x=1")
    events, requests = sweep(lambda _: same, targets(1), paging=paging)
    assert words in str(error(events))
    assert len(requests) <= 3


@pytest.mark.parametrize(
    ("paging", "answer", "words"),
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
def test_a_page_that_does_not_say_how_to_go_on_is_drift(paging: dict[str, Any], answer: Reply, words: str) -> None:
    events, _ = sweep(lambda _: answer, targets(1), paging=paging)
    assert isinstance(error(events), SchemaDrift)
    assert words in str(error(events))


def test_a_missing_cursor_may_mean_the_last_page_and_a_flag_may_say_so() -> None:
    paging = {"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next", "missing_ends": True}
    assert found(sweep(lambda _: runs(run(1)), targets(1), paging=paging)[0]) == ["r1"]
    flagged = {"kind": "cursor", "query": {"cursor": "${cursor}"}, "next": "next", "more": "more"}
    events, requests = sweep(lambda _: runs(run(1), next="x", more=False), targets(1), paging=flagged)
    assert len(requests) == 1
    assert isinstance(fates(events)["p0"], datetime)


def test_a_partner_without_cursors_is_paged_the_older_way_and_asked_for_one_only_once() -> None:
    paging = {
        "kind": "cursor",
        "query": {"cursor": "${cursor}"},
        "first_cursor": "",
        "next": "next",
        "otherwise": {"kind": "offset", "query": {"offset": "${offset}"}, "total": "total"},
    }

    def answer(request: Request) -> Reply:
        return by_offset(request) if "offset" in request.query else runs(*SEVEN[:3], total=7)

    async def scene() -> tuple[list[Event], list[Event], list[Request]]:
        async with FaultServer(answer) as server:
            feed = RestFeed(rest(paging=paging), partner_http(server.base_url), options={}, overlap=timedelta(0))
            first = [event async for event in feed.sweep(targets(1))]
            second = [event async for event in feed.sweep(targets(1))]
            await feed.aclose()
            return first, second, server.requests

    first, second, requests = asyncio.run(scene())
    assert sorted(found(first)) == sorted(found(second)) == sorted(IDS)
    assert isinstance(fates(first)["p0"], datetime)
    assert [("cursor" in request.query) for request in requests] == [True] + [False] * 6


def test_a_page_full_of_one_value_is_got_over_by_counting_where_the_partner_can_skip() -> None:
    rows = [run(n, at="2026-03-01T11:00:00Z") for n in range(8)] + [run(9, at="2026-03-01T10:00:00Z")]

    def answer(request: Request) -> Reply:
        before = request.query.get("before", "9")
        offset = int(request.query.get("offset", 0))
        return runs(*[row for row in rows if row["at"] <= before][offset : offset + 3])

    paging = {
        "kind": "keyset",
        "query": {"before": "${before}", "offset": "${offset}"},
        "field": "at",
        "short_page_ends": True,
    }
    events, requests = sweep(answer, targets(1), paging=paging)
    assert set(found(events)) == {row["id"] for row in rows}
    assert isinstance(fates(events)["p0"], datetime)
    assert len(requests) <= 5


# Records


def test_what_is_planned_or_something_else_is_left_out() -> None:
    rows = [run(1), run(2, state="planned"), run(3, kind="reset"), run(4, kind="sync")]
    events, _ = sweep(lambda _: runs(*rows), targets(1), runs={**BASE["runs"], "only": {"kind": ["sync"]}})
    assert found(events) == ["r4"]
    events, _ = sweep(lambda _: runs(*rows), targets(1))
    assert found(events) == ["r1", "r3", "r4"]


def test_a_run_of_another_pipeline_in_an_answer_for_one_is_drift() -> None:
    events, _ = sweep(lambda _: runs(run(1, job="p0"), run(2, job="other")), targets(1))
    assert "holds a run of another pipeline" in str(error(events))


def test_runs_of_others_and_of_nobody_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows = [run(1), run(2, job="other"), {"id": "r3", "job": None}, {"id": "r4"}, "x"]
    events, _ = sweep(lambda _: runs(*rows), targets(3))
    assert found(events) == ["r1"]
    messages = [record.getMessage() for record in caplog.records if "dropped" in record.msg]
    assert messages == [
        "connection acme: dropped 2 runs of pipelines outside this pass",
        "connection acme: dropped 2 records without a job",
    ]


def test_a_pipeline_may_go_by_its_place_and_name_or_by_its_name() -> None:
    fields = {**BASE["runs"], "pipeline": ["${where}/${job}", "job"]}
    rows = [run(1, where="eu"), run(2, where="us"), run(3, job="p1", where="us")]
    wanted = [Target("eu/p0", SINCE), Target("p1", SINCE), Target("zzz", SINCE)]
    events, _ = sweep(lambda _: runs(*rows), wanted, runs=fields)
    owners = {record["id"]: owner for event in events if isinstance(event, Page) for owner, record in event.records}
    assert owners == {"r1": "eu/p0", "r3": "p1"}


def test_an_error_in_the_clothes_of_a_success_is_one() -> None:
    errors = [{"path": "errors", "message": ["errors.0.message"]}, {"path": "code", "unless": ["Success"]}]
    bad = json_reply({"errors": [{"message": "bad field; token=hunter2"}], "runs": []})
    events, _ = sweep(lambda _: bad, targets(1), errors=errors)
    assert isinstance(error(events), Permanent)
    assert str(error(events)) == "connection acme: the partner says: bad field; token=***"
    events, _ = sweep(lambda _: json_reply({"code": "Oops", "runs": []}), targets(1), errors=errors)
    assert str(error(events)) == "connection acme: the partner says: an error without a text"
    events, _ = sweep(lambda _: runs(code="Success", errors=[]), targets(1), errors=errors)
    assert isinstance(fates(events)["p0"], datetime)


# Unfinished runs


OPEN_PASSES = [*BASE["passes"], {"name": "unfinished", "path": "/p/${id}/unfinished", "when": "open"}]
ONE = {"path": "/p/${id}/runs/${run_id}"}


def still_open(*ids: str) -> tuple[OpenRun, ...]:
    return tuple(OpenRun(run_id, None, 0, None, None, {}) for run_id in ids)


def gone(events: Sequence[Event]) -> list[tuple[str, list[str]]]:
    return [(e.external_id, [r.external_run_id for r in e.runs]) for e in events if isinstance(e, Gone)]


def one_by_one(request: Request) -> Reply:
    if request.path.endswith("/runs"):
        return runs(run(1, state="busy"))
    if request.path.endswith("/unfinished"):
        return runs(run(2, state="busy"))
    return json_reply(run(3, state="ok"), headers=DATE) if request.path.endswith("/runs/r3") else status_reply(404)


def test_only_runs_that_no_pass_has_met_are_asked_for_and_the_missing_ones_are_gone() -> None:
    target = Target("p0", SINCE, still_open("r1", "r2", "r3", "r4"))
    events, requests = sweep(one_by_one, [target], passes=OPEN_PASSES, lookup=ONE)
    assert [path for path, _ in asked(requests)] == ["/p/p0/runs", "/p/p0/unfinished", "/p/p0/runs/r3", "/p/p0/runs/r4"]
    assert found(events) == ["r1", "r2", "r3"]
    assert gone(events) == [("p0", ["r4"])]
    assert isinstance(events[-1], Done)


def test_nothing_is_asked_for_where_every_run_was_met() -> None:
    _, requests = sweep(one_by_one, [Target("p0", SINCE, still_open("r1"))], passes=OPEN_PASSES, lookup=ONE)
    assert [path for path, _ in asked(requests)] == ["/p/p0/runs"]


def test_many_runs_are_asked_for_at_once_where_the_partner_can() -> None:
    lookup = {"method": "POST", "path": "/lookup", "body": {"ids": "${run_ids}"}, "at_once": 2, "items": "runs"}

    def answer(request: Request) -> Reply:
        if request.path.endswith("/lookup"):
            return runs(*[run(int(i[1:])) for i in request.json["ids"] if i != "r6"])
        return runs()

    target = Target("p0", SINCE, still_open("r5", "r6", "r7"))
    events, requests = sweep(answer, [target], lookup=lookup)
    assert [request.json["ids"] for request in requests if request.json] == [["r5", "r6"], ["r7"]]
    assert found(events) == ["r5", "r7"]
    assert gone(events) == [("p0", ["r6"])]


@pytest.mark.parametrize("status", [400, 403])
def test_a_look_up_that_is_refused_says_nothing_about_the_run(status: int) -> None:
    def answer(request: Request) -> Reply:
        return runs() if request.path.endswith("/runs") else status_reply(status)

    events, _ = sweep(answer, [Target("p0", SINCE, still_open("r1"))], lookup=ONE)
    assert gone(events) == []
    assert isinstance(fates(events)["p0"], datetime)


@pytest.mark.parametrize(("body", "items"), [({"run": run(1)}, "data"), (run(2), ""), ({"id": None}, "")])
def test_an_answer_that_is_not_about_the_run_does_not_end_it(
    body: Any, items: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(request: Request) -> Reply:
        return runs() if request.path.endswith("/runs") else json_reply(body)

    events, _ = sweep(answer, [Target("p0", SINCE, still_open("r1"))], lookup={**ONE, "items": items})
    assert gone(events) == []
    assert found(events) == []
    assert isinstance(fates(events)["p0"], datetime)
    assert "the answer about one run is not about that run" in caplog.text


def test_a_look_up_that_fails_for_now_keeps_the_watermark() -> None:
    def answer(request: Request) -> Reply:
        return runs() if request.path.endswith("/runs") else status_reply(503)

    events, _ = sweep(answer, [Target("p0", SINCE, still_open("r1"))], lookup=ONE)
    assert gone(events) == []
    assert isinstance(error(events), Transient)


def test_a_sweep_asks_for_a_hundred_single_runs_at_most() -> None:
    target = Target("p0", SINCE, still_open(*(f"x{n}" for n in range(250))))
    events, requests = sweep(lambda r: runs() if r.path.endswith("/runs") else status_reply(404), [target], lookup=ONE)
    assert len(requests) == 101
    assert len([run_id for _, ids in gone(events) for run_id in ids]) == 100


def test_the_same_run_id_in_two_pipelines_is_two_runs() -> None:
    wanted = [Target(f"p{n}", SINCE, still_open("same")) for n in range(3)]

    def answer(request: Request) -> Reply:
        if request.path.endswith("/runs"):
            return runs({**run(1, job="p1"), "id": "same"})
        return json_reply({**run(1, job="p2"), "id": "same"}) if "/p2/" in request.path else status_reply(404)

    events, _ = sweep(answer, wanted, lookup=ONE)
    assert gone(events) == [("p0", ["same"])]
    owners = [owner for event in events if isinstance(event, Page) for owner, _ in event.records]
    assert owners == ["p1", "p2"]
