"""What the configuration of an API may say. The models are also its JSON schema, with these docstrings as help.

A *template* is a text with `${name}` in it. A text that is nothing but one `${name}` becomes the value itself, a number
or a list for instance; within a longer text it becomes part of it. Where a value is not known (`${since}` when all of
the history is asked for), the whole field is left out of the request.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from chm_dagster.domain.inventory import PipelineType, Platform
from chm_dagster.partners.declared.base import ASKED, Model, checked_names
from chm_dagster.partners.declared.paging import Paging
from chm_dagster.partners.declared.template import names
from chm_dagster.partners.declared.ways import Auth, NoAuth

Paths = Annotated[list[str], Field(min_length=1)]
"""Places in a record, the first that holds something counts."""


class Request(Model):
    """A request below base_url. Every text in it is a template."""

    method: Literal["GET", "POST"] = "GET"
    """POST for partners whose queries are POSTs. It must change nothing: it is repeated after a failure."""
    path: str = ""
    """The path below base_url, `/api/runs/${id}`. What a template puts in is encoded as one segment."""
    query: dict[str, Any] = {}
    """Parameters. A list becomes one parameter for each item."""
    body: Any = None
    """Sent as JSON."""
    headers: dict[str, str] = {}
    """Headers of this request only."""

    @field_validator("path", "query", "body", "headers")
    @classmethod
    def _names_are_known(cls, value: Any) -> Any:
        return checked_names(value, ASKED, ("options.",))


class Pass(Request):
    """One way through the runs. A sweep has succeeded when all its passes have."""

    name: str
    """For messages: what this pass looks for."""
    when: Literal["always", "news", "everything", "open"] = "always"
    """`news`: only from a watermark on. `everything`: only where all of the history is asked for. `open`: only if the
    ledger holds unfinished runs that no other pass has met; it should list all unfinished runs."""
    lookback_hours: float = Field(default=0, ge=0)
    """How much further back than the watermark this pass looks."""
    window_hours: float | None = Field(default=None, gt=0)
    """The longest span that one request may cover, from ${since} to ${until}; a longer one is cut into several."""
    paging: Paging | None = None
    """Where this pass is paged in another way than the others."""


class Scope(Model):
    """Which requests there are: one for all pipelines of the account, or narrowed down by ${id} or ${ids}."""

    account: bool = True
    """Whether the runs of all pipelines can be read at once."""
    narrow: Literal["one", "many", "none"] = "one"
    """`one`: requests can be narrowed to ${id}. `many`: to a list ${ids}. `none`: it is always the whole account."""
    everything: str | None = None
    """What stands for all pipelines in the place of ${id}; without it, the field is left out."""
    max_ids: int = Field(default=100, ge=1)
    """The longest list in ${ids}."""
    account_from: int = Field(default=5, ge=0)
    """More pipelines than this that are equally far behind are read account-wide."""
    account_from_new: int = Field(default=50, ge=0)
    """The same for pipelines that were never read or are long behind: here it costs everybody's history."""

    @model_validator(mode="after")
    def _reads_somebody(self) -> "Scope":
        if not self.account and self.narrow == "none":
            raise ValueError("account: false needs narrow: one or many")
        return self


class Shown(Model):
    """What a status word of the partner means."""

    status: Literal["running", "success", "failed", "canceled", "skipped", "drop"]
    """One of the five statuses of a run; `drop` for what is no run yet."""
    reason: str | None = None
    """What to tell people, where the word itself does not say it."""


def _texts(words: Any) -> Any:
    # YAML reads the status 10 as a number.
    if not isinstance(words, dict):
        return words
    return {str(word) if type(word) is int else word: meaning for word, meaning in words.items()}


Meaning = Literal["running", "success", "failed", "canceled", "skipped", "drop"] | Shown


class Status(Model):
    """Where the status is and what its words mean. A word that is not mapped counts as running and is reported."""

    word: str
    """A place in the record, or a template over it such as `${state_type}/${state_name}` (missing parts are empty)."""
    map: Annotated[dict[str, Meaning], BeforeValidator(_texts)]
    """What each word means; case does not matter. `COMPLETED/*` stands for every word that starts so."""
    shown: Paths | None = None
    """Where the word for people is, if it is not the same."""


class Duration(Model):
    """The partner's own figure for how long a run took."""

    path: str
    unit: Literal["seconds", "milliseconds", "clock", "iso8601"] = "seconds"
    """`clock` is 01:02:03, `iso8601` is PT1H2M3S."""
    gives_finish: bool = False
    """Whether a finished run's end is its start plus this, because the partner names no end."""


class Runs(Model):
    """Where the runs are in an answer, and where each of their facts is in a record.

    A place is a dotted path: `state.message`, `errors.0.text`; `*` goes through all items of a list, `#` counts them.
    """

    items: str = ""
    """Where the list of runs is; empty if the answer is the list."""
    none_without_items: bool = False
    """Whether an answer without the list is one without runs; otherwise it is an error."""
    pipeline: Paths
    """The id of the run's pipeline: places, or templates such as `${location}/${job}`. The first that is in the
    inventory counts."""
    id: str
    """The run's id: a place, or a template over the record."""
    status: Status
    started: Paths
    """When the run started."""
    waiting: list[str] = []
    """Where there is no start yet, the newest of these times stands in for it, unless it is still to come."""
    finished: list[str] = []
    """When the run ended. Ignored while it is running."""
    duration: Duration | None = None
    rows: list[str] = []
    """How many rows the run processed."""
    error: list[str] = []
    """Why it failed."""
    reason: list[str] = []
    """More on its status, in the partner's words."""
    attempt: str | None = None
    """A counter of tries under the same run id: a number, or `#` of a list."""
    version: list[str] = []
    """Times that change with every transition; the newest one orders what is known of a run."""
    url: str | None = None
    """A link for people, a template over the record; ${ui} is the address of the partner's pages."""
    times: Literal["iso", "epoch", "epoch_ms"] = "iso"
    """How times are written: ISO 8601 with an offset, or seconds or milliseconds since 1970."""
    nulls: list[Any] = []
    """Values that mean that there is no time: 0, "0001-01-01T00:00:00Z"."""
    only: dict[str, list[Any]] = {}
    """Records are runs only if these places hold one of these values."""
    restless: list[str] = []
    """Fields of a record that change while nothing happens to the run. They are not kept: each look would be news."""


class Lookup(Request):
    """How to ask for single runs: ${run_id} (and ${id}, its pipeline), or a list ${run_ids}."""

    at_once: int = Field(default=1, ge=1)
    """How many ids fit into ${run_ids}; 1 asks for ${run_id}, and a 404 means that it is gone."""
    items: str = ""
    """Where the run, or the list of runs, is in the answer."""


class Group(Request):
    """A list of the things that pipelines belong to; their names are known as ${group} in the names of pipelines."""

    items: str = ""
    paging: Paging = Paging()
    id: str
    name: str
    of: str
    """The place in a pipeline that holds the id of its group."""


class Discover(Request):
    """How to list the partner's pipelines."""

    items: str = ""
    none_without_items: bool = False
    each: str | None = None
    """Where the pipelines are in an item, if an item is not a pipeline; they have the item's fields as well."""
    paging: Paging = Paging()
    id: str
    """Its external id: a place, or a template."""
    name: list[str] = []
    """Its name for people: places or templates."""
    active: str | None = None
    """A place that holds true for a pipeline that is in use."""
    paused: str | None = None
    """A place that holds true for a pipeline that is switched off."""
    pipeline_type: PipelineType = PipelineType.INGESTION
    """What such pipelines mostly are for."""
    group: Group | None = None


class Version(Request):
    """How to learn the version of the partner's software."""

    field: str = ""
    """Where it is in the answer; empty if the answer is the version."""
    at_least: str
    below: str
    """The versions from `at_least` up to, but without, `below` are understood."""
    otherwise: str = ""
    """What to do about any other."""


class Check(Model):
    """What `chm partner check` asks."""

    version: Version | None = None
    access: Request | None = None
    """A cheap request that needs the right to read runs; by default the first page of the first pass."""


class InBandError(Model):
    """An error that comes with status 200."""

    path: str
    """A place in the answer. If it holds anything, the request has failed..."""
    unless: list[Any] = []
    """... except for these values."""
    message: list[str] = []
    """Where its text is."""


class Option(Model):
    """Something that a connection may, or must, say under `options`."""

    description: str
    type: Literal["text", "number", "boolean"] = "text"
    required: bool = False
    default: str | int | float | bool | None = None


class Rest(Model):
    """An API that tells of runs."""

    title: str
    """What people call it."""
    verified: Literal["real_server", "documentation", "nobody"] = "nobody"
    """How it is known to work: against a real server, or from its documentation."""
    sources: list[str] = []
    """What it was verified against, or written from."""
    platform: Platform = Platform.CUSTOM
    """Whose pipelines it tells of."""
    base_url: str | None = None
    """Where it is, if that is the same for everybody."""
    ui_url: str | None = None
    """The address of its pages for people, a template over ${options.name}; by default base_url without `ui_strip`."""
    ui_strip: str = ""
    options: dict[str, Option] = {}
    auth: list[Auth] = [NoAuth(kind="none")]
    """Ways to prove who asks. The names of a connection's credentials choose among them."""
    headers: dict[str, str] = {}
    """Headers of every request, templates over ${options.name}."""
    reopens: bool
    """Whether a finished run may run again under its id. If unsure, true: it costs nothing where `version` is told."""
    retention_days: int | None = None
    """How long the partner keeps runs, as far as it says so."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    overlap_minutes: float = Field(default=5, ge=0)
    """How far each sweep reaches back behind the watermark: runs are stamped before they are visible."""
    history_days: float | None = Field(default=None, gt=0)
    """How much history the first sweep asks for; without it, everything that the partner has."""
    page_size: int = Field(default=100, ge=1)
    times: Literal["iso", "epoch", "epoch_ms", "date"] = "iso"
    """How ${since} and ${until} are written."""
    errors: list[InBandError] = []
    scope: Scope = Scope()
    paging: Paging = Paging()
    passes: Annotated[list[Pass], Field(min_length=1)]
    runs: Runs
    lookup: Lookup | None = None
    discover: Discover | None = None
    check: Check = Check()
    enrich: Literal["airflow", "dagster"] | None = None
    """Which of CHM's own code adds errors and row counts that the lists of runs do not hold."""

    @model_validator(mode="after")
    def _holds_together(self) -> "Rest":
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        for when, words in (("news", "a watermark is known"), ("everything", "there is no watermark")):
            if not any(pass_.when in ("always", when) for pass_ in self.passes):
                yield f"passes: none is due when {words}"
        if self.history_days is None and any(pass_.window_hours for pass_ in self.passes):
            yield "history_days: needed, because a pass has window_hours and there must be a beginning"
        yield from self._wide_passes()
        in_path = any("id" in names(pass_.path) for pass_ in self.passes)
        if self.scope.account and self.scope.everything is None and in_path:
            yield "scope.everything: needed, because ${id} is part of a path"
        for name in sorted({name for name in self._named() if name.startswith("options.")}):
            if name.removeprefix("options.") not in self.options:
                yield f"options: {name.removeprefix('options.')} is used in a template and is not described"

    def _wide_passes(self) -> Iterator[str]:
        """Passes that would answer each pipeline with the runs of all."""
        wanted = {"one": "id", "many": "ids"}.get(self.scope.narrow)
        for number, pass_ in enumerate(self.passes):
            paging = pass_.paging or self.paging
            asked = names([pass_.path, pass_.query, pass_.body, pass_.headers, paging.query, paging.body])
            if wanted is not None and wanted not in asked:
                yield f"passes.{number}: ${{{wanted}}} is missing; or say scope.narrow: none, if all runs come at once"

    def _named(self) -> Iterable[str]:
        parts = self.model_dump(exclude={"options"})
        return names([parts])
