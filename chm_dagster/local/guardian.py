"""Cleans up after a `chm up` that could not do it: killed, crashed, or its terminal torn away.

The supervisor holds the only write end of a pipe, and this process reads it. Whatever ends the supervisor closes the
pipe; then all processes of the stack are ended, and Postgres if nobody else uses it. After a stop in order there is
nothing left to guard, and the supervisor kills this process. It starts it with all signals blocked that end what runs
in a terminal. The argument is the home, for people who read a list of processes.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import IO

from chm_dagster.errors import ChmError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.processes import end, members

GRACE_SECONDS = 8.0


def watch(lines: IO[str]) -> None:
    """Read the supervisor's notes, one JSON object a line, until the pipe ends; then clean up.

    `{"stack": id}` comes first, `{"session": pid}` and `{"gone": pid}` with each child, `{"postgres": home,
    "version": n}` when the server is used.
    """
    stack, sessions, servers = "", [], []
    for line in lines:
        try:
            note = json.loads(line)
        except ValueError:
            continue  # cut off in the middle of a line, which is itself the end
        stack = note.get("stack", stack)
        if "session" in note:
            sessions.append(int(note["session"]))
        if note.get("gone") in sessions:
            sessions.remove(note["gone"])
        if "postgres" in note:
            servers.append(EmbeddedPostgres(Path(note["postgres"]), version=note["version"]))
    end(lambda: members(stack, sessions[::-1]), grace=GRACE_SECONDS)
    for server in servers:
        with contextlib.suppress(ChmError):
            server.release()


if __name__ == "__main__":
    watch(sys.stdin)
