"""Templates: texts with `${name}` in them, in requests and over records."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, Final, Literal

_NAME = re.compile(r"\$\{([^${}]*)\}")


class _Absent:
    """A value that is not known; whatever it is put into is left out."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


def names(template: Any) -> Iterator[str]:
    """The names of all `${name}` in a template, wherever in a nested value."""
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
    """Whether there is anything to put in."""
    return _NAME.search(text) is not None


def is_name(text: str) -> bool:
    """Whether it is nothing but one `${name}`."""
    return _NAME.fullmatch(text) is not None


def render(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with the values put in; ABSENT where one of them is not known.

    A text that is nothing but one `${name}` becomes the value itself. Fields and items that are ABSENT are left out,
    and so is an object that has become empty by that.
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
    """A text with the values in it as text; ABSENT if one of them is."""
    missing = False

    def text(match: re.Match[str]) -> str:
        nonlocal missing
        value = value_of(match[1].strip())
        missing = missing or value is ABSENT
        return plain(value)

    filled = _NAME.sub(text, template)
    return ABSENT if missing else filled


def plain(value: Any) -> str:
    """A value within a text, or as a parameter of a URL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def overlaid(base: Any, over: Any) -> Any:
    """`base` with `over` laid over it: objects are merged field by field, everything else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    return {**base, **{key: overlaid(base[key], value) if key in base else value for key, value in over.items()}}


def written(moment: datetime, form: Literal["iso", "epoch", "epoch_ms", "date"]) -> str | int | float:
    """A time as a partner wants it asked for."""
    utc = moment.astimezone(UTC)
    if form == "iso":
        # Whole seconds, which every partner takes. Cut off, not rounded: rather a second too much than one too little.
        return utc.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    if form == "date":
        return date.isoformat(utc.date())
    return int(utc.timestamp() * 1000) if form == "epoch_ms" else utc.timestamp()
