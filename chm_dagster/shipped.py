"""The files that ship beside the code: contracts, migrations, Dagster's configuration, deployment files.

In a clone they are at the top of the repository, where people read them. A wheel carries them inside the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "_shipped"


def checkout() -> Path | None:
    """The top of the clone that this code runs from; None if it was installed from a wheel."""
    return None if _IN_WHEEL.is_dir() else _PACKAGE.parent


def shipped(name: str) -> Path:
    """The path of a shipped file or folder, named as at the top of the repository."""
    return (checkout() or _IN_WHEEL) / name
