"""Values for the parameters of named queries: what Postgres would refuse is refused here, by the parameter's name."""

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from chm_dagster.domain.runs import INT_MAX
from chm_dagster.domain.values import clean_text
from chm_dagster.errors import InputError


def argument(name: str, type_: str, choices: Sequence[str], value: Any) -> Any:
    """The value as the database takes it; None stays None. Raises InputError for what is not of the type."""
    if value is None:
        return None
    if choices and value not in choices:
        raise InputError(name, f"must be one of {', '.join(choices)}")
    accepts, wanted = _TYPES[type_]
    if not accepts(value):
        raise InputError(name, f"must be {wanted}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and clean_text(value) == value


def _is_time(value: Any) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -INT_MAX <= value <= INT_MAX


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text": (_is_text, "text without NUL or half a surrogate pair"),
    "timestamptz": (_is_time, "a time with a zone"),
    "float8": (_is_number, "a finite number"),
    "int4": (_is_integer, f"an integer of at most {INT_MAX}"),
}
