"""A run that is larger than any response may be costs its own pipeline, and no other."""

import json
from urllib.parse import unquote

import pytest

from chm_dagster.errors import ResponseTooLarge
from chm_dagster.http.failures import MAX_TOO_LARGE
from chm_dagster.partners.port import PipelinesFailed, PipelinesSynced, RecordBatch
from chm_dagster_tests.http.fault_server import Reply, Request, json_reply, respond, status_reply
from chm_dagster_tests.partners.test_generic_feed import SINCE, sync, targets

LIMIT = 20_000
PIPELINES = 60


class Partner:
    """Two runs for each of 60 pipelines, in pages; the run `huge` of p7 has an error text of `size` bytes."""

    def __init__(self, size: int, *, account: bool = True, nan: bool = False) -> None:
        self._account = account
        self._runs = [
            {"id": f"{n}-{i}", "pipeline_id": f"p{n}", "status": "success"} for n in range(60) for i in (0, 1)
        ]
        self._runs[15] |= {"id": "huge", "error_message": "x" * size}
        if nan:
            self._runs[15]["duration_seconds"] = float("nan")
        self.sizes: list[int] = []

    def __call__(self, request: Request) -> Reply:
        if request.path == "/base/runs":
            if not self._account:
                return status_reply(404)
            runs = self._runs
        elif request.path == "/base/pipelines":
            return json_reply({"pipelines": [{"id": f"p{n}"} for n in range(60)], "next_cursor": None})
        else:
            external_id = unquote(request.path).split("/")[3]
            runs = [run for run in self._runs if run["pipeline_id"] == external_id]
        start, size = int(request.query.get("cursor", 0)), int(request.query["limit"])
        self.sizes.append(size)
        end = start + size
        page = {"runs": runs[start:end], "next_cursor": str(end) if end < len(runs) else None}
        return respond(json.dumps(page).encode())


def read(partner: Partner) -> tuple[set[str], dict[str, Exception], set[str]]:
    """The pipelines that were read to the end, those that failed, and the ids of all runs."""
    events, _ = sync(partner, targets(PIPELINES, SINCE), max_body_bytes=LIMIT)
    synced = {i for event in events if isinstance(event, PipelinesSynced) for i in event.external_ids}
    failed = {i: event.error for event in events if isinstance(event, PipelinesFailed) for i in event.external_ids}
    runs = {record["id"] for event in events if isinstance(event, RecordBatch) for _, record in event.records}
    return synced, dict(failed), runs


def test_too_large_a_page_is_requested_again_in_smaller_ones() -> None:
    partner = Partner(size=LIMIT - 1_000)
    synced, failed, runs = read(partner)
    assert (len(synced), failed, len(runs)) == (PIPELINES, {}, 2 * PIPELINES)
    assert {1000, 31} <= set(partner.sizes)


@pytest.mark.parametrize("account", [True, False])
def test_a_run_that_fits_into_no_response_fails_its_own_pipeline_only(account: bool) -> None:
    partner = Partner(size=LIMIT, account=account)
    synced, failed, runs = read(partner)
    assert set(failed) == {"p7"}
    assert isinstance(failed["p7"], ResponseTooLarge)
    assert str(failed["p7"]) == (
        f"connection acme: /pipelines/p7/runs: the response is larger than {LIMIT} bytes, "
        "even with the smallest page; raise http.max_body_megabytes"
    )
    assert len(synced) == PIPELINES - 1
    assert len(runs) == 2 * PIPELINES - 1
    assert "huge" not in runs


def test_a_partner_whose_responses_are_all_too_large_is_soon_left_alone() -> None:
    requests: list[str] = []

    def flood(request: Request) -> Reply:
        requests.append(request.path)
        return respond(b" " * (LIMIT + 1))

    events, _ = sync(flood, targets(PIPELINES, SINCE), max_body_bytes=LIMIT)
    failed = {i for event in events if isinstance(event, PipelinesFailed) for i in event.external_ids}
    assert len(failed) == PIPELINES
    assert len(requests) <= MAX_TOO_LARGE + 8  # those under way when the breaker opens


def test_a_record_with_nan_costs_neither_its_page_nor_its_pipeline() -> None:
    synced, failed, runs = read(Partner(size=1, nan=True))
    assert (len(synced), failed, len(runs)) == (PIPELINES, {}, 2 * PIPELINES)
