"""The output of `chm`: tables for people, JSON or YAML for programs, one line for an error or a usage mistake."""

import difflib
import enum
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from typer.exceptions import TyperException

from chm_dagster.domain.validation import issue, not_one_of, shown
from chm_dagster.presentation.columns import Column
from chm_dagster.presentation.rendering import describe, harmless, tabulate

if TYPE_CHECKING:
    from chm_dagster.domain.nouns import Noun

console = Console()
"""Answers."""
errors = Console(stderr=True)
"""Errors and progress: never mixed into output that a program reads."""


class Format(enum.StrEnum):
    """The output format. The default is a table on a terminal and JSON in a pipe."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Output format; by default a table on a terminal and JSON in a pipe.")
]


def chosen(wanted: Format | None) -> Format:
    """The requested format, or the default for this output."""
    return wanted or (Format.TABLE if sys.stdout.isatty() else Format.JSON)


def show(
    data: Any, wanted: Format | None, title: str = "", columns: Sequence[Column] = (), empty: str = "None."
) -> None:
    """Write rows (a list of mappings) or one mapping. A table shows only the given columns, or all if none are given.

    `empty` is what a person reads if there are no rows.
    """
    form = chosen(wanted)
    if form is Format.JSON:
        sys.stdout.write(orjson.dumps(data, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")
    elif form is Format.YAML:
        import yaml

        plain = orjson.loads(orjson.dumps(data, default=str))
        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    elif isinstance(data, Mapping):
        console.print(describe(data, title))
    else:
        console.print(tabulate(data, columns, console.width, title, empty))


def say(sentence: str, style: str = "") -> None:
    """Write one line for a person, without interpreting markup such as [red]."""
    console.print(harmless(sentence), style=style, markup=False, highlight=False, soft_wrap=True)


def answer(sentence: str, row: Mapping[str, Any], wanted: Format | None) -> None:
    """Write what a command has done: a sentence for a person, the result itself for a program."""
    if chosen(wanted) is Format.TABLE:
        say(sentence)
    else:
        show(row, wanted)


def warn(message: str) -> None:
    """Write a warning. The command was carried out nevertheless."""
    errors.print(f"chm: warning: {harmless(message)}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Write an error, line by line."""
    for line in message.splitlines():
        errors.print(f"chm: {harmless(line)}", style="red", markup=False, highlight=False, soft_wrap=True)


def as_row(item: "Noun", *first: tuple[str, Any]) -> dict[str, Any]:
    """The fields of a noun as a row, behind `first`."""
    return {**dict(first), **item.as_dict()}


def without(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The row without these columns."""
    left_out = frozenset(names)
    return {name: value for name, value in row.items() if name not in left_out}


def explain(error: TyperException) -> str:
    """One line for a person. Empty if help was shown instead, because no argument was given."""
    context: Any = getattr(error, "ctx", None)
    said = _explained(error, context)
    return said if not said or said.endswith("?") or context is None else f"{said}; see `{context.command_path} --help`"


def _explained(error: Any, context: Any) -> str:
    if isinstance(error, typer.BadParameter):
        return f"{_name_of(error.param)}: {_refused(error)}" if error.param is not None else error.message
    if hasattr(error, "possibilities"):
        return f"{shown(error.option_name)}: no such option{_close_option(error.option_name, context)}"
    if hasattr(error, "option_name"):
        return f"{error.option_name}: {_sentence(error).removeprefix(f'Option {error.option_name!r} ')}"
    message = _sentence(error)
    return message[:1].lower() + message[1:]


def _sentence(error: Any) -> str:
    return str(error.message or "").rstrip(".")


def _name_of(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    return str(max(parameter.opts, key=len) if is_option else parameter.display_name_raw)


def _refused(error: Any) -> str:
    """Why a value was refused. Typer validates with Pydantic, whose errors are the cause."""
    choices = error.param.type_descriptor.choices
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        # Only a missing parameter has none.
        return f"is required: one of {', '.join(map(str, choices))}" if choices else "is required"
    found = cause.errors(include_url=False)[0]
    return not_one_of(found["input"], choices) if choices else issue(found)


def _close_option(typed: str, context: Any) -> str:
    """A suggestion: the option that holds what was typed, or that looks like it."""
    name = typed.lstrip("-")
    known = [option for parameter in context.command.params for option in parameter.opts] if context else []
    holding = [option for option in known if len(name) > 2 and name in option]
    close = holding or difflib.get_close_matches(typed, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""
