"""What all parts of a configuration share."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict

from chm_dagster.partners.declared.template import names

ASKED = frozenset(
    "since until now id ids run_id run_ids page_size cursor offset page before".split()  # noqa: SIM905 - reads better
)
"""What the templates of requests may name, besides options.name."""


class Model(BaseModel):
    """What all parts share: unknown fields are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def checked_names(template: Any, known: frozenset[str], families: tuple[str, ...]) -> Any:
    """The template, if everything that it names is known. Raises ValueError."""
    for name in names(template):
        if name not in known and not name.startswith(families):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean ${{{close[0]}}}?" if close else f"known: {', '.join([*sorted(known), *families])}"
            raise ValueError(f"there is no ${{{name}}}; {hint}")
    return template
