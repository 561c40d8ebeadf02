"""Commands whose modules are imported when they are called, not when `chm` starts."""

import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


@dataclasses.dataclass(frozen=True, slots=True)
class Deferred:
    """Where a command is (`module:name` of a function or a Typer app), and what the list of commands says of it."""

    place: str
    help: str
    panel: str

    def load(self, name: str) -> Any:
        """The command itself."""
        module, _, attribute = self.place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        alone = typer.Typer(add_completion=False)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name)
            return _reflowed(typer.main.get_group(alone).commands[name])
        alone.command(name)(found)
        return _reflowed(typer.main.get_command(alone))


def _reflowed(command: Any) -> Any:
    """The command with help whose paragraphs fill the terminal's lines, not those of the docstring."""
    if command.help:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help)
    for inner in getattr(command, "commands", {}).values():
        _reflowed(inner)
    return command


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and help, and loads the one that is called."""

    deferred: ClassVar[Mapping[str, Deferred]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, command in self.deferred.items():
            self.add_command(TyperCommand(name, help=command.help, rich_help_panel=command.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name, now for real."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.deferred:
            command = self.deferred[name].load(name)
        return name, command, rest
