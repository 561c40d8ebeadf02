"""One connection's API: makes its requests from the configuration, and reads lists out of the responses."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from chm_dagster.domain import values
from chm_dagster.errors import Permanent, SchemaDrift
from chm_dagster.http.client import HttpClient, Request, Response
from chm_dagster.partners.engine.mapping import RecordReader
from chm_dagster.partners.engine.model import Paginator, RequestTemplate, Rest, Stream
from chm_dagster.partners.engine.selectors import (
    ABSENT,
    fill,
    find,
    first,
    format_time,
    names,
    overlay,
    parts,
    plain,
    render,
)

UNPAGED = Paginator()
MAX_PAGES = 10_000
"""A list with more pages than this has no end."""
ABSENT_STATUSES = (404, 405, 501)
"""How a partner answers a request that it does not have."""


class Api:
    """The API of one connection, ready for requests, and what earlier syncs have learned about it.

    `options` are the connection's own settings; every template knows them as `options.name`.
    """

    def __init__(self, rest: Rest, http: HttpClient, options: Mapping[str, Any], max_pages: int = MAX_PAGES) -> None:
        self.rest, self.http, self.label = rest, http, http.label
        self.max_pages = max_pages
        self.reader = RecordReader(rest)
        self.without_cursor: set[str] = set()
        """Streams that are read with the fallback of their paginator."""
        self.lacks_account = False
        """Whether the partner turned out to have no account-wide request."""
        self._options = {f"options.{name}": value for name, value in options.items() if value is not None}

    def make(self, request: RequestTemplate, paginator: Paginator = UNPAGED, **given: Any) -> Request:
        """The request with these values put in. Raises Permanent if its path needs one that is not known."""
        known = {**self._options, "page_size": self.rest.page_size, **{k: self._form(v) for k, v in given.items()}}
        if "offset" in known:
            known["end"] = known["offset"] + known["page_size"]
        query = render(overlay(request.query, paginator.query), known)
        body = render(overlay(request.body or {}, paginator.body), known) if request.body or paginator.body else None
        has_body = request.body is not None or paginator.body
        headers = render({**request.headers}, known)
        path = request.path
        if isinstance(request, Stream) and request.account_path is not None and not {"id", "ids"} & given.keys():
            path = request.account_path
        return Request(
            path=self._path(path, known),
            params=[] if query is ABSENT else _params(query),
            method=request.method,
            body=(({} if body is ABSENT else body) if has_body else None),
            headers={} if headers is ABSENT else headers,
            shape="any",
            slash=path.endswith("/"),
        )

    def _form(self, value: Any) -> Any:
        if isinstance(value, datetime):
            return format_time(value, self.rest.times)
        return ABSENT if value is None else value

    def _path(self, path: str, known: Mapping[str, Any]) -> list[str]:
        segments: list[Any] = []
        for part in filter(None, path.split("/")):
            whole = part.removeprefix("${").removesuffix(":path}") if part.endswith(":path}") else None
            if whole is not None and isinstance(known.get(whole), str):
                segments += known[whole].split("/")
            else:
                segments.append(fill(part, lambda name: known.get(name.removesuffix(":path"), ABSENT)))
        if ABSENT in segments:
            raise Permanent(f"{self.label}: {path}: a value in this path is not known")
        return segments

    def check(self, response: Response) -> None:
        """Raise Permanent if the response reports an error although its status is 200."""
        for error in self.rest.errors:
            found = [value for value in find(response.body, error.selector) if value not in (None, [], {}, "")]
            if any(value not in error.unless for value in found):
                what = first(response.body, error.message)
                text = values.reason_text(what) or "an error without a text"
                raise Permanent(f"{self.label}: the partner reports: {text}")

    @property
    def account_values(self) -> dict[str, Any]:
        """What stands for all pipelines in an account-wide request."""
        return {} if self.rest.scope.any_id is None else {"id": self.rest.scope.any_id}

    @property
    def requests_end(self) -> bool:
        """Whether runs are only requested up to our own time."""
        return any({"now", "until"} & set(names([s.path, s.query, s.body])) for s in self.rest.streams)

    @property
    def has_page_size(self) -> bool:
        """Whether requests say how many runs a page has."""
        templates = [[s.query, s.body, (s.paginator or self.rest.paginator).model_dump()] for s in self.rest.streams]
        return any({"page_size", "end"} & set(names(template)) for template in templates)

    def drift(self, what: str) -> SchemaDrift:
        """The error, with the name of the connection."""
        return SchemaDrift(f"{self.label}: {what}")

    def items(self, response: Response, selector: str, *, may_be_missing: bool = False) -> list[Any]:
        """The list that the selector finds. Raises Permanent for an error, SchemaDrift if there is no list.

        With `may_be_missing`, an object without the list, or with null in its place, is an empty list.
        """
        self.check(response)
        found = find(response.body, selector)
        if "*" in parts(selector):
            return found
        if may_be_missing and found in ([], [None]) and isinstance(response.body, dict):
            return []
        if not found or not isinstance(found[0], list):
            where = selector or "the response"
            raise self.drift(f"{where} is missing or not a list")
        items: list[Any] = found[0]
        if not items and not self.rest.errors:
            self._refuse_error_beside(response)
        return items

    def _refuse_error_beside(self, response: Response) -> None:
        """Raise Permanent if a response without runs has an `error` instead."""
        problem = first(response.body, ["error.message", "errors.0.message", "errors.0", "error"])
        if problem not in (None, "", False, {}, []):
            text = values.reason_text(problem) or "an error without a text"
            raise Permanent(f"{self.label}: the partner reports: {text}")


def _params(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    params: list[tuple[str, str]] = []
    for name, value in query.items():
        items = value if isinstance(value, list) else [value]
        params.extend((name, plain(item)) for item in items)
    return params
