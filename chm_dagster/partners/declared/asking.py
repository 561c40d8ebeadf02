"""From the configuration of a request to the request."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from chm_dagster.domain import values
from chm_dagster.errors import Permanent, SchemaDrift
from chm_dagster.partners.declared.model import Request, Rest
from chm_dagster.partners.declared.paging import Paging
from chm_dagster.partners.declared.places import find, first
from chm_dagster.partners.declared.template import ABSENT, fill, overlaid, plain, render, written
from chm_dagster.partners.http import Answer, Ask

NO_PAGING = Paging()


class Asking:
    """Fills in the requests of one API for one connection, and looks into its answers.

    `options` are the connection's own settings; they are known in every template as `options.name`.
    """

    def __init__(self, rest: Rest, connection: str, options: Mapping[str, Any]) -> None:
        self._rest = rest
        self._connection = connection
        self._options = {f"options.{name}": value for name, value in options.items() if value is not None}

    def ask(self, request: Request, paging: Paging = NO_PAGING, **given: Any) -> Ask:
        """The request with these values put in. Raises Permanent where its path needs one that is not known."""
        known = {**self._options, "page_size": self._rest.page_size, **{k: self._form(v) for k, v in given.items()}}
        query = render(overlaid(request.query, paging.query), known)
        body = render(overlaid(request.body or {}, paging.body), known) if request.body or paging.body else None
        has_body = request.body is not None or paging.body
        headers = render({**request.headers}, known)
        return Ask(
            path=self._path(request.path, known),
            params=[] if query is ABSENT else _params(query),
            method=request.method,
            body=(({} if body is ABSENT else body) if has_body else None),
            headers={} if headers is ABSENT else headers,
            shape="any",
            slash=request.path.endswith("/"),
        )

    def _form(self, value: Any) -> Any:
        if isinstance(value, datetime):
            return written(value, self._rest.times)
        return ABSENT if value is None else value

    def _path(self, path: str, known: Mapping[str, Any]) -> list[str]:
        segments = [fill(part, lambda name: known.get(name, ABSENT)) for part in path.split("/") if part]
        if ABSENT in segments:
            raise Permanent(f"connection {self._connection}: {path}: not everything in this path is known")
        return segments

    def refused(self, answer: Answer) -> None:
        """Raise Permanent if the answer is an error in the clothes of a success."""
        for error in self._rest.errors:
            found = [value for value in find(answer.body, error.path) if value not in (None, [], {}, "")]
            if any(value not in error.unless for value in found):
                what = first(answer.body, error.message)
                text = values.reason_text(what) or "an error without a text"
                raise Permanent(f"connection {self._connection}: the partner says: {text}")

    def items(self, answer: Answer, place: str, *, may_lack: bool = False) -> list[Any]:
        """The list at this place. Raises Permanent for an error, SchemaDrift for no list, unless it may lack."""
        self.refused(answer)
        found = find(answer.body, place)
        if "*" in place.split("."):
            return found
        if not found and may_lack and isinstance(answer.body, dict):
            return []
        if not found or not isinstance(found[0], list):
            where = place or "the answer"
            raise SchemaDrift(f"connection {self._connection}: {where} is missing or not a list")
        items: list[Any] = found[0]
        return items


def _params(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    params: list[tuple[str, str]] = []
    for name, value in query.items():
        values = value if isinstance(value, list) else [value]
        params.extend((name, plain(item)) for item in values)
    return params
