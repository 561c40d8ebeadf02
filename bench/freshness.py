"""`python -m bench.freshness`: how long it takes from a run's end at the partner to its row, and to the message about
it that its receiver has accepted, on a whole running stack.

A partner with 100 connections of 100 pipelines each is served by this process, and so are the receivers: each client
has a rule that notifies a webhook of its own. `chm up` runs as a person starts it, with its default schedule and
sensors. Then runs fail, one at a time at random pipelines, at random moments. What is measured is when each is in the
ledger, by polling for it, and when the message arrives. The figures hold for a partner that answers at once.
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bench.material import utc_now
from chm_dagster.alerting.channels import variable_name
from chm_dagster.domain.pipelines import PipelineType, Platform
from chm_dagster.installation import DATABASE
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.inventory.pipelines import NewPipeline, add_pipelines

CONNECTIONS, PIPELINES = 100, 100
SEED = 7


RULES = """
INSERT INTO alert_rules (client_id, rule_type, channel, destination)
SELECT id, 'on_failure', 'webhook', slug FROM clients
"""


class Outside:
    """All the partners, which list the runs of their pipelines that were updated since a time, and all receivers.

    `heard` has the time at which the message about each pipeline arrived.
    """

    def __init__(self) -> None:
        self._runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._lock = threading.Lock()
        self.heard: dict[str, datetime] = {}
        hooks = Route("/hooks/{client}", self._hear, methods=["POST"])
        self.app = Starlette(routes=[hooks, Route("/{connection}/runs", self._list)])

    def fail(self, connection: str, pipeline: str, run: str) -> datetime:
        """Let a run fail now; the time."""
        now = utc_now()
        begin = (now - timedelta(minutes=5)).isoformat()
        record = {"id": run, "pipeline_id": pipeline, "status": "failed", "started_at": begin}
        with self._lock:
            self._runs[connection].append({**record, "finished_at": now.isoformat(), "updated_at": now.isoformat()})
        return now

    async def _hear(self, request: Request) -> Response:
        for notice in orjson.loads(await request.body())["data"]["notices"]:
            self.heard.setdefault(notice["pipeline"], utc_now())
        return Response(status_code=204)

    async def _list(self, request: Request) -> JSONResponse:
        since = request.query_params.get("updated_since")
        moment = datetime.fromisoformat(since) if since else datetime.min.replace(tzinfo=UTC)
        with self._lock:
            runs = list(self._runs[request.path_params["connection"]])
        return JSONResponse(
            {"runs": [r for r in runs if datetime.fromisoformat(r["updated_at"]) >= moment], "next_cursor": None}
        )


def names() -> Iterator[tuple[str, str]]:
    """Each connection and pipeline."""
    for connection in range(CONNECTIONS):
        for pipeline in range(PIPELINES):
            yield f"c{connection:02}", f"c{connection:02}-p{pipeline:02}"


def prepare(home: Path, base_url: str) -> Path:
    """An inventory of 10,000 pipelines with their rules in the embedded database, and partners.yaml."""
    with EmbeddedPostgres(home).running() as server:
        server.ensure_database(DATABASE)
        engine = make_engine(server.url(DATABASE))
        schema.migrate(engine)
        add_pipelines(
            engine,
            (
                NewPipeline(
                    client_name=connection,
                    client_slug=connection,
                    name=pipeline,
                    slug=pipeline,
                    platform=Platform.VENDOR_API,
                    pipeline_type=PipelineType.INGESTION,
                    external_id=pipeline,
                )
                for connection, pipeline in names()
            ),
        )
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE pipelines SET connection = split_part(external_id, '-', 1)"))
            connection.execute(sa.text(RULES))
        engine.dispose()
    file = home.parent / "partners.yaml"
    connections = {c: {"api": "generic", "base_url": f"{base_url}/{c}"} for c, _ in names()}
    file.write_text(yaml.safe_dump({"connections": connections}), encoding="utf-8")
    return file


def free_port() -> str:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def stack(home: Path, partners_file: Path, base_url: str) -> Iterator[None]:
    """`chm up`, once it serves; ended at the end."""
    environment = {
        **os.environ,
        **{f"CHM_WEBHOOK_URL_{variable_name(c)}": f"{base_url}/hooks/{c}" for c, _ in names()},
        "CHM_HOME": str(home),
        "CHM_PARTNERS_FILE": str(partners_file),
        "CHM_SANDBOX": "off",
        "CHM_UI_PORT": free_port(),
        "CHM_API_PORT": free_port(),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "chm_dagster.cli.main", "up"], env=environment, stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        try:
            for line in up.stdout:
                if "Ctrl-C" in line:
                    break
            threading.Thread(target=up.stdout.read, daemon=True).start()
            yield
        finally:
            up.terminate()
            up.wait(60)


def measure(home: Path, outside: Outside, runs: int, pause: float) -> tuple[list[float], list[float]]:
    """Seconds from each run's end to its row, and to the message that arrived."""
    chance = random.Random(SEED)
    engine = make_engine(EmbeddedPostgres(home).url(DATABASE))
    ended: dict[str, tuple[str, datetime]] = {}
    seen: dict[str, float] = {}
    query = sa.text("SELECT external_run_id FROM runs WHERE external_run_id = ANY(:ids)")
    # Each pipeline fails once. More runs than this on a client's pipelines would be held back: 12 messages in an hour.
    turns = iter(chance.sample(list(names()), runs))
    due = time.monotonic()
    give_up = time.monotonic() + runs * pause + 660
    while (len(seen) < runs or len(outside.heard) < runs) and time.monotonic() < give_up:
        if len(ended) < runs and time.monotonic() >= due:
            (connection, pipeline), run = next(turns), f"fresh-{len(ended)}"
            ended[run] = f"{connection}/{pipeline}", outside.fail(connection, pipeline, run)
            due = time.monotonic() + chance.uniform(0, 2 * pause)
        with engine.connect() as session:
            for run in session.scalars(query, {"ids": [run for run in ended if run not in seen]}):
                seen[run] = (utc_now() - ended[run][1]).total_seconds()
        time.sleep(0.1)
    engine.dispose()
    missing = runs - len(seen), runs - len(outside.heard)
    if any(missing):
        raise AssertionError(f"of {runs} runs, {missing[0]} are not in the ledger and {missing[1]} were not announced")
    heard = [(outside.heard[pipeline] - end).total_seconds() for pipeline, end in ended.values()]
    return sorted(seen.values()), sorted(heard)


def spread(seconds: list[float]) -> dict[str, float]:
    """Of sorted seconds."""
    return {
        "p50": round(seconds[len(seconds) // 2], 1),
        "p95": round(seconds[int(len(seconds) * 0.95)], 1),
        "max": round(seconds[-1], 1),
    }


def main() -> int:
    """Measure, print, and write `.chm/freshness.json`."""
    parser = argparse.ArgumentParser(prog="python -m bench.freshness", description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--pause", type=float, default=5.0, help="mean seconds between two ends")
    options = parser.parse_args()
    outside = Outside()
    Path(".chm").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fresh-", dir=".chm") as folder, serve_in_thread(outside.app) as base_url:
        home = Path(folder).resolve() / "home"
        with stack(home, prepare(home, base_url), base_url):
            rows, messages = measure(home, outside, options.runs, options.pause)
    found = {
        "pipelines": CONNECTIONS * PIPELINES,
        "connections": CONNECTIONS,
        "runs": len(rows),
        "seconds to the row": spread(rows),
        "seconds to the accepted message": spread(messages),
    }
    Path(".chm/freshness.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
