"""The operator of CHM: who is notified of CHM's own blindness, and what waits to be sent to them.

State and messages are a file in CHM's home, not in the database: they are about CHM itself and no client's rule. The
file is replaced as a whole before anything is sent, so a crash repeats a message under the same id.
"""

import fcntl
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import msgspec

from chm_dagster.domain.alerts import Receiver
from chm_dagster.domain.blindness import ConnectionState, Note, Watch, look
from chm_dagster.domain.messages import Message

logger = logging.getLogger(__name__)
_NAMESPACE = UUID("4f6b1f0c-2a55-4c7a-9d2e-93a2c5c8a002")
MAX_WAITING = 100
"""Messages that are kept; a receiver that is gone for weeks gets the latest ones."""


class _State(msgspec.Struct, frozen=True):
    watch: Watch = Watch()
    outbox: tuple[Message, ...] = ()


class Operator:
    """The receiver of notices about CHM itself, and the messages to them that were not accepted yet."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self._folder, self._receiver = folder, receiver

    def look(
        self, connections: Sequence[Mapping[str, Any]], now: datetime, api: ConnectionState | None = None
    ) -> Sequence[Note]:
        """Look at the rows of the query `connections`, and at CHM's own `api` if jobs report to it.

        Keeps what is to be announced, and returns the notices.
        """
        with self._changing() as (state, save):
            found = [*map(_state_of, connections), *([] if api is None else [api])]
            watch, notes = look(state.watch, found, now)
            outbox = (*state.outbox, *([self._message(notes, now)] if notes else []))
            save(_State(watch, outbox[-MAX_WAITING:]))
            return notes

    def messages(self) -> list[Message]:
        """The messages that were not accepted yet, the oldest first."""
        return list(self._read().outbox)

    def delivered(self, message: Message) -> None:
        """The receiver has accepted the message. Those that could not be delivered before are dropped with it."""
        with self._changing() as (state, save):
            rest = (one for one in state.outbox if one.id != message.id and one.next_at is not None)
            save(msgspec.structs.replace(state, outbox=tuple(rest)))

    def postponed(self, message: Message) -> None:
        """An attempt has failed; `message` says what is next."""
        with self._changing() as (state, save):
            after = tuple(message if one.id == message.id else one for one in state.outbox)
            save(msgspec.structs.replace(state, outbox=after))

    def _message(self, notes: Sequence[Note], now: datetime) -> Message:
        channel, destination = self._receiver
        name = uuid5(_NAMESPACE, "/".join(note.key for note in notes))
        return Message(name, channel, destination, now, (), now, notes=tuple(notes))

    @property
    def _file(self) -> Path:
        return self._folder / "operator.json"

    def _read(self) -> _State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_State)
        except FileNotFoundError:
            return _State()
        except msgspec.DecodeError:
            logger.warning("%s cannot be read; what it knew is lost", self._file)
            return _State()

    @contextmanager
    def _changing(self) -> Iterator[tuple[_State, Any]]:
        """The state, and what replaces it, while no other process does the same."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "operator.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

            def save(state: _State) -> None:
                begun = self._file.with_suffix(".new")
                begun.write_bytes(msgspec.json.encode(state))
                begun.replace(self._file)

            yield self._read(), save


def _state_of(row: Mapping[str, Any]) -> ConnectionState:
    name = row["connection"] or f"{row['platform']} (default)"
    error, stale_at = row["error"] or "", row["oldest_stale_at"]
    return ConnectionState(
        name, row["pipelines"], row["oldest_read_at"], row["failing_since"], error, stale_at=stale_at
    )
