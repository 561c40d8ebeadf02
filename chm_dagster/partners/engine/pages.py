"""Reads a list to its end with any paginator, without losing rows when the list shifts meanwhile."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from chm_dagster.errors import SchemaDrift, Transient
from chm_dagster.http.client import Request, Response
from chm_dagster.http.failures import CircuitBreaker
from chm_dagster.partners.engine.model import Paginator, RequestTemplate
from chm_dagster.partners.engine.requests import MAX_PAGES, Api
from chm_dagster.partners.engine.selectors import ABSENT, find, names, value_at

logger = logging.getLogger(__name__)

MAX_EMPTY_PAGES = 10
MAX_CURSOR_CHARS = 4_096
MAX_READS = 3
"""How often a list is read that changes while it is read."""
MAX_STEPS_BACK = 20

Key = Callable[[Any], Any]
"""What makes two records the same; None for a record that does not say."""
Values = dict[str, Any]
"""What the templates of the next request are filled with."""
Advance = tuple[list[Any], Values | Request | None]
"""The rows of a page that are new, and what to request next; None after the last page."""


class NoCursor(Exception):
    """The partner is too old for this paginator; the configuration has a fallback."""


class TooManyResults(Exception):
    """There are more rows than the partner ever returns for one request."""


class PageGuard:
    """Watches one list. Each method raises SchemaDrift for what would never end."""

    def __init__(self, label: str, max_pages: int = MAX_PAGES) -> None:
        self._label = label
        self._max_pages = max_pages
        self._pages = 0
        self._empty = 0
        self._cursors: set[str] = set()
        self.seen: set[Any] = set()

    def next_page(self, records: int) -> None:
        """There is another page after one with this many records."""
        self._pages += 1
        self._empty = 0 if records else self._empty + 1
        if self._empty > MAX_EMPTY_PAGES:
            raise self.drift(f"more than {MAX_EMPTY_PAGES} empty pages in a row, each with a next cursor")
        if self._pages >= self._max_pages:
            raise self.drift(f"no end after {self._max_pages} pages")

    def cursor(self, value: Any) -> str | None:
        """A cursor in the form in which it is sent back; None for one that ends the list."""
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

    def add(self, keys: Sequence[Any]) -> int:
        """How many of these keys are new."""
        before = len(self.seen)
        self.seen.update(key for key in keys if key is not None)
        return len(self.seen) - before

    def drift(self, what: str) -> SchemaDrift:
        """The error, with the name of the connection."""
        return SchemaDrift(f"{self._label}: {what}")


class Pages:
    """The pages of one request. `key` tells records apart, so that a page that repeats is noticed."""

    def __init__(
        self,
        api: Api,
        request: RequestTemplate,
        selector: str,
        paginator: Paginator,
        *,
        key: Key,
        may_be_missing: bool = False,
        page_size: int | None = None,
    ) -> None:
        self.api, self.request, self.selector, self.paginator = api, request, selector, paginator
        self.page_size, self.key = page_size or api.rest.page_size, key
        self.may_be_missing = may_be_missing

    async def read(self, breaker: CircuitBreaker, **values: Any) -> AsyncGenerator[tuple[Response, list[Any]], None]:
        """Each response with its records. A list that lost rows while it was read is read again.

        Raises RemoteError, and NoCursor or TooManyResults instead of a first page.
        """
        for _ in range(MAX_READS):
            guard = PageGuard(self.api.label, self.api.max_pages)
            walk = _WALKS[self.paginator.kind](self, guard)
            sent = self._request(values, walk.first())
            while True:
                response = await breaker.call(lambda request=sent: self.api.http.send(request))  # type: ignore[misc]
                rows = self.api.items(response, self.selector, may_be_missing=self.may_be_missing)
                new, following = walk.advance(sent, response, rows)
                yield response, new
                if following is None:
                    break
                guard.next_page(len(rows))
                sent = following if isinstance(following, Request) else self._request(values, following)
            if walk.is_complete():
                return
        problem = f"{self.api.label}: {getattr(self.request, 'name', None) or 'a list'}: it changes while it is read"
        if self.paginator.total_is_exact:
            raise Transient(f"{problem}; its watermark stays")
        logger.warning("%s, or its total is wrong", problem)

    def _request(self, values: Values, page: Values) -> Request:
        return self.api.make(self.request, self.paginator, page_size=self.page_size, **values, **page)


class _Walk(Protocol):
    """One read of a list."""

    def first(self) -> Values:
        """What the first request is filled with."""
        ...

    def advance(self, sent: Request, response: Response, rows: list[Any]) -> Advance:
        """After this response."""
        ...

    def is_complete(self) -> bool:
        """Whether no row was lost, after the last page."""
        ...


class _Single:
    """A list of one page."""

    def __init__(self, pages: Pages, guard: PageGuard) -> None:
        self._pages, self._guard = pages, guard

    def first(self) -> Values:
        return {}

    def advance(self, sent: Request, response: Response, rows: list[Any]) -> Advance:
        return rows, None if self._has_ended(response) else self._next(sent, response)

    def is_complete(self) -> bool:
        return True

    def _has_ended(self, response: Response) -> bool:
        return value_at(response.body, self._pages.paginator.has_more) is False

    def _next(self, sent: Request, response: Response) -> Values | Request | None:
        return None


class _Cursor(_Single):
    """Each response names the cursor of the next page."""

    _is_first = True

    def first(self) -> Values:
        cursor = self._pages.paginator.first_cursor
        return {"cursor": ABSENT if cursor is None else cursor}

    def _next(self, sent: Request, response: Response) -> Values | Request | None:
        paginator = self._pages.paginator
        if paginator.next_header is not None:
            cursor = self._guard.cursor(response.headers.get(paginator.next_header))
            return None if cursor is None else {"cursor": cursor}
        found = find(response.body, paginator.next or "")
        if not found and paginator.fallback is not None and self._is_first:
            raise NoCursor
        if not found and not paginator.missing_next_ends:
            # It could mean the last page, or that the rest is withheld.
            raise self._guard.drift(f"{paginator.next} is missing")
        self._is_first = False
        cursor = self._guard.cursor(found[0] if found else None)
        return None if cursor is None else {"cursor": cursor}


class _Link(_Single):
    """Each response names the address of the next page."""

    def _next(self, sent: Request, response: Response) -> Values | Request | None:
        selector = self._pages.paginator.next
        link = self._guard.cursor(value_at(response.body, selector) if selector else response.next_link)
        if link is None:
            return None
        path, params = self._pages.api.http.parse_link(link)
        slash = path[-1] == ""
        segments = path[:-1] if slash else path
        return Request(segments, params, sent.method, sent.body, slash=slash, headers=sent.headers, shape=sent.shape)


class _Counted(_Single):
    """Rows or pages are counted.

    Rows that leave the list while it is read pull later ones forward, over the edge of a page, where nobody reads
    them. So each page by offset starts with the last row of the page before; if that is not there, the read steps back.
    And where the partner says how many rows there are, that many different ones must have been read.
    """

    def __init__(self, pages: Pages, guard: PageGuard) -> None:
        super().__init__(pages, guard)
        self._by_page = pages.paginator.kind == "page"
        self._page = pages.paginator.first_page
        self._offset = 0
        self._overlaps = False
        self._steps_back = 0
        self._without_key = 0
        self._without_news = 0
        self._last_keys: list[Any] = []
        self._totals: list[int] = []

    def first(self) -> Values:
        return self._values()

    def _values(self) -> Values:
        return {"page": self._page} if self._by_page else {"offset": self._offset}

    def advance(self, sent: Request, response: Response, rows: list[Any]) -> Advance:
        self._note_total(response)
        keys = [self._pages.key(row) for row in rows]
        if self._overlaps and (not rows or (keys[0] is not None and keys[0] not in self._guard.seen)):
            return [], self._stepped_back()
        new = rows[1:] if self._overlaps else rows
        self._without_key += keys[len(rows) - len(new) :].count(None)
        has_news = self._guard.add(keys) > 0
        if self._has_ended(response) or not new:
            return new, None
        self._without_news = 0 if has_news else self._without_news + 1
        repeats = keys == self._last_keys or self._without_news > MAX_STEPS_BACK
        if not has_news and repeats and any(key is not None for key in keys):
            raise self._guard.drift("a page has nothing but what was read before; the partner ignores the paginator")
        if self._is_last(len(rows)):
            return new, None
        self._steps_back = 0 if has_news else self._steps_back
        self._last_keys = keys
        self._page += 1
        # By rows received and not by rows requested: partners cut pages short silently.
        self._overlaps = not self._by_page and len(rows) > 1
        self._offset += len(rows) - self._overlaps
        return new, self._values()

    def _is_last(self, received: int) -> bool:
        if self._pages.paginator.short_page_ends and received < self._pages.page_size:
            return True
        if not self._totals:
            return False
        read = len(self._guard.seen) + self._without_key if self._by_page else self._offset + received
        return read >= self._totals[-1]

    def _stepped_back(self) -> Values:
        self._steps_back += 1
        if self._steps_back > MAX_STEPS_BACK:
            raise Transient(f"{self._pages.api.label}: a list of runs changes while it is read")
        self._offset = max(0, self._offset - self._pages.page_size)
        self._overlaps = self._offset > 0
        return self._values()

    def _note_total(self, response: Response) -> None:
        paginator = self._pages.paginator
        total = value_at(response.body, paginator.total)
        if not isinstance(total, int) or isinstance(total, bool):
            return
        if paginator.max_results is not None and total > paginator.max_results and not self._totals:
            raise TooManyResults
        self._totals.append(total)

    def is_complete(self) -> bool:
        """Whether as many rows were read as there were at the start, apart from those that left."""
        if not self._totals:
            return True
        if self._by_page and min(self._totals) < self._totals[0]:
            return False
        return len(self._guard.seen) + self._without_key >= min(self._totals[0], self._totals[-1])


class _Keyset(_Single):
    """Each page starts where the oldest row of the one before ended; that row comes twice."""

    def __init__(self, pages: Pages, guard: PageGuard) -> None:
        super().__init__(pages, guard)
        self._before: Any = ABSENT
        self._offset = 0

    def first(self) -> Values:
        return {"before": self._before, "offset": self._offset}

    def advance(self, sent: Request, response: Response, rows: list[Any]) -> Advance:
        page_size = self._pages.page_size
        has_ended = self._has_ended(response) or (self._pages.paginator.short_page_ends and len(rows) < page_size)
        keys = [self._pages.key(row) for row in rows]
        new = [row for row, key in zip(rows, keys, strict=True) if key is None or key not in self._guard.seen]
        news = self._guard.add(keys)
        return new, None if has_ended or not rows else self._following(rows, news)

    def _following(self, rows: Sequence[Any], news: int) -> Values | None:
        """A page full of one value does not say where the next one starts: its rows are skipped by their number."""
        oldest = self._oldest(rows)
        if news and oldest != self._before:
            self._before, self._offset = oldest, 0
            return self.first()
        if len(rows) < self._pages.page_size:
            return None
        paginator = self._pages.paginator
        if "offset" not in names([paginator.query, paginator.body]):
            raise self._guard.drift(f"more than {self._pages.page_size - 1} records share one {paginator.field}")
        self._offset += len(rows)
        return self.first()

    def _oldest(self, rows: Sequence[Any]) -> Any:
        field = self._pages.paginator.field or ""
        found = [value for row in rows for value in find(row, field) if value is not None]
        numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        texts = [value for value in found if isinstance(value, str)]
        if not found or len(found) not in (len(numbers), len(texts)):
            raise self._guard.drift(f"{field} is missing, or neither number nor text: there is no next page to request")
        return min(texts) if texts else min(numbers) + self._pages.paginator.nudge


_WALKS: dict[str, Callable[[Pages, PageGuard], _Walk]] = {
    "none": _Single,
    "cursor": _Cursor,
    "link": _Link,
    "offset": _Counted,
    "page": _Counted,
    "keyset": _Keyset,
}
