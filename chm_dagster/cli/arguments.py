"""Arguments and options that several commands share, so that they mean the same everywhere."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from chm_dagster.cli import completion
from chm_dagster.domain.inventory import Environment
from chm_dagster.errors import InputError

ClientArgument = Annotated[
    str, typer.Argument(metavar="CLIENT", help="The client's slug or id.", autocompletion=completion.clients)
]
PipelineArgument = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE", help="The pipeline as client/pipeline, or its id.", autocompletion=completion.pipelines
    ),
]
ClientOption = Annotated[
    str | None,
    typer.Option("--client", metavar="CLIENT", help="Only this client.", autocompletion=completion.clients),
]
EnvironmentOption = Annotated[Environment | None, typer.Option("--environment", help="Only this environment.")]
AllOption = Annotated[bool, typer.Option("--all", help="Also what is disabled.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most this many.")]
ExitZeroOption = Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 whatever was found.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: none of them means anything by being left out."""
    return {name: value for name, value in options.items() if value is not None}


def with_cleared(changes: Mapping[str, Any], clear: Iterable[str]) -> dict[str, Any]:
    """The changes and, as None, the fields to clear, spelled like options or like fields.

    Raises InputError for a field that is both set and cleared, and if there is nothing to change.
    """
    cleared = [name.strip().removeprefix("--").replace("-", "_") for name in clear]
    for name in cleared:
        if name in changes:
            raise InputError(name, "is set and cleared at once; leave one of the two out")
    if not changes and not cleared:
        raise InputError("options", "nothing to change; give one of those that --help lists")
    return {**changes, **dict.fromkeys(cleared)}
