"""The common base of the models of clients, pipelines, runs and rules.

Each noun is one Pydantic model: all that CHM knows of such a thing, as the database holds it and the API returns it.
What may be sent to create or to change one is derived from it, so that a field is described once:

- a field without a marker may be set on creation and changed later;
- `Once[...]` may be set on creation only;
- `ReadOnly[...]` is CHM's own;
- `Accepts(...)` names another type for what may be sent, such as a slug where an id is kept.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Optional, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from chm_dagster.domain.validation import ExplainedModel, Problem, issue, refuse, shown

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)


class Access(enum.Enum):
    """Who sets a field, and when."""

    ONCE = "once"
    READ_ONLY = "read only"


ReadOnly = Annotated[T, Access.READ_ONLY]
Once = Annotated[T, Access.ONCE]


@dataclasses.dataclass(frozen=True, slots=True)
class Accepts:
    """The type of what may be sent for a field."""

    annotation: Any


class Noun(BaseModel):
    """A noun that CHM stores. Rows of the database are not validated again, because constraints guarantee them."""

    model_config = ConfigDict(frozen=True, from_attributes=True, json_schema_serialization_defaults_required=True)

    _words: ClassVar[Mapping[str, type[enum.StrEnum]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        words = {name: base_type(field) for name, field in cls.model_fields.items()}
        cls._words = {name: type_ for name, type_ in words.items() if issubclass(type_, enum.StrEnum)}

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        """One from the columns of a row, by name."""
        words = {name: vocabulary(row[name]) for name, vocabulary in cls._words.items() if row[name] is not None}
        return cls.model_construct(**{**row, **words})

    def as_dict(self) -> dict[str, Any]:
        """All stored fields by name."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def news(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The changes that make a difference."""
        return {name: value for name, value in changes.items() if value != getattr(self, name)}

    @classmethod
    def conflicts(cls, whole: Mapping[str, Any]) -> Iterable[Problem]:
        """The problems of combinations of fields, given all of them."""
        return ()

    @classmethod
    def check(cls, whole: Mapping[str, Any]) -> None:
        """Raises InputError for an invalid combination of fields."""
        refuse(cls.conflicts(whole))


class Input(ExplainedModel):
    """The input for a noun. Reading it finds all problems at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, fields: "Mapping[str, object] | Input", **context: Any) -> Self:
        """An input from fields by name; an input that was already read is returned unchanged. Raises InputError."""
        if isinstance(fields, cls):
            return fields
        try:
            return cls.model_validate(fields.given() if isinstance(fields, Input) else dict(fields), context=context)
        except ValidationError as error:
            refuse((shown(found["loc"][0]), issue(found)) for found in error.errors(include_url=False))
            raise

    @classmethod
    def known_fields(cls) -> tuple[str, ...]:
        """The names of the fields that a caller is meant to send."""
        return tuple(name for name, field in cls.model_fields.items() if Access.ONCE not in field.metadata)

    def given(self) -> dict[str, Any]:
        """The fields that were sent, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class New(Input):
    """The input to create a noun. Null counts as left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name not in cls.model_fields}


class Changes(Input):
    """The input to change a noun: null clears an optional field, and fields that are left out stay."""


def creation_of(noun: type[Noun]) -> Callable[[type[S]], type[S]]:
    """Gives a class the fields with which a noun may be created."""
    return _deriving(noun, _creatable)


def changes_to(noun: type[Noun]) -> Callable[[type[S]], type[S]]:
    """Gives a class the fields of a noun that may be changed."""
    return _deriving(noun, _changeable)


def without(noun: type[Noun], *names: str) -> Callable[[type[S]], type[S]]:
    """Gives a class all fields of a noun but these."""
    return _deriving(noun, lambda name, field: None if name in names else (field.annotation, field))


def _deriving(noun: type[Noun], derive: Callable[[str, FieldInfo], Any]) -> Callable[[type[S]], type[S]]:
    def fill(base: type[S]) -> type[S]:
        fields = {name: derive(name, field) for name, field in noun.model_fields.items()}
        wanted: dict[str, Any] = {name: field for name, field in fields.items() if field is not None}
        return create_model(base.__name__, __base__=base, __module__=base.__module__, __doc__=base.__doc__, **wanted)

    return fill


def _creatable(_: str, field: FieldInfo) -> Any:
    if Access.READ_ONLY in field.metadata:
        return None
    accepted = _accepted(field)
    if field.is_required() and Access.ONCE not in field.metadata:
        return accepted, _described(field)
    return Optional[accepted], _described(field, default_factory=lambda: None)  # noqa: UP045 - of a value


def _changeable(_: str, field: FieldInfo) -> Any:
    if Access.READ_ONLY in field.metadata:
        return None
    accepted: Any = _accepted(field)
    if Access.ONCE in field.metadata:
        # Taken, because callers send whole things back; whoever stores it refuses another value than the present one.
        accepted = Annotated[SkipJsonSchema[accepted], Access.ONCE]  # type: ignore[misc]
    return accepted, _described(field, default_factory=lambda: None)


def _accepted(field: FieldInfo) -> Any:
    for mark in field.metadata:
        if isinstance(mark, Accepts):
            return mark.annotation
    metadata = [mark for mark in field.metadata if not isinstance(mark, Access)]
    return Annotated[(field.annotation, *metadata, Field(json_schema_extra=field.json_schema_extra))]


def _described(field: FieldInfo, **more: Any) -> Any:
    return Field(description=field.description, examples=field.examples, **more)


def base_type(field: FieldInfo) -> type:
    """The plain type of a field's values: `int` for an optional number within limits."""
    annotation: Any = field.annotation
    while not isinstance(annotation, type):
        origin = get_origin(annotation)
        if isinstance(origin, type) and origin not in (Annotated, UnionType):
            return origin
        annotation = next((inner for inner in get_args(annotation) if inner is not type(None)), object)
    return annotation
