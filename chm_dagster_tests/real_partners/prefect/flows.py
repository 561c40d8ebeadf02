"""One flow for each way a run can end, served by one process in the Prefect server's environment."""

import os
import signal
import time

from prefect import flow, serve
from prefect.context import get_run_context
from prefect.states import Completed


@flow
def succeeds() -> None:
    pass


@flow
def fails() -> None:
    raise ValueError("the orders table is locked")


@flow
def runs_long() -> None:
    time.sleep(600)


@flow
def skips() -> object:
    return Completed(message="nothing to do", name="Skipped")


@flow(retries=1, retry_delay_seconds=1)
def stumbles() -> None:
    if get_run_context().flow_run.run_count == 1:
        raise ConnectionError("reset by peer")


@flow
def recovers() -> None:
    # A manual retry makes it the second run.
    if get_run_context().flow_run.run_count == 1:
        raise ConnectionError("the source is down")


@flow(timeout_seconds=1)
def times_out() -> None:
    time.sleep(30)


@flow
def crashes() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    flows = (succeeds, fails, runs_long, skips, stumbles, recovers, times_out, crashes)
    serve(*(f.to_deployment(name="real") for f in flows))
