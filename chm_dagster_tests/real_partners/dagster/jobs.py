"""One job for each way a run can end. Loaded in the environment of the Dagster webserver."""

import time

import dagster as dg


@dg.op
def load(context: dg.OpExecutionContext) -> None:
    context.log_event(dg.AssetMaterialization("orders", metadata={"dagster/row_count": 1234}))


@dg.op
def boom() -> None:
    raise ValueError("the orders table is locked")


@dg.op
def wait() -> None:
    time.sleep(600)


@dg.op(out=dg.Out(is_required=False))
def maybe():  # type: ignore[no-untyped-def]
    yield from ()


@dg.op
def after(value: object) -> None:
    pass


@dg.op
def recover(context: dg.OpExecutionContext) -> None:
    if context.run.parent_run_id is None:
        raise ConnectionError("the source is down")


@dg.job
def succeeds() -> None:
    load()


@dg.job
def fails() -> None:
    boom()


@dg.job
def runs_long() -> None:
    wait()


@dg.job
def skips() -> None:
    after(maybe())


@dg.job
def recovers() -> None:
    recover()


@dg.job
def busy() -> None:
    load()


# One process per step would double the cost of a run.
defs = dg.Definitions(jobs=[succeeds, fails, runs_long, skips, recovers, busy], executor=dg.in_process_executor)
