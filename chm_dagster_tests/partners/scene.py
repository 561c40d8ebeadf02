"""A scripted platform behind a real socket, read through a connection of partners.yaml."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import yaml

from chm_dagster.domain.runs import Observation, Rejection
from chm_dagster.errors import RemoteError
from chm_dagster.http.client import HttpClient
from chm_dagster.partners.connections import partner
from chm_dagster.partners.partners_file import connections_of
from chm_dagster.partners.platforms import shipped
from chm_dagster.partners.port import Partner, PipelinesFailed, PipelinesSynced, RecordBatch, RunsNotFound, SyncTarget
from chm_dagster.yaml_document import parse
from chm_dagster_tests.http.fault_server import FaultServer
from chm_dagster_tests.http.setup import Slept
from chm_dagster_tests.partners.scripts.script import Script

T = TypeVar("T")
Event = RecordBatch | PipelinesSynced | PipelinesFailed | RunsNotFound
PIPELINE = UUID(int=7)


def connect(
    api: str, script: Script, base_url: str | None, credentials: dict[str, str] | None = None, **fields: Any
) -> Partner:
    """The platform's partner, from its own partners.yaml; nothing sleeps."""
    given = script.credentials if credentials is None else credentials
    # Google's key file names its token endpoint: here it is this server.
    variables = {f"ACME_{name.upper()}": value.replace("${server}", base_url or "") for name, value in given.items()}
    described: dict[str, Any] = {"api": api}
    if any("http" in str(way.get("url")) for way in shipped()[api].model_dump()["auth"]):
        # Its token URL is part of the configuration: here it is this server.
        rest = shipped()[api].model_dump(mode="json", exclude_unset=True)
        rest["auth"] = [{**way, "url": base_url} for way in rest["auth"]]
        described = {"rest": rest}
    connection = {
        **described,
        **({} if base_url is None else {"base_url": base_url}),
        "credentials": {name: f"ACME_{name.upper()}" for name in given},
        "options": script.options,
        **fields,
    }
    (one,) = connections_of(parse(yaml.safe_dump({"connections": {"acme": connection}}), "partners.yaml"))
    return partner(one, variables, partial(HttpClient, sleep=Slept(), random=lambda: 0.0))


def with_feed(
    api: str,
    script: Script,
    ask: Callable[[Any], Awaitable[T]],
    credentials: dict[str, str] | None = None,
    **fields: Any,
) -> T:
    """The result of `ask(feed)` while the script is being served."""

    async def scene() -> T:
        async with FaultServer(script) as server:
            feed = connect(api, script, server.base_url, credentials, **fields).open_feed()
            try:
                return await ask(feed)
            finally:
                await feed.aclose()

    return asyncio.run(scene())


@dataclasses.dataclass
class Synced:
    """The result of one sync: its events and the mapped records."""

    events: list[Event]
    mapped: list[tuple[str, Observation | Rejection]]

    @property
    def observations(self) -> list[Observation]:
        return [found for _, found in self.mapped if isinstance(found, Observation)]

    @property
    def rejections(self) -> list[Rejection]:
        return [found for _, found in self.mapped if isinstance(found, Rejection)]

    @property
    def by_run(self) -> dict[str, Observation]:
        """The newest observation of each run, by its id."""
        newest: dict[str, Observation] = {}
        for found in self.observations:
            known = newest.get(found.external_run_id)
            if known is None or found.knowledge >= known.knowledge:
                newest[found.external_run_id] = found
        return newest

    @property
    def gone(self) -> list[tuple[str, str]]:
        return [
            (e.external_id, run.external_run_id) for e in self.events if isinstance(e, RunsNotFound) for run in e.runs
        ]

    @property
    def done(self) -> dict[str, PipelinesSynced]:
        return {i: event for event in self.events if isinstance(event, PipelinesSynced) for i in event.external_ids}

    @property
    def errors(self) -> dict[str, RemoteError]:
        return {
            i: event.error for event in self.events if isinstance(event, PipelinesFailed) for i in event.external_ids
        }


def sync(api: str, script: Script, targets: Sequence[SyncTarget], **fields: Any) -> Synced:
    """One sync of the script, with its records mapped."""

    async def scene() -> Synced:
        async with FaultServer(script) as server:
            source = connect(api, script, server.base_url, **fields)
            feed = source.open_feed()
            events = [event async for event in feed.sync(targets)]
            await feed.aclose()
            pages = [event for event in events if isinstance(event, RecordBatch)]
            mapped = [(i, source.map_record(PIPELINE, r, page.observed_at)) for page in pages for i, r in page.records]
            return Synced(events, mapped)

    return asyncio.run(scene())


def open_run(run_id: str) -> Any:
    from chm_dagster.domain.runs import OpenRun

    return OpenRun(run_id, None, 0, None, None, {"id": run_id, "nonce": f"of {run_id}"})
