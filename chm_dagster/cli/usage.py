"""What is wrong with a command line, in the words of all other errors: the argument, the trouble, the fix."""

import difflib
import re
from typing import Any

from typer.exceptions import TyperException

_MISSING_COMMAND = re.compile(r"No such command '(?P<name>.*)'\.(?: Did you mean (?P<close>.*)\?)?")


def explain(error: TyperException) -> str:
    """One line for a person. Empty where help was shown instead, because no argument was given."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    said = _what(error)
    enough = said.endswith("?") or context is None
    return said if enough else f"{said}; see `{context.command_path} --help`"


def _what(error: Any) -> str:
    message = _plain(error.message or "")
    unknown = _MISSING_COMMAND.fullmatch(error.message or "")
    if unknown is not None:
        close = f"; did you mean {unknown['close'].replace(chr(39), '')}?" if unknown["close"] else ""
        return f"{unknown['name']}: no such command{close}"
    if type(error).__name__ == "NoSuchOption":
        return f"{error.option_name}: no such option{_close_option(error)}"
    if type(error).__name__ == "BadOptionUsage":
        return message.replace(f"option '{error.option_name}' ", f"{error.option_name}: ")
    parameter = getattr(error, "param", None)
    if parameter is None:
        return message
    name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.display_name_raw
    if type(error).__name__ == "MissingParameter":
        return f"{name}: missing; it is required{_choices(parameter, error.ctx)}"
    return f"{name}: {_refused(message)}"


def _close_option(error: Any) -> str:
    """The option that holds what was typed, or that looks like it."""
    typed = error.option_name.lstrip("-")
    known = [name for parameter in error.ctx.command.params for name in parameter.opts] if error.ctx else []
    holding = [name for name in known if len(typed) > 2 and typed in name]
    close = holding or difflib.get_close_matches(error.option_name, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _refused(message: str) -> str:
    """Why a value was refused, without the quotes and the words of the library that refused it."""
    if "valid integer" in message:
        return "not a whole number"
    if "valid number" in message:
        return "not a number"
    value, found, words = message.partition(" is not one of ")
    if not found:
        return message
    known = words.replace("'", "").split(", ")
    close = difflib.get_close_matches(value.strip("'").lower(), known, n=1)
    return f"{value} is not one of {', '.join(known)}" + (f"; did you mean {close[0]}?" if close else "")


def _choices(parameter: Any, context: Any) -> str:
    said = parameter.get_missing_message(ctx=context)
    return f": {_plain(said[:1].lower() + said[1:])}" if said else ""


def _plain(message: str) -> str:
    text = " ".join(message.split()).removeprefix("Value error, ").rstrip(".")
    text = text.replace("Input should be", "must be").replace("hoose from: ", "hoose one of ")
    return text[:1].lower() + text[1:] if text[:2].istitle() else text
