"""What the configuration of an API may contain. These models are also its JSON schema, with the docstrings as help.

A *selector* is a dotted path to a value: `state.message`, `errors.0.text`. `*` goes through all items of a list, `#`
counts them, `?key=team` picks items whose field `key` is `team`, and quotes keep dots inside a name:
`labels.'example.com/job'`.

A *template* is a text with `${name}` in it. A single `${name}` becomes the value itself, a number or a list for
instance; inside a longer text it becomes part of the text. Where a value is not known (`${since}` in a full read), the
whole field is left out of the request.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.partners.credentials import Auth, NoAuth
from chm_dagster.partners.engine.selectors import (
    REQUEST_NAMES,
    Match,
    Model,
    Required,
    Runs,
    Selectors,
    checked_names,
    find,
    listed,
    names,
)


class RequestTemplate(Model):
    """A request below base_url. Every text in it is a template."""

    method: Literal["GET", "POST"] = "GET"
    """POST is for partners whose queries are POSTs. It must change nothing: it is repeated after a failure."""
    path: str = ""
    """The path below base_url, such as `/api/runs/${id}`. A value becomes one segment, and its slashes are encoded;
    `${id:path}` keeps them."""
    query: dict[str, Any] = {}
    """Parameters. A list becomes one parameter for each item."""
    body: Any = None
    """Sent as JSON."""
    headers: dict[str, str] = {}
    """Headers of this request only."""

    @field_validator("path", "query", "body", "headers")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        return checked_names(value, REQUEST_NAMES, ("options.",))


class Paginator(Model):
    """How a list continues. Its `query` and `body` are templates, and are laid over those of the request."""

    kind: Literal["none", "offset", "page", "cursor", "link", "keyset"] = "none"
    """`offset` skips ${offset} rows (${end} is that plus ${page_size}), `page` counts ${page}, `cursor` sends ${cursor}
    from the last response, `link` follows the address in the last response, and `keyset` sends ${before}, taken from
    the last row."""
    query: dict[str, Any] = {}
    body: dict[str, Any] = {}
    next: str | None = None
    """The selector of the next cursor or link. A `link` without it is read from the Link header."""
    next_header: str | None = None
    """The response header with the next cursor, if it is not in the body."""
    has_more: str | None = None
    """A selector that finds false on the last page."""
    total: str | None = None
    """The selector of the exact number of all rows. A list that is read without as many rows is read again."""
    total_is_exact: bool = True
    """Whether a list that stays incomplete is an error. Otherwise it is logged."""
    max_results: int | None = None
    """With `total`: the most rows that the partner returns for one request. If there are more, the time span is split
    in halves."""
    first_cursor: str | None = None
    """The cursor of the first page, if there has to be one."""
    first_page: int = 1
    missing_next_ends: bool = False
    """Whether a response without `next` is the last page. Otherwise it is an error, because it could mean either."""
    short_page_ends: bool = False
    """Whether a page with fewer rows than requested is the last. Only for partners that never cut pages short."""
    field: str | None = None
    """For `keyset`: the selector of the value by which the list is sorted, newest first."""
    nudge: float = Field(default=0, ge=0)
    """For `keyset`: added to that value, so that rows with the same value are read twice and not lost."""
    fallback: "Paginator | None" = None
    """For `cursor`: how to page an older version of the partner, whose responses have no `next`."""

    @field_validator("query", "body")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        return checked_names(value, REQUEST_NAMES, ("options.",))

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Paginator":
        needed = {"cursor": ("next", "next_header"), "keyset": ("field",)}.get(self.kind)
        if needed is not None and all(getattr(self, field) is None for field in needed):
            raise ValueError(f"{self.kind} needs {' or '.join(needed)}")
        return self


class Stream(RequestTemplate):
    """A list of runs. A sync has succeeded when all its streams have been read."""

    name: str
    """What the stream contains, for messages."""
    account_path: str | None = None
    """The path for the runs of all pipelines, if it is not `path` without ${id}."""
    when: Literal["always", "incremental", "full", "open"] = "always"
    """`incremental`: only from a watermark on. `full`: only when the whole history is read. `open`: only if the ledger
    has unfinished runs that no other stream contained; it should list all unfinished runs."""
    lookback_hours: float = Field(default=0, ge=0)
    """How far before the watermark this stream starts."""
    reaches_open_runs: bool = False
    """Whether this stream starts at the oldest unfinished run, if that is earlier, because single runs cannot be looked
    up."""
    newest_first: str | None = None
    """The selector of the time by which the list is sorted, newest first, if the partner cannot filter by ${since}.
    Reading stops at the first page with nothing but older runs."""
    window_hours: float | None = Field(default=None, gt=0)
    """The longest span that one request may cover, from ${since} to ${until}. A longer one is split."""
    paginator: Paginator | None = None
    """If this stream is paged in another way than the others."""

    @field_validator("account_path")
    @classmethod
    def _account_names_are_known(cls, value: Any) -> Any:
        return checked_names(value, REQUEST_NAMES, ("options.",))


class ErrorMatch(Model):
    """A response with this error status, and with this text in its body."""

    status: int
    selector: str | None = None
    """A selector in the response..."""
    contains: str = ""
    """... and the text that it finds there, or a part of it."""
    page: bool = False
    """Whether it may be a web page. Else pages do not count: a proxy or a login sends them for paths that do exist."""

    def matches(self, status: int, body: Any, *, is_page: bool = False) -> bool:
        """Whether a response is meant; `body` is its JSON, or None."""
        if status != self.status or (is_page and not self.page):
            return False
        found = [] if self.selector is None else find(body, self.selector)
        return self.selector is None or any(isinstance(text, str) and self.contains in text for text in found)


class Scope(Model):
    """What one request covers: all pipelines of the account, or those that ${id} or ${ids} select."""

    account: bool = True
    """Whether one request can return the runs of all pipelines."""
    filter_by: Literal["id", "ids", "none"] = "id"
    """`id`: requests can be limited to ${id}. `ids`: to a list ${ids}. `none`: they always cover the account."""
    any_id: str | None = None
    """What stands for all pipelines in place of ${id}; without it, the field is left out."""
    max_ids: int = Field(default=100, ge=1)
    """The longest list in ${ids}."""
    account_threshold: int = Field(default=5, ge=0)
    """More pipelines than this with about the same watermark are read together, account-wide."""
    account_threshold_full: int = Field(default=50, ge=0)
    """The same for new pipelines and those far behind, where an account-wide request returns everybody's history."""
    unknown_is_empty: bool = False
    """Whether requests for the ${id} of an unknown pipeline return an empty list instead of 404."""
    unknown: list[ErrorMatch] = []
    """Which responses besides 404, if it is no web page, mean that the partner does not know the pipeline ${id}."""
    account_optional: bool = False
    """Whether some partners lack the account-wide request; they answer it with 404, 405 or 501."""

    @model_validator(mode="after")
    def _covers_something(self) -> "Scope":
        if not self.account and self.filter_by == "none":
            raise ValueError("account: false needs filter_by: id or ids")
        return self


class RunLookup(RequestTemplate):
    """How to request single runs: ${run_id} (and ${id}, its pipeline), or a list ${run_ids}."""

    max_ids: int = Field(default=1, ge=1)
    """How many ids fit into ${run_ids}. With 1, ${run_id} is requested, and 404 or 410 means that the run is gone."""
    data_selector: str = ""
    """The selector of the run, or of the list of runs."""
    not_found: list[ErrorMatch] = [ErrorMatch(status=404), ErrorMatch(status=410)]
    """Which responses mean that the run is gone."""
    failing: bool = False
    """Whether runs that make their pipeline fail are looked up as well, because no stream contains what happens to them
    later. Unfinished runs always are."""


class ParentList(RequestTemplate):
    """A list of the things that pipelines belong to. Their names are ${parent} in the names of pipelines."""

    data_selector: str = ""
    paginator: Paginator = Paginator()
    id: str
    name: str
    of: str
    """The selector, in a pipeline, of the id of what it belongs to."""


class Discover(RequestTemplate):
    """How to list the partner's pipelines."""

    data_selector: str = ""
    missing_data_is_empty: bool = False
    each: str | None = None
    """The selector of the pipelines in an item, if an item is not a pipeline. They have the item's fields as well."""
    paginator: Paginator = Paginator()
    id: Required
    """Its external id."""
    name: Selectors = []
    """Its name for people."""
    only: Match = {}
    """Which items are pipelines: those in which every selector finds one of its values."""
    inactive: Match = {}
    """Which pipelines are switched off: those where one of these selectors finds one of its values."""
    pipeline_type: PipelineType = PipelineType.INGESTION
    """What such pipelines mostly are for."""
    type_selector: str | None = None
    """The selector of its type, in CHM's words."""
    platform_selector: str | None = None
    """The selector of its platform, in CHM's words."""
    parents: ParentList | None = None


class Version(RequestTemplate):
    """How to learn the version of the partner's software."""

    selector: str = ""
    """Where it is in the response; empty if the response is the version."""
    at_least: str
    below: str
    """Versions from `at_least` up to, but without, `below` are supported."""
    otherwise: str = ""
    """What to do about any other version."""


class Access(RequestTemplate):
    """A cheap request that needs the right to read runs."""

    data_selector: str | None = None
    """The selector of a list that has to be in the response."""
    offers: str | None = None
    """What this request shows that the partner can do."""


class Check(Model):
    """What `chm partner check` requests."""

    version: Version | None = None
    access: Annotated[list[Access], BeforeValidator(listed, json_schema_input_type=Access | list[Access])] = []
    """The first of these that the partner has; by default the first page of the first stream."""


class InBandError(Model):
    """An error in a response with status 200."""

    selector: str
    """The request has failed if this finds anything..."""
    unless: list[Any] = []
    """... except for these values."""
    message: Selectors = []
    """Where its text is."""


class Option(Model):
    """Something that a connection may, or must, set under `options`."""

    description: str
    type: Literal["text", "number", "boolean"] = "text"
    required: bool = False
    default: str | int | float | bool | None = None


class Rest(Model):
    """An API that lists runs."""

    title: str
    """The name of the product."""
    verified: Literal["real_server", "documentation", "nobody"] = "nobody"
    """How it was verified: against a real server, or from its documentation."""
    sources: list[str] = []
    """What it was verified against, or written from."""
    platform: Platform = Platform.CUSTOM
    """Whose pipelines it reads."""
    base_url: str | None = None
    """Its address, if it is the same for everybody, or a template over ${options.name}."""
    ui_url: str | None = None
    """The address of its pages for people, a template over ${options.name}; by default base_url without `ui_strip`."""
    ui_strip: str = ""
    options: dict[str, Option] = {}
    auth: list[Auth] = [NoAuth(kind="none")]
    """How requests can be authenticated. The names of a connection's credentials select one."""
    headers: dict[str, str] = {}
    """Headers of every request, templates over ${options.name}."""
    reopens: bool
    """Whether a finished run may run again under its id. If unsure, true: it costs nothing if there is a `version`."""
    retention_days: int | None = None
    """How long the partner keeps runs, if documented."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    overlap_minutes: float = Field(default=5, ge=0)
    """How far each sync reaches back before the watermark: runs are stamped before they become visible."""
    history_days: float | None = Field(default=None, gt=0)
    """How much history the first sync reads; without it, everything that the partner has."""
    page_size: int = Field(default=100, ge=1)
    times: Literal["iso", "epoch", "epoch_ms", "date"] = "iso"
    """How ${since} and ${until} are written."""
    errors: list[InBandError] = []
    denied: list[ErrorMatch] = []
    """Which responses besides 401 and 403 mean that the credentials are refused."""
    rate_limited: list[ErrorMatch] = []
    """Which responses besides 429 mean that there were too many requests."""
    scope: Scope = Scope()
    paginator: Paginator = Paginator()
    streams: Annotated[list[Stream], Field(min_length=1)]
    runs: Runs
    lookup: RunLookup | None = None
    discover: Discover | None = None
    check: Check = Check()
    extension: Literal["airflow", "dagster", "generic", "github"] | None = None
    """CHM's own code that adds errors and row counts which the lists of runs do not contain, or maps records faster."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "Rest":
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        for when, words in (("incremental", "there is a watermark"), ("full", "there is no watermark")):
            if not any(stream.when in ("always", when) for stream in self.streams):
                yield f"streams: none is read when {words}"
        if self.history_days is None and any(stream.window_hours for stream in self.streams):
            yield "history_days: required, because a stream with window_hours needs a beginning"
        yield from self._unfiltered_streams()
        in_path = any("id" in names(stream.path) and stream.account_path is None for stream in self.streams)
        if self.scope.account and self.scope.any_id is None and in_path:
            yield "scope.any_id: required, because ${id} is part of a path"
        for name in sorted({name for name in self._named() if name.startswith("options.")}):
            if name.removeprefix("options.") not in self.options:
                yield f"options: {name.removeprefix('options.')} is used in a template and is not described"

    def _unfiltered_streams(self) -> Iterator[str]:
        """Streams that would return the runs of all pipelines for each of them."""
        wanted = {"id": "id", "ids": "ids"}.get(self.scope.filter_by)
        for number, stream in enumerate(self.streams):
            paginator = stream.paginator or self.paginator
            parts = [stream.path, stream.query, stream.body, stream.headers, paginator.query, paginator.body]
            if wanted is not None and wanted not in {name.removesuffix(":path") for name in names(parts)}:
                yield f"streams.{number}: ${{{wanted}}} is missing; or set scope.filter_by: none"

    def _named(self) -> Iterator[str]:
        return names([self.model_dump(exclude={"options"})])
