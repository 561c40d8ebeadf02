"""Walks through the pages of one request."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from chm_dagster.partners.declared.asking import Asking
from chm_dagster.partners.declared.model import Request
from chm_dagster.partners.declared.paging import Paging
from chm_dagster.partners.declared.places import find
from chm_dagster.partners.declared.template import ABSENT, names
from chm_dagster.partners.guards import PageGuard
from chm_dagster.partners.http import Answer, Ask, PartnerHttp
from chm_dagster.partners.retry import Breaker

Key = Callable[[Any], Any]
"""What makes a record the same record; None for one that does not say."""


class NoCursor(Exception):
    """The partner does not know this way of paging; another one is configured for that."""


class TooMany(Exception):
    """There are more rows than the partner ever gives for one request."""


class Pager:
    """Walks through the pages of `request`. `key` tells records apart, so that a page that repeats is noticed."""

    def __init__(
        self,
        http: PartnerHttp,
        asking: Asking,
        request: Request,
        items: str,
        paging: Paging,
        *,
        page_size: int,
        key: Key,
        may_lack: bool = False,
    ) -> None:
        self._http = http
        self._asking = asking
        self._request = request
        self._items = items
        self._paging = paging
        self._page_size = page_size
        self._key = key
        self._may_lack = may_lack
        self._guard = PageGuard(http.connection)

    async def pages(self, breaker: Breaker, **values: Any) -> AsyncGenerator[tuple[Answer, list[Any]], None]:
        """Each answer with its records. Raises PartnerError, and instead of a first page NoCursor or TooMany."""
        state: dict[str, Any] | Ask = self._first()
        while True:
            ask = state if isinstance(state, Ask) else self._asking.ask(self._request, self._paging, **values, **state)
            answer = await breaker.call(lambda ask=ask: self._http.ask(ask))  # type: ignore[misc]
            rows = self._asking.items(answer, self._items, may_lack=self._may_lack)
            following = self._following(state, ask, answer, rows)
            yield answer, rows
            if following is None:
                return
            self._guard.next_page(len(rows))
            state = following

    def _first(self) -> dict[str, Any]:
        paging = self._paging
        if paging.kind == "offset":
            return {"offset": 0}
        if paging.kind == "page":
            return {"page": paging.first_page, "offset": 0}
        if paging.kind == "cursor":
            return {"cursor": ABSENT if paging.first_cursor is None else paging.first_cursor}
        return {"before": ABSENT, "offset": 0} if paging.kind == "keyset" else {}

    def _following(
        self, state: dict[str, Any] | Ask, ask: Ask, answer: Answer, rows: list[Any]
    ) -> dict[str, Any] | Ask | None:
        """What to ask for next; None after the last page."""
        paging = self._paging
        if paging.kind == "none" or (paging.more and next(iter(find(answer.body, paging.more)), None) is False):
            return None
        if paging.kind == "link":
            return self._linked(ask, answer)
        assert isinstance(state, dict)  # noqa: S101 - only links lead to ready-made requests
        if paging.kind == "cursor":
            cursor = self._cursor(answer, is_first=state == self._first())
            return None if cursor is None else {"cursor": cursor}
        self._refuse_too_many(state, answer)
        if not rows or (paging.short_page_ends and len(rows) < self._page_size):
            return None
        news = self._guard.news(key for row in rows if (key := self._key(row)) is not None)
        if paging.kind == "keyset":
            return self._before(state, rows, news)
        return self._counted(state, answer, rows, news)

    def _counted(self, state: dict[str, Any], answer: Answer, rows: Sequence[Any], news: int) -> dict[str, Any] | None:
        if not news and any(self._key(row) is not None for row in rows):
            raise self._guard.drift("a page holds nothing but what was read before; the partner ignores the paging")
        # By rows received and not by rows asked for: partners cut pages short without a word.
        offset = state["offset"] + len(rows)
        total = self._total(answer)
        if total is not None and offset >= total:
            return None
        return {"page": state["page"] + 1, "offset": offset} if "page" in state else {"offset": offset}

    def _total(self, answer: Answer) -> int | None:
        total = next(iter(find(answer.body, self._paging.total)), None) if self._paging.total else None
        return total if isinstance(total, int) and not isinstance(total, bool) else None

    def _refuse_too_many(self, state: dict[str, Any], answer: Answer) -> None:
        total = self._total(answer)
        if self._paging.most is not None and total is not None and total > self._paging.most and not state["offset"]:
            raise TooMany

    def _cursor(self, answer: Answer, *, is_first: bool) -> str | None:
        found = find(answer.body, self._paging.next or "")
        if not found and self._paging.otherwise is not None and is_first:
            raise NoCursor
        if not found and not self._paging.missing_ends:
            # It could mean the last page, or that the rest will never be told of.
            raise self._guard.drift(f"{self._paging.next} is missing")
        return self._guard.cursor(found[0] if found else None)

    def _linked(self, ask: Ask, answer: Answer) -> Ask | None:
        found = find(answer.body, self._paging.next) if self._paging.next else [answer.next_link]
        link = self._guard.cursor(found[0] if found else None)
        if link is None:
            return None
        path, params = self._http.below(link)
        slash = path[-1] == ""
        parts = path[:-1] if slash else path
        return Ask(parts, params, ask.method, ask.body, slash=slash, headers=ask.headers, shape=ask.shape)

    def _before(self, state: Mapping[str, Any], rows: Sequence[Any], news: int) -> dict[str, Any] | None:
        """Where the next page starts: just above the oldest row, which then comes twice.

        A page full of one value says nothing about where the next one starts: its rows are skipped by their number.
        """
        field = self._paging.field or ""
        found = [value for row in rows for value in find(row, field) if value is not None]
        numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
        texts = [value for value in found if isinstance(value, str)]
        if not found or len(found) not in (len(numbers), len(texts)):
            raise self._guard.drift(f"{field} is missing, or no number and no text: there is no next page to ask for")
        following = min(texts) if texts else min(numbers) + self._paging.nudge
        if news and following != state["before"]:
            return {"before": following, "offset": 0}
        if len(rows) >= self._page_size:
            if "offset" in names([self._paging.query, self._paging.body]):
                return {"before": state["before"], "offset": state["offset"] + len(rows)}
            raise self._guard.drift(f"more than {self._page_size - 1} records share one {field}")
        return None


def of_fields(pipeline: Callable[[Any], Any], run: Callable[[Any], Any]) -> Key:
    """The key of a run: its pipeline and its id."""

    def key(record: Any) -> Any:
        run_id = run(record)
        return None if run_id is None else (pipeline(record), run_id)

    return key
