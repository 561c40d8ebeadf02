"""`python -m bench`: run the benchmark, print tables and write `.chm/bench.json`."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from bench import alerts, board, dashboards, queries, report, reports
from bench.large_ledger import make
from bench.loading import compare
from bench.measuring import machine
from bench.sizes import FULL, QUICK
from bench.sync import sync_rounds
from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.errors import ChmError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine

console = Console()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 2 if it cannot run, after printing one line to stderr."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--board", action="store_true", help="only the board's pages and the dashboards")
    parser.add_argument("--output", type=Path, default=Path(".chm/bench.json"), help="default: .chm/bench.json")
    options = parser.parse_args(argv)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        # Next to the result, and so on the same disk as the product's own data.
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.output.parent) as folder:
            results = (measure_board if options.board else measure)(Path(folder).resolve(), quick=options.quick)
    except (ChmError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    options.output.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    console.print(f"Written to {options.output}")
    return 0


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure everything on a new server in `folder`, configured like the embedded one. Prints results on the way."""
    sizes = QUICK if quick else FULL
    begin = time.perf_counter()
    with EmbeddedPostgres(folder / "home").running() as server:
        loading = compare(_database(server, "loading"), sizes, folder / "landing")
        sync = sync_rounds(_database(server, "syncing"), sizes, folder / "landing")
        results: dict[str, Any] = {
            "quick": quick,
            "ratios": {name: ratio["median"] for name, ratio in loading["ratios"].items()},
            "replay_dead_tuples": loading["replay_dead_tuples"],
            "loading": loading,
            "sync_10k": sync,
            "machine": _machine(server),
        }
        report.show(results, console)
        server.ensure_database("queries")
        results["queries"] = queries.run(server.url("queries"), queries.QUICK if quick else queries.FULL)
        engine = make_engine(server.url("queries"))
        results["alerts"] = alerts.run(engine, quick=quick)
        results["board"] = board.run(engine, quick=quick)
        results["dashboards"] = dashboards.run(engine, quick=quick)
        engine.dispose()
        server.ensure_database("reports")
        engine = make_engine(server.url("reports"))
        results["client_report"] = reports.run(engine, quick=quick)
        engine.dispose()
    results["seconds"] = round(time.perf_counter() - begin, 1)
    return results


def measure_board(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Measure the board's pages and the dashboards on a new server in `folder`. Prints results on the way."""
    with EmbeddedPostgres(folder / "home").running() as server:
        server.ensure_database("board")
        engine = make_engine(server.url("board"))
        make(engine, queries.QUICK if quick else queries.FULL)
        alerts.add_rules(engine)
        evaluate_rules(engine)
        results = {"quick": quick, "machine": _machine(server)}
        results |= {"board": board.run(engine, quick=quick), "dashboards": dashboards.run(engine, quick=quick)}
        engine.dispose()
    return results


def _database(server: EmbeddedPostgres, name: str) -> str:
    """Create and migrate a database, and return its URL."""
    server.ensure_database(name)
    engine = make_engine(server.url(name))
    schema.migrate(engine)
    engine.dispose()
    return server.url(name)


def _machine(server: EmbeddedPostgres) -> dict[str, Any]:
    engine = make_engine(server.url("postgres"))
    facts = machine(engine)
    engine.dispose()
    return facts


if __name__ == "__main__":
    sys.exit(main())
