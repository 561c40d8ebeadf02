"""Places in a record: `state.message`, `nodes.*.jobs.*.name`, `repair_history.#`."""

import functools
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from chm_dagster.partners.declared.template import ABSENT, fill, is_name, is_template

_MAX_BITS = 1_701
"""Of an integer of 512 digits."""


@functools.lru_cache(maxsize=4096)
def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def find(value: Any, path: str) -> list[Any]:
    """All values at this place, None among them where the field is there and holds null. `*` walks through lists."""
    found = [value]
    for part in _parts(path):
        found = [item for one in found for item in _step(one, part)]
        if not found:
            break
    return found


def _step(value: Any, part: str) -> Sequence[Any]:
    if isinstance(value, dict):
        return (value[part],) if part in value else ()
    if not isinstance(value, list):
        return ()
    if part == "*":
        return value
    if part == "#":
        return (len(value),)
    if part.isascii() and part.isdigit() and int(part) < len(value):
        return (value[int(part)],)
    return ()


def first(value: Any, paths: Sequence[str]) -> Any:
    """The first value at one of these places, or one of these templates filled, that is not null; None without any."""
    for path in paths:
        found = (
            text_of(value, path) if is_template(path) else next((v for v in find(value, path) if v is not None), None)
        )
        if found is not None:
            return found
    return None


def text_of(record: Any, template: str) -> str | None:
    """A template filled from a record; None if a part of it is missing or null."""

    filled = fill(template, lambda name: ABSENT if (value := _simple(record, name)) is None else value)
    return None if filled is ABSENT else filled


def _simple(record: Any, name: str) -> Any:
    """The value at a place as part of a text; None for what cannot be one."""
    value = next(iter(find(record, name)), None)
    # The digits of a larger integer are refused by Python itself.
    too_large = isinstance(value, int) and value.bit_length() > _MAX_BITS
    return None if too_large or isinstance(value, dict | list) else value


def word_of(record: Any, word: str) -> Any:
    """A status word: the value at a place, or a template whose missing parts are empty."""
    if not is_template(word):
        return next(iter(find(record, word)), None)
    parts: list[Any] = []

    def part(name: str) -> Any:
        value = _simple(record, name)
        parts.append(value)
        return value

    filled = fill(word, part)
    return filled if any(part is not None for part in parts) else None


def link_of(record: Any, template: str, ui: str) -> str | None:
    """A link for people: one of the record's own, or one made of its ids, percent-encoded."""
    if is_name(template) and template != "${ui}":
        own = first(record, [template[2:-1].strip()])
        return own if isinstance(own, str) else None

    def part(name: str) -> Any:
        if name == "ui":
            return ui
        value = _simple(record, name)
        if value is None:
            return ABSENT
        return quote(str(value), safe="", errors="replace")

    filled = fill(template, part)
    return None if filled is ABSENT else filled


def identifier(value: Any) -> str | None:
    """An id as text: a text that is not empty, or an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= _MAX_BITS else None
    return value if isinstance(value, str) and value else None
