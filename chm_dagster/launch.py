"""Runs the job `ingest` in this process, as a Dagster run that the UI shows. `chm ingest` starts it as a process.

Usage: `python -m chm_dagster.launch [--alone]`, with the run config of the op as JSON on standard input. Prints the
Dagster run's id. `--alone` means that nothing else runs on this Dagster instance: unfinished runs were cut off.
Exit code 0: all is well; 1: some pipelines failed or a gate is closed; 2: it could not start.
"""

import sys
from uuid import uuid4

import dagster as dg
import orjson

from chm_dagster.definitions import defs
from chm_dagster.defs.automation import INGEST, fail_leftovers, named, sync_partitions
from chm_dagster.errors import ChmError
from chm_dagster.installation import configured


def main() -> int:
    """Read the config, run the job, and report how it ended."""
    config = orjson.loads(sys.stdin.buffer.read())
    run_id = str(uuid4())
    try:
        with dg.DagsterInstance.get() as instance:
            if "--alone" in sys.argv[1:]:
                fail_leftovers(instance)
            warehouse = configured().warehouse()
            sync_partitions(instance, warehouse.engine)
            warehouse.close()
            print(run_id, flush=True)  # noqa: T201 - read by the process that started this one
            return 0 if _execute(instance, run_id, config) else 1
    except ChmError as error:
        print(f"chm: {error}", file=sys.stderr)  # noqa: T201 - a command-line program's own error
        return 2


def _execute(instance: dg.DagsterInstance, run_id: str, config: dict[str, object]) -> bool:
    prefix = configured().settings.dagster_prefix
    job = defs().get_job_def(named(INGEST, [] if prefix is None else [prefix]))
    run_config = {"ops": {"ingest_runs": {"config": config}}}
    return job.execute_in_process(run_config=run_config, instance=instance, run_id=run_id, raise_on_error=False).success


if __name__ == "__main__":
    sys.exit(main())
