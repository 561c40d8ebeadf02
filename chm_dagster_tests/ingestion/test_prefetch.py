"""A generator that runs ahead is still the same generator."""

import threading
import time
from collections.abc import Iterator

import pytest

from chm_dagster.ingestion.prefetch import prefetched


def test_the_items_come_in_their_order() -> None:
    assert list(prefetched(iter(range(50)))) == list(range(50))


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    got = prefetched(items())
    assert next(got) == 1
    with pytest.raises(ValueError, match="two"):
        next(got)


def test_it_runs_ahead_but_not_far() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            made.append(n)
            yield n

    got = prefetched(items(), ahead=2)
    next(got)
    time.sleep(0.3)
    assert 2 <= len(made) <= 5
    got.close()  # type: ignore[attr-defined]
    assert all(t.name != "prefetch" for t in threading.enumerate())
