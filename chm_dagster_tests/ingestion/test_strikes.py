"""Strikes: an ingestion is killed, cut or robbed of its database at one point after another, and nothing is ever lost.

A relay stands between the ingestion and everything it talks to. At the n-th piece of data that passes, in either
direction, it strikes; n grows until an ingestion ends unharmed. After each strike the partner moves on, one good sync
follows, and the ledger must equal an independent model: what the partner's histories say, run by run.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import sqlalchemy as sa

from chm_dagster.http.client import HttpClient
from chm_dagster.ingestion.ingest import ingest
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.partners.connections import partner
from chm_dagster.partners.partners_file import connections_of
from chm_dagster.partners.port import Partner
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.yaml_document import parse
from chm_dagster_tests.factories import add_pipeline, rows
from chm_dagster_tests.http.fault_server import FaultServer, Reply, Request, head, json_reply, then_close, then_reset
from chm_dagster_tests.http.setup import Slept
from chm_dagster_tests.ingestion.scene import serving

pytestmark = pytest.mark.slow
NAMES = ("one", "two")
RUNS, PAGE = 60, 15
STRIDE = 149
CLEAR_ERROR = 3

# Imports everything once, and then runs each ingestion in a process of its own.
ZYGOTE = """
import os, sys
from pathlib import Path
from chm_dagster.errors import ChmError
from chm_dagster_tests.ingestion.test_strikes import sync
for line in sys.stdin:
    url, folder, *addresses = line.split()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sync(url, Path(folder), dict(zip(addresses[::2], addresses[1::2])))
            code = 0
        except ChmError:
            code = 3
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def sync(url: str, folder: Path, addresses: Mapping[str, str]) -> dict[str, Any]:
    """One ingestion of everything. Only the waits between attempts are left out. Returns its report."""
    engine = make_engine(url)
    text = "connections:\n" + "".join(
        f"  {name}: {{api: generic, base_url: {address!r}}}\n" for name, address in addresses.items()
    )
    quick = partial(HttpClient, sleep=Slept(), random=lambda: 0.0)
    partners: dict[str, Partner] = {
        one.name: partner(one, {}, quick) for one in connections_of(parse(text, "partners.yaml"))
    }
    try:
        report = ingest(engine, partners, ingested_pipelines(engine), LandingZone(folder).open(f"p{os.getpid()}"))
        return report.as_dict()
    finally:
        engine.dispose()


class History:
    """The model: a partner whose runs are known exactly, and that moves on. Each of its pages has `PAGE` runs."""

    def __init__(self) -> None:
        self.step = 0

    def runs(self) -> dict[str, str]:
        """The status of every run. With each step two runs are new, and the last ones of the step before end."""
        begun = RUNS + 2 * self.step
        return {
            f"r{n:04}": "running" if n >= begun - 2 else ("failed" if n % 7 == 0 else "success") for n in range(begun)
        }

    def __call__(self, request: Request) -> Reply:
        # No list of the runs of all pipelines: each has requests of its own.
        return json_reply(self.page(request)) if "/pipelines/" in request.path else json_reply({}, 404)

    def page(self, request: Request) -> dict[str, Any]:
        """The response to a request for a page of runs."""
        since = request.query.get("updated_since", "")
        found = [one for one in self.records() if one["updated_at"] >= since]
        start = int(request.query.get("cursor", 0))
        return {
            "runs": found[start : start + PAGE],
            "next_cursor": str(start + PAGE) if start + PAGE < len(found) else None,
        }

    def records(self) -> list[dict[str, Any]]:
        """All runs as the partner sends them. One starts every minute and takes three."""
        return [self._record(int(run_id[1:]), run_id, status) for run_id, status in self.runs().items()]

    def _record(self, minute: int, run_id: str, status: str) -> dict[str, Any]:
        begin, end = _at(minute), _at(minute + 3)
        is_open = status == "running"
        return {
            "id": run_id,
            "status": status,
            "started_at": begin,
            "finished_at": None if is_open else end,
            "updated_at": begin if is_open else end,
            "error_message": None if is_open else "x" * 400,
        }


def _at(minute: int) -> str:
    return f"2026-03-01T{minute // 60:02}:{minute % 60:02}:00Z"


class Relay:
    """Passes on what two sides send each other, and reports each piece before it goes on."""

    def __init__(self, target: Callable[[], Any], passing: Callable[..., bool]) -> None:
        self._target, self._passing = target, passing
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(30)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._target()
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pump(reader, far_writer, writer), self._pump(far_reader, writer, far_writer))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not self._passing(writer, back):
                    break
                writer.write(data)
                await writer.drain()
        writer.close()


class Attack:
    """Counts the pieces that pass, and strikes at the n-th. `strike` says whether that piece still arrives."""

    def __init__(self, strike: Callable[[], bool]) -> None:
        self._strike = strike
        self._at: int | None = None
        self._lock = threading.Lock()
        self.passed = 0
        self.struck = False

    def arm(self, at: int | None) -> None:
        """Count from the beginning, and strike at this piece; never if None."""
        with self._lock:
            self._at, self.passed, self.struck = at, 0, False

    def passing(self, *sides: asyncio.StreamWriter) -> bool:
        with self._lock:
            self.passed += 1
            if self.passed != self._at:
                return True
            self.struck = True
            arrives = self._strike()
            if not arrives:
                for side in sides:
                    side.transport.abort()
            return arrives


class Scene:
    """A ledger, partners, a relay before each, and a process that ingests through them."""

    def __init__(self, url: str, folder: Path, strike: Callable[["Scene"], bool]) -> None:
        self.url, self.folder = url, folder
        self.engine = make_engine(url)
        self.history = History()
        self.attack = Attack(lambda: strike(self))
        self.child = 0
        for name in NAMES:
            pipeline = add_pipeline(self.engine, name)
            with self.engine.begin() as connection:
                connection.execute(
                    sa.text("UPDATE pipelines SET connection = :name WHERE id = :id"), {"name": name, "id": pipeline.id}
                )

    @contextlib.contextmanager
    def at_work(self, *, through_partner: bool = True) -> Iterator[None]:
        query = parse_qs(urlsplit(self.url).query)
        socket_path = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        command = [sys.executable, "-c", ZYGOTE]
        with contextlib.ExitStack() as stack:
            server: FaultServer = stack.enter_context(serving(self.history))
            self.direct = dict.fromkeys(NAMES, server.base_url)
            database = Relay(partial(asyncio.open_unix_connection, socket_path), self.attack.passing)
            stack.callback(database.close)
            # The relay speaks for the server: what libpq needs to find it by TCP.
            self.relayed_url = self.url.replace(
                urlsplit(self.url).query, f"host=127.0.0.1&port={database.port}&sslmode=disable"
            )
            self.relayed = self.direct
            if through_partner:
                web = Relay(partial(asyncio.open_connection, "127.0.0.1", server.port), self.attack.passing)
                stack.callback(web.close)
                self.relayed = dict.fromkeys(NAMES, f"http://127.0.0.1:{web.port}/base")
            self._zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(self._zygote)
            stack.callback(self._zygote.kill)
            yield

    def ingest_under_attack(self, at: int | None) -> int:
        """The exit code of an ingestion that is struck at this piece: 0, 3 for a clear error, negative if killed."""
        assert self._zygote.stdin is not None and self._zygote.stdout is not None
        words = [self.relayed_url, str(self.folder), *(word for pair in self.relayed.items() for word in pair)]
        self.child = 0
        self.attack.arm(at)
        self._zygote.stdin.write(" ".join(words) + "\n")
        self._zygote.stdin.flush()
        self.child = int(self._zygote.stdout.readline())
        return int(self._zygote.stdout.readline())

    def sync_well(self) -> dict[str, Any]:
        """An undisturbed sync."""
        return sync(self.url, self.folder, self.direct)

    def differences(self) -> list[str]:
        """In what the ledger differs from the model; nothing may be lost, doubled or different."""
        query = """SELECT p.slug, r.external_run_id AS run, r.status, r.finished_at IS NULL AS is_open
                   FROM runs AS r JOIN pipelines AS p ON p.id = r.pipeline_id"""
        found = [(row["slug"], row["run"], row["status"], row["is_open"]) for row in rows(self.engine, query)]
        wanted = [
            (name, run, status, status == "running") for name in NAMES for run, status in self.history.runs().items()
        ]
        return sorted(map(str, set(found) ^ set(wanted))) + [f"{len(found)} rows"] * (len(found) != len(wanted))

    def forget(self) -> None:
        """Start again with an empty ledger."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE runs")
            connection.exec_driver_sql(
                "UPDATE pipelines SET synced_through = NULL, observed_through = NULL, sync_attempted_at = NULL,"
                " sync_failing_since = NULL, sync_error = NULL, sync_error_code = NULL"
            )


def strike_everywhere(scene: Scene, recover: Callable[[], None] = lambda: None, at_most: int = 1_000) -> list[int]:
    """Strike at one point after another of a first load, at all of them or at so many. Returns the exit codes."""
    assert scene.ingest_under_attack(None) == 0
    assert scene.differences() == []
    passed, codes, at = scene.attack.passed, list[int](), 1
    while True:
        scene.forget()
        scene.history.step = 0
        code = scene.ingest_under_attack(at)
        if not scene.attack.struck:
            break  # there is no such point: this ingestion has ended unharmed
        codes.append(code)
        recover()
        scene.history.step = 1
        report = scene.sync_well()
        assert [row["error"] for row in report["pipelines"].values() if row["error"]] == [], at
        assert scene.differences() == [], at
        at += max(1, passed // at_most)
    return codes


def kill(scene: Scene) -> bool:
    # It is known as soon as the zygote has said so.
    while scene.child == 0:
        threading.Event().wait(0.001)
    os.kill(scene.child, signal.SIGKILL)
    return True


def cut(_: Scene) -> bool:
    return False


def test_a_kill_at_any_point_loses_and_doubles_nothing(database_url: str, tmp_path: Path) -> None:
    scene = Scene(database_url, tmp_path, kill)
    with scene.at_work():
        codes = strike_everywhere(scene)
    print(f"{codes.count(-signal.SIGKILL)} kills")
    assert codes.count(-signal.SIGKILL) >= 80
    # The last pieces are those of a process that has done its work.
    assert set(codes) <= {0, -signal.SIGKILL}


def test_a_connection_cut_at_any_point_loses_and_doubles_nothing(database_url: str, tmp_path: Path) -> None:
    scene = Scene(database_url, tmp_path, cut)
    with scene.at_work():
        codes = strike_everywhere(scene)
    print(f"{len(codes)} cuts, {codes.count(CLEAR_ERROR)} of which ended the sync")
    assert len(codes) >= 80
    assert set(codes) <= {0, CLEAR_ERROR}


def test_a_crash_of_the_database_at_any_point_loses_and_doubles_nothing(tmp_path: Path) -> None:
    # With fsync, unlike the server of the other tests.
    server = EmbeddedPostgres(tmp_path / "home")
    server.start()
    try:
        server.ensure_database("chm")
        engine = make_engine(server.url("chm"))
        schema.migrate(engine)
        engine.dispose()

        def crash(_: Scene) -> bool:
            process = psutil.Process(int((server.data / "postmaster.pid").read_text().split("\n")[0]))
            process.send_signal(signal.SIGQUIT)
            process.wait(30)
            return True

        def recover() -> None:
            server.start()
            scene.engine.dispose()

        scene = Scene(server.url("chm"), tmp_path, crash)
        with scene.at_work(through_partner=False):
            codes = strike_everywhere(scene, recover, 20)
        print(f"{len(codes)} crashes")
        assert len(codes) >= 15
        assert set(codes) <= {0, CLEAR_ERROR}
    finally:
        server.stop()


@pytest.mark.parametrize("close", [then_close, then_reset])
def test_a_response_cut_after_any_byte_loses_and_doubles_nothing(
    close: Callable[[bytes], Reply], database_url: str, tmp_path: Path
) -> None:
    history, length = History(), 0
    # Of the second page of one pipeline, only so many bytes arrive, however often it is requested.
    arriving: int | None = None

    def answer(request: Request) -> Reply:
        nonlocal length
        if arriving is None or request.query.get("cursor") != str(PAGE) or "two" not in request.path:
            return history(request)
        body = json.dumps(history.page(request)).encode()
        whole = head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}) + body
        length = len(whole)
        return close(whole[:arriving])

    with serving(answer) as server:
        scene = Scene(database_url, tmp_path, cut)
        scene.history, scene.direct = history, dict.fromkeys(NAMES, server.base_url)
        cuts = 0
        while length == 0 or cuts * STRIDE < length:
            scene.forget()
            history.step, arriving = 0, cuts * STRIDE
            failed = {key for key, row in scene.sync_well()["pipelines"].items() if row["error"]}
            assert failed == {"acme/two"}, arriving
            history.step, arriving = 1, None
            scene.sync_well()
            assert scene.differences() == [], cuts * STRIDE
            cuts += 1
    print(f"{cuts} cuts in {length} bytes")
    assert cuts >= 40
