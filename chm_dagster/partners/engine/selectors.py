"""Selectors, which find values in a record, templates, which put values into texts, and the fields of a run that are
described with them.

A selector is a dotted path: `state.message`, `errors.0.text`. `*` goes through all items of a list, `#` counts them,
`?key=team` picks items whose field `key` is `team`, and quotes keep dots inside a name: `labels.'example.com/job'`. A
template is a text with `${name}` in it.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from chm_dagster.domain.runs import RunKind

_NAME = re.compile(r"\$\{([^${}]*)\}")
_PART = re.compile(r"'([^']*)'|\"([^\"]*)\"|([^.]+)")
_MAX_BITS = 1_701
"""Of an integer of 512 digits."""


class _Absent:
    """A value that is not known; whatever it is put into is left out."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


# --- selectors


@functools.lru_cache(maxsize=4096)
def parts(selector: str) -> tuple[str, ...]:
    """The names in a selector, without their quotes."""
    return tuple(match[1] or match[2] or match[3] or "" for match in _PART.finditer(selector))


def find(value: Any, selector: str) -> list[Any]:
    """All values that the selector finds, None among them where a field holds null."""
    found = [value]
    for part in parts(selector):
        found = [item for one in found for item in _step(one, part)]
        if not found:
            break
    return found


def _step(value: Any, part: str) -> Sequence[Any]:
    if isinstance(value, dict):
        return (value[part],) if part in value else ()
    if not isinstance(value, list):
        return ()
    if part.startswith("?"):
        field, _, wanted = part[1:].partition("=")
        return [item for item in value if isinstance(item, dict) and item.get(field) == wanted]
    if part == "*":
        return value
    if part == "#":
        return (len(value),)
    if part.isascii() and part.isdigit() and int(part) < len(value):
        return (value[int(part)],)
    return ()


def value_at(value: Any, selector: str | None) -> Any:
    """The first value that the selector finds, null or not; None without a selector."""
    return None if selector is None else next(iter(find(value, selector)), None)


def first(value: Any, selectors: Sequence[str]) -> Any:
    """The first value that is not null, from selectors or filled templates; None if there is none."""
    for selector in selectors:
        if is_template(selector):
            found: Any = text_of(value, selector)
        else:
            found = next((v for v in find(value, selector) if v is not None), None)
        if found is not None:
            return found
    return None


def matches(record: Any, wanted: Mapping[str, Sequence[Any]]) -> bool:
    """Whether every selector finds one of its values. `1` and `true` are different values."""
    return all(
        not {(type(v), v) for v in allowed}.isdisjoint(_simple_values(record, selector))
        for selector, allowed in wanted.items()
    )


def matches_any(record: Any, wanted: Mapping[str, Sequence[Any]]) -> bool:
    """Whether one of the selectors finds one of its values; anything but null, if it has none."""
    for selector, allowed in wanted.items():
        if not allowed:
            if any(value is not None for value in find(record, selector)):
                return True
        elif matches(record, {selector: allowed}):
            return True
    return False


def _simple_values(record: Any, selector: str) -> list[tuple[type, Any]]:
    return [(type(v), v) for v in find(record, selector) if not isinstance(v, dict | list)]


def as_id(value: Any) -> str | None:
    """An id as text, from a non-empty text or an integer; None for anything else."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= _MAX_BITS else None
    return None


# --- templates


def names(template: Any) -> Iterator[str]:
    """The names of all `${name}` in a template, also inside nested values."""
    if isinstance(template, str):
        yield from (match.strip() for match in _NAME.findall(template))
    elif isinstance(template, Mapping):
        for key, value in template.items():
            yield from names(key)
            yield from names(value)
    elif isinstance(template, list):
        for value in template:
            yield from names(value)


def is_template(text: str) -> bool:
    """Whether the text contains a `${name}`."""
    return "${" in text and _NAME.search(text) is not None


def is_name(text: str) -> bool:
    """Whether the text is a single `${name}`."""
    return _NAME.fullmatch(text) is not None


def render(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with the values put in; ABSENT if one of them is missing.

    A single `${name}` becomes the value itself. Fields and items that are ABSENT are left out, and so is an object
    that ends up empty.
    """
    if isinstance(template, str):
        whole = _NAME.fullmatch(template)
        if whole:
            return values.get(whole[1].strip(), ABSENT)
        return fill(template, lambda name: values.get(name, ABSENT))
    if isinstance(template, Mapping):
        items = {key: render(value, values) for key, value in template.items()}
        kept = {key: value for key, value in items.items() if value is not ABSENT}
        return ABSENT if items and not kept else kept
    if isinstance(template, list):
        return [value for item in template if (value := render(item, values)) is not ABSENT]
    return template


def fill(template: str, value_of: Callable[[str], Any]) -> Any:
    """A text with the values put in as text; ABSENT if one of them is."""
    missing = False

    def text(match: re.Match[str]) -> str:
        nonlocal missing
        value = value_of(match[1].strip())
        missing = missing or value is ABSENT
        return plain(value)

    filled = _NAME.sub(text, template)
    return ABSENT if missing else filled


def plain(value: Any) -> str:
    """A value inside a text, or as a parameter of a URL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def overlay(base: Any, over: Any) -> Any:
    """`base` with `over` laid over it: objects are merged field by field, everything else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    return {**base, **{key: overlay(base[key], value) if key in base else value for key, value in over.items()}}


def format_time(time: datetime, form: Literal["iso", "epoch", "epoch_ms", "date"]) -> str | int | float:
    """A time in the form in which a partner takes it."""
    utc = time.astimezone(UTC)
    if form == "iso":
        # Every partner takes whole seconds. Rounded down: reading a second twice is better than missing one.
        return utc.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    if form == "date":
        return date.isoformat(utc.date())
    return int(utc.timestamp() * 1000) if form == "epoch_ms" else utc.timestamp()


# --- templates over a record


def text_of(record: Any, template: str) -> str | None:
    """A template filled from a record; None if a part of it is missing or null."""
    filled = fill(template, lambda name: ABSENT if (value := _simple(record, name)) is None else value)
    return None if filled is ABSENT else filled


def _simple(record: Any, selector: str) -> Any:
    """A value as part of a text; None for what cannot be one."""
    value = value_at(record, selector)
    # Python itself refuses to write out larger integers.
    too_large = isinstance(value, int) and value.bit_length() > _MAX_BITS
    return None if too_large or isinstance(value, dict | list) else value


def status_word(record: Any, selector: str) -> Any:
    """The status word that a selector finds, or a template in which missing parts are empty."""
    if not is_template(selector):
        return value_at(record, selector)
    found: list[Any] = []

    def part(name: str) -> Any:
        value = _simple(record, name)
        found.append(value)
        return value

    filled = fill(selector, part)
    return filled if any(value is not None for value in found) else None


def link_of(record: Any, template: str, known: Mapping[str, Any]) -> str | None:
    """A link for people: a field of the record, or a template whose ids are percent-encoded.

    `known` are values that do not come from the record: `ui`, and `options.name`.
    """
    if is_name(template) and template[2:-1].strip() not in known:
        own = first(record, [template[2:-1].strip()])
        return own if isinstance(own, str) else None

    def part(name: str) -> Any:
        if name == "ui":
            return known.get(name, "")
        value = known.get(name) if name in known else _simple(record, name)
        return ABSENT if value is None else quote(str(value), safe="", errors="replace")

    filled = fill(template, part)
    return None if filled is ABSENT else filled


REQUEST_NAMES = frozenset(
    "since until now id ids run_id run_ids page_size cursor offset end page before".split()  # noqa: SIM905 - reads better
)
"""What the templates of requests may name, besides `options.name`."""


class Model(BaseModel):
    """Unknown fields are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def checked_names(template: Any, known: frozenset[str], prefixes: tuple[str, ...]) -> Any:
    """The template, if everything that it names is known. Raises ValueError."""
    for name in names(template):
        if name.removesuffix(":path") not in known and not name.startswith(prefixes):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean ${{{close[0]}}}?" if close else f"known: {', '.join([*sorted(known), *prefixes])}"
            raise ValueError(f"there is no ${{{name}}}; {hint}")
    return template


def listed(value: Any) -> Any:
    """One value as a list of one."""
    return [value] if isinstance(value, str | dict) else value


Selectors = Annotated[list[str], BeforeValidator(listed, json_schema_input_type=str | list[str])]
"""One or several selectors or templates; the first that finds something counts."""
Required = Annotated[Selectors, Field(min_length=1)]
Match = dict[str, list[Any]]
"""Selectors, each with the values that it may find."""


StatusWord = Literal["running", "success", "failed", "canceled", "skipped", "drop"]


class Meaning(Model):
    """What a status word of the partner means."""

    status: StatusWord
    """A status of a run, or `drop` for a record that is not a run yet."""
    reason: str | None = None
    """What to show, if the word alone does not say it."""


def _texts(words: Any) -> Any:
    # YAML reads the status 10 as a number.
    if not isinstance(words, dict):
        return words
    return {str(word) if type(word) is int else word: meaning for word, meaning in words.items()}


class Status(Model):
    """Where the status word is, and what the words mean. An unknown word counts as running and is reported."""

    selector: Required
    """Selectors, or templates such as `${state_type}/${state_name}`, in which missing parts are empty. The first that
    finds something counts."""
    map: Annotated[dict[str, StatusWord | Meaning], BeforeValidator(_texts)]
    """What each word means; case does not matter. `COMPLETED/*` matches every word that starts with it."""
    label: Selectors = []
    """Where the word for people is, if it is a different one."""


class Duration(Model):
    """How long a run took, according to the partner."""

    selector: str
    unit: Literal["seconds", "milliseconds", "clock", "iso8601"] = "seconds"
    """`clock` is 01:02:03, `iso8601` is PT1H2M3S."""
    gives_finish: bool = False
    """Whether a run without an end time ended at its start plus this."""


class Runs(Model):
    """Where the runs are in a response, and where each field of a run is in a record."""

    data_selector: str = ""
    """The selector of the list of runs; empty if the response is the list."""
    missing_data_is_empty: bool = False
    """Whether a response without the list, or with null in its place, has no runs. Otherwise it is an error."""
    each: str | None = None
    """The selector of the runs in an item, if an item is not a run. They have the item's fields as well."""
    pipeline: Required
    """The id of the run's pipeline. Of several, the first that is in the inventory counts."""
    id: Required
    """The run's id."""
    status: Status
    started: Required
    """When the run started."""
    queued: Selectors = []
    """The newest of these times is when the run was queued, unless it is in the future."""
    finished: Selectors = []
    """When the run ended. Ignored while it is running."""
    duration: Duration | None = None
    rows: Selectors = []
    """How many rows the run processed."""
    error: Selectors = []
    """Why it failed."""
    reason: Selectors = []
    """More about its status, in the partner's words."""
    attempt: str | None = None
    """How often the run was tried under the same id: a number, or `#` of a list."""
    version_if_queued: bool = False
    """Whether an unfinished run without a version gets the time of the response, by the partner's clock."""
    version: Selectors = []
    """Times that change with every transition. The newest of all values orders what is known of a run."""
    url: str | None = None
    """A link for people: a template over the record, ${options.name}, and ${ui}, the address of the partner's pages."""
    times: Literal["iso", "epoch", "epoch_ms"] = "iso"
    """How times are written: ISO 8601 with an offset, or seconds or milliseconds since 1970."""
    nulls: list[Any] = []
    """Values that stand for a missing time: 0, "0001-01-01T00:00:00Z"."""
    only: Match = {}
    """Which records are runs: those in which every selector finds one of its values."""
    kinds: dict[RunKind, Match] = {}
    """Why a run was started: the first kind of which a selector finds one of its values, or anything if it has none."""
    will_retry: Match = {}
    """Which failed runs the platform is about to try again: those where a selector finds one of its values."""
    volatile: list[str] = []
    """Fields of a record that change while nothing happens to the run. They are not kept: each read would be news."""
