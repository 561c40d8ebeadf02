"""Guards against partners whose pages never end."""

from collections.abc import Iterable
from typing import Any

from chm_dagster.errors import SchemaDrift

MAX_PAGES = 10_000
MAX_EMPTY_PAGES = 10
MAX_CURSOR_CHARS = 4_096


class PageGuard:
    """Watches one pass. Each method raises SchemaDrift for what would never end."""

    def __init__(self, connection: str, max_pages: int = MAX_PAGES) -> None:
        self._connection = connection
        self._max_pages = max_pages
        self._pages = 0
        self._empty = 0
        self._cursors: set[str] = set()
        self._seen: set[Any] = set()

    def next_page(self, records: int) -> None:
        """There is another page behind one of this many records."""
        self._pages += 1
        self._empty = 0 if records else self._empty + 1
        if self._empty > MAX_EMPTY_PAGES:
            raise self.drift(f"more than {MAX_EMPTY_PAGES} empty pages in a row, each with a next cursor")
        if self._pages >= self._max_pages:
            raise self.drift(f"no end after {self._max_pages} pages")

    def cursor(self, value: Any) -> str | None:
        """A cursor in the form in which it is sent back, None for one that ends the pass."""
        if value is None or value == "":
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or len(value) > MAX_CURSOR_CHARS:
            raise self.drift(f"next_cursor is not a string of at most {MAX_CURSOR_CHARS} characters")
        if value in self._cursors:
            raise self.drift("cursor loop: a page points back to one that was read")
        self._cursors.add(value)
        return value

    def news(self, keys: Iterable[Any]) -> int:
        """How many of these keys the pass had not met before."""
        before = len(self._seen)
        self._seen.update(keys)
        return len(self._seen) - before

    def drift(self, what: str) -> SchemaDrift:
        """The error, in the name of the connection."""
        return SchemaDrift(f"connection {self._connection}: {what}")
