"""Run the ingest job here and now, as a Dagster run that the UI shows; `chm ingest` starts this in a process.

Usage: `python -m chm_dagster.launch '<IngestConfig as JSON>' [--alone]`. Prints the Dagster run's id. `--alone` says
that nothing else runs on this Dagster instance, so that what looks unfinished was cut off. Exit code 0: all is well,
1: some pipelines failed or a gate is closed, 2: it could not start.
"""

import os
import sys
from uuid import uuid4

import dagster as dg
import orjson

from chm_dagster.definitions import defs
from chm_dagster.defs.ingestion.automation import fail_leftovers
from chm_dagster.defs.partitions import sync_partitions
from chm_dagster.settings import Settings
from chm_dagster.warehouse.engine import make_engine


def main() -> int:
    """Read the config from the command line, run, and say how it went."""
    config = orjson.loads(sys.argv[1])
    run_id = str(uuid4())
    url = Settings.from_env(os.environ).database_url
    assert url is not None  # noqa: S101 - `chm ingest` sets it
    with dg.DagsterInstance.get() as instance:
        if "--alone" in sys.argv[2:]:
            fail_leftovers(instance)
        sync_partitions(instance, make_engine(url))
        print(run_id, flush=True)  # noqa: T201 - the answer to whoever started this process
        result = (
            defs()
            .get_job_def("ingest")
            .execute_in_process(
                run_config={"ops": {"ingest_runs": {"config": config}}},
                instance=instance,
                run_id=run_id,
                raise_on_error=False,
            )
        )
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main())
