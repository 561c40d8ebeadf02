"""How often a server may be asked: requests are spaced evenly, by all clients together that draw on one quota."""

import threading
import time
from collections.abc import Callable, Collection


class Pace:
    """The times at which requests start. It may be shared by clients in several threads and event loops."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._next_start = 0.0

    def seconds_to_wait(self, requests_per_minute: float) -> float:
        """How long to wait before the next request. Its place is taken: whoever asks next is given a later one."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / requests_per_minute
            return start - now


class Paces:
    """The paces of one process: vendors count requests by account, however many connections use it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, frozenset[str]], Pace] = {}
        self._lock = threading.Lock()

    def of(self, base_url: str, secrets: Collection[str]) -> Pace:
        """The pace of everybody who asks this host with these credentials."""
        host = base_url.partition("://")[2].partition("/")[0].lower()
        with self._lock:
            return self._known.setdefault((host, frozenset(secrets)), Pace())
