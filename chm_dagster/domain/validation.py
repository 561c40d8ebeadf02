"""Validation errors in CHM's own words: the field, what is wrong with it, and what would be accepted.

Pydantic finds all problems of an input at once; this module says what they mean. A refused value is never repeated: it
may be a secret.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from chm_dagster.domain import values
from chm_dagster.errors import InputError

T = TypeVar("T")
Problem = tuple[str, str]
"""A field and what is wrong with it."""

_REFUSED = "refused"
_ISSUES: Mapping[str, str] = {
    "missing": "is required",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "string_type": "must be text, not {kind}",
    "string_sub_type": "must be text, not {kind}",
    "string_unicode": "must be plain text, without half a surrogate pair",
    "int_type": "must be a whole number, not {kind}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of at most 4,300 digits",
    "float_type": "must be a number, not {kind}",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be greater than {gt}",
    "less_than": "must be less than {lt}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be an object, not {kind}",
    "list_type": "must be a list, not {kind}",
}
"""What Pydantic's types of errors mean. `{kind}` is what was sent."""


class ExplainedModel(BaseModel):
    """A model whose validation errors are in CHM's words."""

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, fields: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what Pydantic finds in CHM's words, in the order in which the fields were sent.

        Missing fields come last: a misspelt name may be the reason.
        """
        try:
            return handler(fields)
        except ValidationError as error:
            found = {str(problem["loc"][0]): problem for problem in error.errors(include_url=False) if problem["loc"]}
            if not found:
                raise
            places = {str(name): place for place, name in enumerate(fields)}
            known = cls.known_fields()
            problems = [
                InitErrorDetails(type=refusal(issue(found[name], known)), loc=(name,), input=found[name]["input"])
                for name in sorted(found, key=lambda name: places.get(name, len(places)))
            ]
            raise ValidationError.from_exception_data(cls.__name__, problems) from None

    @classmethod
    def known_fields(cls) -> tuple[str, ...]:
        """The names of the fields that a caller is meant to send."""
        return tuple(cls.model_fields)


def issue(error: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """What one of Pydantic's errors says; `known` are the fields that would be accepted."""
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if kind == _REFUSED:
        return str(context["issue"])
    if kind in ("extra_forbidden", "invalid_key"):
        return unknown_field(str(error["loc"][-1]), known)
    if value is None and kind != "missing":
        return "cannot be cleared; leave it out to keep its value"
    if kind in ("enum", "literal_error"):
        return not_one_of(value, re.findall("'([^']*)'", context["expected"]))
    if kind == "too_long" and isinstance(value, str):  # a limit that stands behind a validator of ours
        kind = "string_too_long"
    if kind in _ISSUES:
        kind = "int_from_float" if kind == "int_type" and isinstance(value, float) else kind
        limits = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in context.items()}
        return _ISSUES[kind].format(**limits, kind=values.kind(value))
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def unknown_field(name: str, known: Iterable[str]) -> str:
    """The issue of an unknown field."""
    names = tuple(known)
    return f"unknown field; {did_you_mean(name, names) or 'known fields are ' + ', '.join(names)}"


def not_one_of(value: object, choices: Iterable[str]) -> str:
    """The issue of a value that is none of the choices."""
    words = [str(choice) for choice in choices]
    if not isinstance(value, str):
        return f"must be one of {', '.join(words)}, not {values.kind(value)}"
    close = did_you_mean(value, words)
    return f"must be one of {', '.join(words)}{close and f'; {close}'}"


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """A suggestion, empty if nothing comes close."""
    close = difflib.get_close_matches(value[:100].lower(), list(choices), n=1)
    return f"did you mean {close[0]}?" if close else ""


def shown(value: object) -> str:
    """A sent value in a short form that is safe in a message."""
    text = str(value)[:100]
    return text if text.isprintable() else repr(text)[1:-1]


def refuse(problems: Iterable[Problem]) -> None:
    """Raises InputError if there is any problem."""
    found = list(problems)
    if found:
        (field, issue_), *others = found
        raise InputError(field, issue_, *others)


def validator(read: Callable[[Any, str], T]) -> Callable[[Any], T]:
    """A function for Pydantic's validators from one that takes a value and a field, and raises InputError."""

    def validate(value: Any) -> T:
        try:
            return read(value, "")
        except InputError as refused:
            raise refusal(refused.issue) from None

    return validate


def refusal(issue_: str) -> PydanticCustomError:
    """The error that a validator of ours raises."""
    return PydanticCustomError(_REFUSED, "{issue}", {"issue": issue_})


def read_value(annotation: Any, value: object, field: str) -> Any:
    """A single value, validated as this type. Raises InputError."""
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        raise InputError(field, issue(error.errors(include_url=False)[0])) from None


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)
