"""Finding and ending every process of a stack, however far it has wandered off.

A process belongs to a stack if it carries the stack's id in its environment (children inherit it, also those that
start a session of their own or outlive their parent), runs in one of its sessions, or descends from such a process.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence

import psutil

STACK_ID = "CHM_STACK_ID"
"""The environment variable that marks the processes of one `chm up`. A mark, not a setting."""

_KILL_SECONDS = 10.0


def members(stack: str, sessions: Sequence[int] = ()) -> list[psutil.Process]:
    """The living processes of a stack, except the caller: those of the first session first, strays last."""
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
    """End all that `find` finds, until it finds nothing: SIGTERM, and after `grace` seconds SIGKILL.

    `hasten` is asked again and again; True ends the grace. Gives up on processes that survive SIGKILL for 10 s.
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
    """The process that was noted with this pid and start time, and its descendants; empty if it is gone.

    A pid that was given to another process since then does not count.
    """
    try:
        process = psutil.Process(pid)
        # The boot time that start times hang on moves a little whenever the clock is set.
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
