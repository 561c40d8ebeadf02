"""Waiting: Retry-After in both forms, jitter, the retry budget, the limit on concurrency."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from chm_dagster.errors import AuthError, RateLimited, RemoteError, ResponseTooLarge, Transient
from chm_dagster.http.client import HttpClient, HttpPolicy
from chm_dagster.http.failures import CircuitBreaker, RetryBudget, full_jitter, retry_after_seconds
from chm_dagster_tests.http.fault_server import FaultServer, Reply, in_turn, json_reply, silence, status_reply
from chm_dagster_tests.http.setup import NOW, Slept, partner_http

GOOD = json_reply({"runs": []})


def slept_before_success(*replies: Reply) -> list[float]:
    async def scene() -> list[float]:
        slept = Slept()
        async with (
            FaultServer(in_turn(*replies, GOOD)) as server,
            partner_http(server.base_url, slept=slept, random=lambda: 0.5) as http,
        ):
            await http.get_json(["runs"])
        return slept.seconds

    return asyncio.run(scene())


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_in_seconds_is_honoured_with_jitter_on_top(status: int) -> None:
    assert slept_before_success(status_reply(status, {"Retry-After": "2"})) == [2.25]


def test_a_retry_after_date_is_relative_to_the_servers_clock() -> None:
    skewed = {"Date": "Sun, 01 Mar 2026 07:00:00 GMT", "Retry-After": "Sun, 01 Mar 2026 07:00:05 GMT"}
    assert slept_before_success(status_reply(429, skewed)) == [5.25]


def test_without_a_usable_retry_after_the_own_backoff_is_used() -> None:
    assert slept_before_success(status_reply(429), status_reply(429, {"Retry-After": "soon"})) == [0.25, 0.5]


def test_a_retry_after_on_another_status_is_ignored() -> None:
    assert slept_before_success(status_reply(500, {"Retry-After": "30"})) == [0.25]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 5_000, 86_400.0),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1e9", None),
        ("2.5", None),
        ("\u0663", None),
        ("1 Jan 99999 00:00:00 GMT", None),
        ("Sun, 99 Mar 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_clamped(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, server_time=None, now=NOW) == seconds


def test_a_zoneless_server_time_does_not_break_the_reading() -> None:
    zoneless = "Sun, 01 Mar 2026 12:00:30 -0000"
    assert retry_after_seconds(zoneless, server_time=NOW - timedelta(seconds=30), now=datetime.now(UTC)) == 60.0


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_that_is_too_long_is_raised_instead_of_waiting(status: int) -> None:
    async def scene() -> None:
        slept = Slept()
        async with (
            FaultServer(in_turn(status_reply(status, {"Retry-After": "3600"}))) as server,
            partner_http(server.base_url, slept=slept) as http,
        ):
            with pytest.raises(RateLimited, match=f"answered {status}, asks to wait for 3600 s") as caught:
                await http.get_json(["runs"])
            assert caught.value.retry_after == 3600.0
            assert slept.seconds == []
            assert len(server.requests) == 1

    asyncio.run(scene())


def test_a_429_at_every_attempt_is_rate_limited() -> None:
    async def scene() -> None:
        async with FaultServer(in_turn(status_reply(429))) as server, partner_http(server.base_url) as http:
            with pytest.raises(RateLimited) as caught:
                await http.get_json(["runs"])
            assert caught.value.retry_after is None
            assert len(server.requests) == 3

    asyncio.run(scene())


def test_refused_credentials_are_not_retried() -> None:
    async def scene(status: int) -> None:
        async with FaultServer(in_turn(status_reply(status))) as server, partner_http(server.base_url) as http:
            with pytest.raises(AuthError) as caught:
                await http.get_json(["runs"])
            assert str(caught.value) == (
                f"connection acme: credentials refused ({status}); set the variable that holds its token"
            )
            assert len(server.requests) == 1

    for status in (401, 403):
        asyncio.run(scene(status))


def test_jitter_is_uniform_up_to_a_doubling_and_capped_bound() -> None:
    bounds = [full_jitter(retry, base=0.5, cap=20.0, random=lambda: 1.0) for retry in range(1, 9)]
    assert bounds == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    assert full_jitter(3, base=0.5, cap=20.0, random=lambda: 0.0) == 0.0


def test_an_empty_budget_ends_the_retries_and_success_refills_it() -> None:
    budget = RetryBudget(6)
    assert budget.spend(5)
    assert not budget.spend(5)
    for _ in range(4):
        budget.earn()
    assert budget.spend(5)
    for _ in range(100):
        budget.earn()
    assert budget.spend(6)
    assert not budget.spend(1)


@pytest.mark.parametrize(("reply", "deadline", "retries"), [(status_reply(500), 30.0, 2 + 2), (silence(), 0.05, 2)])
def test_a_permanent_failure_uses_up_the_budget_and_timeouts_cost_more(
    reply: Reply, deadline: float, retries: int
) -> None:
    async def scene() -> int:
        slept = Slept()
        policy = HttpPolicy(retry_tokens=20, deadline=deadline)
        async with (
            FaultServer(in_turn(reply)) as server,
            partner_http(server.base_url, policy=policy, slept=slept) as http,
        ):
            for _ in range(4):
                with pytest.raises(Transient):
                    await http.get_json(["runs"])
        return len(slept.seconds)

    assert asyncio.run(scene()) == retries


def test_the_policy_limits_concurrent_requests() -> None:
    async def scene() -> int:
        async with (
            FaultServer(lambda _: json_reply({}, after=0.02)) as server,
            partner_http(server.base_url, policy=HttpPolicy(concurrency=3)) as http,
        ):
            await asyncio.gather(*(http.get_json(["runs"]) for _ in range(12)))
            return server.most_open

    assert asyncio.run(scene()) == 3


def test_a_retry_after_pauses_the_whole_connection() -> None:
    async def scene() -> None:
        waiting, go_on = asyncio.Event(), asyncio.Event()

        async def wait(seconds: float) -> None:
            waiting.set()
            await go_on.wait()

        async with (
            FaultServer(in_turn(status_reply(429), GOOD)) as server,
            HttpClient(
                "connection acme", server.base_url, token=None, policy=HttpPolicy(concurrency=1), sleep=wait
            ) as http,
        ):
            first = asyncio.create_task(http.get_json(["runs"]))
            await waiting.wait()
            second = asyncio.create_task(http.get_json(["runs"]))
            await asyncio.sleep(0.1)
            assert len(server.requests) == 1
            go_on.set()
            await asyncio.gather(first, second)

    asyncio.run(scene())


def test_success_earns_retries_back() -> None:
    async def scene() -> int:
        slept = Slept()
        replies = in_turn(status_reply(500), *[GOOD] * 5, status_reply(500), GOOD)
        async with (
            FaultServer(replies) as server,
            partner_http(server.base_url, policy=HttpPolicy(retry_tokens=5), slept=slept) as http,
        ):
            for _ in range(6):
                await http.get_json(["runs"])
        return len(slept.seconds)

    assert asyncio.run(scene()) == 2


def test_keep_alive_connections_are_reused() -> None:
    async def scene() -> int:
        async with FaultServer(in_turn(GOOD)) as server, partner_http(server.base_url) as http:
            for _ in range(5):
                await http.get_json(["runs"])
            return server.connections

    assert asyncio.run(scene()) == 1


def breaker_run(errors: list[RemoteError | None]) -> list[str]:
    """The result of each call: "asked", or the message of the error that prevented it."""

    async def scene() -> list[str]:
        breaker = CircuitBreaker(patience=60, limit=3)
        seen = []
        for error in errors:
            asked = False

            async def ask(error: RemoteError | None = error) -> None:
                nonlocal asked
                asked = True
                if error:
                    raise error

            try:
                await breaker.call(ask)
                seen.append("asked")
            except RemoteError as raised:
                seen.append("asked" if asked else str(raised))
        return seen

    return asyncio.run(scene())


def test_the_breaker_opens_only_after_consecutive_failures() -> None:
    down = Transient("down")
    assert breaker_run([down, down, None, down, down, down, None, None]) == ["asked"] * 6 + ["down"] * 2


def test_the_breaker_opens_when_every_response_is_too_large() -> None:
    large = ResponseTooLarge("large")
    assert breaker_run([large] * 9 + [None] + [large] * 10 + [None]) == ["asked"] * 20 + ["large"]


def test_the_breaker_opens_at_once_on_refused_credentials_and_on_a_long_wait() -> None:
    assert breaker_run([AuthError("no"), None]) == ["asked", "no"]
    assert breaker_run([RateLimited("later", 61.0), None]) == ["asked", "later"]
    assert breaker_run([RateLimited("soon", 59.0), None]) == ["asked", "asked"]
