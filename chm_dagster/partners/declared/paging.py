"""How a list goes on over several pages."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from chm_dagster.partners.declared.base import ASKED, Model, checked_names


class Paging(Model):
    """How a list goes on. Its `query` and `body` are laid over those of the request, and are templates as well."""

    kind: Literal["none", "offset", "page", "cursor", "link", "keyset"] = "none"
    """`offset`: ${offset} rows are skipped. `page`: ${page} is counted. `cursor`: ${cursor} comes with the answer.
    `link`: the address of the next page comes with the answer. `keyset`: ${before} is taken from the last row."""
    query: dict[str, Any] = {}
    body: dict[str, Any] = {}
    next: str | None = None
    """Where the next cursor or link is; for `link`, without it, in the Link header."""
    more: str | None = None
    """A place that holds false on the last page."""
    total: str | None = None
    """A place that holds the exact number of all rows."""
    most: int | None = None
    """With `total`: the most rows that the partner ever gives for one request. Where there are more, the span of time
    is halved until there are not."""
    first_cursor: str | None = None
    """The cursor that asks for the first page, where there has to be one."""
    first_page: int = 1
    missing_ends: bool = False
    """Whether an answer without `next` is the last page; otherwise it is an error, because it could mean either."""
    short_page_ends: bool = False
    """Whether a page with fewer rows than asked for is the last. Only for partners that never cut pages short."""
    field: str | None = None
    """For `keyset`: the place in a row that the list is sorted by, newest first."""
    nudge: float = Field(default=0, ge=0)
    """For `keyset`: added to the value, so that rows with the very same value are not lost; they come twice instead."""
    otherwise: "Paging | None" = None
    """For `cursor`: how to page a partner whose answer has no `next`, because it is older than that."""

    @field_validator("query", "body")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        return checked_names(value, ASKED, ("options.",))

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Paging":
        needed = {"cursor": "next", "keyset": "field"}.get(self.kind)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"{self.kind} needs {needed}")
        return self
