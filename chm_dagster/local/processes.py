"""Finds and ends every process of a stack, even if it has changed its parent or session, or outlived its supervisor.

A process belongs to a stack if it has the stack's id in its environment (children inherit it, even those that
start a session of their own or outlive their parent), runs in one of its sessions, or descends from such a process.

Run as a module, it is the guardian: the supervisor holds the only write end of a pipe, and the guardian reads it.
Whatever ends the supervisor closes the pipe; then all processes of the stack are ended, and Postgres if nothing else
uses it. After a clean stop there is nothing left to do, and the supervisor kills the guardian. It starts it with all
signals blocked that end the processes of a terminal. The argument is the home, for people who look at the process list.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import psutil

from chm_dagster.errors import ChmError
from chm_dagster.local.postgres import EmbeddedPostgres

STACK_ID = "CHM_STACK_ID"
"""The environment variable that marks the processes of one `chm up`. It is not a setting."""

_KILL_SECONDS = 10.0


def members(stack: str, sessions: Sequence[int] = ()) -> list[psutil.Process]:
    """The running processes of a stack, except the caller: those of the first session first, stray ones last."""
    ranks: dict[psutil.Process, int] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            session = os.getsid(process.pid)
            rank = sessions.index(session) if session in sessions else len(sessions)
            if rank == len(sessions) and process.environ().get(STACK_ID) != stack:
                continue
            for relative in (process, *process.children(recursive=True)):
                ranks[relative] = min(rank, ranks.get(relative, rank))
    return sorted((p for p in ranks if p.pid != os.getpid() and _alive(p)), key=lambda p: ranks[p])


def end(
    find: Callable[[], Sequence[psutil.Process]], *, grace: float, hasten: Callable[[], bool] = lambda: False
) -> None:
    """End everything that `find` returns, until it returns nothing: SIGTERM, and after `grace` seconds SIGKILL.

    `hasten` is polled; True ends the grace period. Gives up on processes that survive SIGKILL for 10 s.
    """
    deadline = time.monotonic() + grace
    asked: set[psutil.Process] = set()
    while (found := find()) and time.monotonic() < deadline + _KILL_SECONDS:
        late = time.monotonic() >= deadline or hasten()
        for process in found:
            with contextlib.suppress(psutil.Error):
                if late:
                    process.kill()
                elif process not in asked:
                    process.terminate()
            asked.add(process)
        psutil.wait_procs(found, timeout=0.2)


def same_process(pid: int, create_time: float) -> list[psutil.Process]:
    """The process that was recorded with this pid and start time, and its descendants; empty if it is gone.

    A pid that was given to another process since then does not count.
    """
    try:
        process = psutil.Process(pid)
        # Start times are relative to the boot time, which shifts slightly whenever the clock is set.
        if abs(process.create_time() - create_time) > 1:
            return []
        return [p for p in (process, *process.children(recursive=True)) if _alive(p)]
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


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
            continue  # truncated in the middle of a line, which is the end
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
