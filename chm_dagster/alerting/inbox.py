"""The inbox: a receiver that needs no configuration. Messages are files in CHM's home, and a page shows them."""

import os
from pathlib import Path

import msgspec

from chm_dagster.domain.messages import Message
from chm_dagster.errors import Transient
from chm_dagster.presentation.alerts import inbox_page

KEPT = 200
"""Messages that an inbox keeps; the oldest go first."""
PAGE = "index.html"


class Inbox:
    """A folder with one file for each message, named by its time and id, and a page of them."""

    def __init__(self, folder: Path, board_url: str | None = None) -> None:
        self._folder, self._board_url = folder, board_url

    @property
    def page(self) -> Path:
        """The page that shows the messages; it exists once there is one."""
        return self._folder / PAGE

    def put(self, message: Message) -> None:
        """Keep a message. A repeated one takes its own place. Raises Transient if the folder cannot be written."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{message.created_at:%Y%m%dT%H%M%S%fZ}-{message.id}.json"
            _write(self._folder / name, msgspec.json.encode(message))
            for old in self._files()[KEPT:]:
                old.unlink(missing_ok=True)
            _write(self.page, inbox_page(self.messages(), self._board_url).encode())
        except OSError as error:
            raise Transient(f"inbox: cannot write {self._folder} ({error.strerror})") from None

    def messages(self) -> list[Message]:
        """The messages, the latest first."""
        return [msgspec.json.decode(path.read_bytes(), type=Message) for path in self._files()]

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*Z-*.json"), reverse=True)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever reads meanwhile."""
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    begun.write_bytes(content)
    begun.replace(path)
