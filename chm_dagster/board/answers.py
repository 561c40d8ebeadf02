"""The answers that pages are made of. Costly ones are shared by all viewers for some seconds.

An answer that took under `costly` seconds is never kept, so that a small installation always shows the present. One
that is kept is served at once; when it is no longer fresh, the next one is computed in the background meanwhile. A
page shows the time at which the oldest of its answers was read.
"""

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from chm_dagster.errors import Busy
from chm_dagster.warehouse.named_queries import Excerpt
from chm_dagster.warehouse.warehouse import Warehouse

FRESH_SECONDS = 10.0
KEPT_SECONDS = 60.0
"""How old an answer may be that is served while the next one is computed."""
COSTLY_SECONDS = 0.05
LONGEST_SECONDS = 10.0
"""How long a page may compute what it does not read."""
_MAX_KEPT = 200

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class _Kept:
    value: Any
    read_at: datetime
    seconds: float
    monotonic: float


class Answers:
    """The answers of one warehouse, for all requests. Thread-safe; the same answer is computed once at a time."""

    def __init__(
        self, warehouse: Warehouse, *, costly: float = COSTLY_SECONDS, longest: float = LONGEST_SECONDS
    ) -> None:
        self.warehouse = warehouse
        self.longest = longest
        self._costly = costly
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._running: dict[Hashable, Future[_Kept]] = {}
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        # Fewer than the connections of the pool: requests for anything else find one.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="board")

    def find(self, key: Hashable, compute: Callable[[], T]) -> tuple[T, datetime]:
        """The answer of this key and when it was read: a kept one, or a new one."""
        with self._lock:
            kept = self._kept.get(key)
            age = time.monotonic() - kept.monotonic if kept is not None else float("inf")
            running = self._running.get(key)
            if age > FRESH_SECONDS and running is None:
                running = self._running[key] = self._threads.submit(self._compute, key, compute)
        if kept is None or age > KEPT_SECONDS:
            # Every age beyond KEPT_SECONDS is beyond FRESH_SECONDS as well.
            kept = cast("Future[_Kept]", running).result()
        return kept.value, kept.read_at

    def find_alone(self, key: Hashable, compute: Callable[[], T]) -> tuple[T, datetime]:
        """As `find`, for what takes seconds: in the caller's thread, and one at a time. Raises Busy meanwhile."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or time.monotonic() - kept.monotonic > FRESH_SECONDS:
            if not self._alone.acquire(blocking=False):
                raise Busy("Another back-test is running. Reload this page in a few seconds.")
            try:
                kept = self._compute(key, compute)
            finally:
                self._alone.release()
        return kept.value, kept.read_at

    def _compute(self, key: Hashable, compute: Callable[[], Any]) -> _Kept:
        begin, read_at = time.monotonic(), datetime.now(UTC)
        try:
            value = compute()
            end = time.monotonic()
            found = _Kept(value, read_at, end - begin, end)
            with self._lock:
                self._kept.pop(key, None)
                if found.seconds >= self._costly:
                    self._kept[key] = found
                while len(self._kept) > _MAX_KEPT:
                    self._kept.popitem(last=False)
            return found
        finally:
            with self._lock:
                self._running.pop(key, None)


class Reading:
    """What one page reads. `as_of` is when the oldest of its answers was read."""

    def __init__(self, answers: Answers, now: datetime) -> None:
        self._answers = answers
        self.warehouse = answers.warehouse
        self.longest = answers.longest
        self.now = now
        self.as_of = now

    def rows(self, query: str, **parameters: Any) -> list[dict[str, Any]]:
        """All rows of a named query. Raises InputError, DatabaseUnavailable."""
        return self.find((query, *sorted(parameters.items())), lambda: self.warehouse.ask(query, **parameters))

    def excerpt(self, query: str, *, first: int, where: dict[str, str | None], **more: Any) -> Excerpt:
        """Some rows of a named query, as `Warehouse.excerpt`. Raises InputError, DatabaseUnavailable."""
        key = (query, first, *sorted(where.items(), key=str), *sorted(more.items(), key=str))
        return self.find(key, lambda: self.warehouse.excerpt(query, first=first, where=where, **more))

    def find(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The answer of this key: a kept one, or what `compute` returns. Raises what it raises."""
        return self._noted(*self._answers.find(key, compute))

    def find_alone(self, key: Hashable, compute: Callable[[], T]) -> T:
        """As `find`, for what takes seconds, `longest` at most: one at a time. Raises Busy as well."""
        return self._noted(*self._answers.find_alone(key, compute))

    def _noted(self, value: T, read_at: datetime) -> T:
        self.as_of = min(self.as_of, read_at)
        return value
