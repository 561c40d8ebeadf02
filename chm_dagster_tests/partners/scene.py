"""A scripted platform behind a real socket, read through a connection as partners.yaml describes it."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import yaml

from chm_dagster.domain.runs import Observation, Rejection
from chm_dagster.errors import PartnerError
from chm_dagster.partners.connections_file import PartnersFile
from chm_dagster.partners.http import PartnerHttp
from chm_dagster.partners.instances import instances, partner
from chm_dagster.partners.platforms.registry import shipped
from chm_dagster.partners.port import Done, Failed, Gone, Page, Partner, Target
from chm_dagster.partners.yaml_lines import checked, parsed
from chm_dagster_tests.partners.fault_server import FaultServer
from chm_dagster_tests.partners.http_setup import Slept
from chm_dagster_tests.partners.scripts.script import Script

T = TypeVar("T")
Event = Page | Done | Failed | Gone
PIPELINE = UUID(int=7)


def connect(
    api: str, script: Script, base_url: str, credentials: dict[str, str] | None = None, **fields: Any
) -> Partner:
    """The platform's partner, through a partners.yaml of its own; nothing sleeps."""
    given = script.credentials if credentials is None else credentials
    variables = {f"ACME_{name.upper()}": value for name, value in given.items()}
    described: dict[str, Any] = {"api": api}
    if any("http" in str(way.get("url")) for way in shipped()[api].model_dump()["auth"]):
        # Its token comes from an address that is written into the configuration: here, from this very server.
        rest = shipped()[api].model_dump(mode="json", exclude_unset=True)
        rest["auth"] = [{**way, "url": base_url} for way in rest["auth"]]
        described = {"rest": rest}
    connection = {
        **described,
        "base_url": base_url,
        "credentials": {name: f"ACME_{name.upper()}" for name in given},
        "options": script.options,
        **fields,
    }
    document = parsed(yaml.safe_dump({"connections": {"acme": connection}}), "partners.yaml")
    (one,) = instances(checked(PartnersFile, document), document)
    return partner(one, variables, partial(PartnerHttp, sleep=Slept(), random=lambda: 0.0))


def with_feed(
    api: str,
    script: Script,
    ask: Callable[[Any], Awaitable[T]],
    credentials: dict[str, str] | None = None,
    **fields: Any,
) -> T:
    """The outcome of `ask(feed)` with the script served."""

    async def scene() -> T:
        async with FaultServer(script) as server:
            feed = connect(api, script, server.base_url, credentials, **fields).open_feed()
            try:
                return await ask(feed)
            finally:
                await feed.aclose()

    return asyncio.run(scene())


@dataclasses.dataclass
class Swept:
    """What one sweep said, and what its records mean."""

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
        return [(e.external_id, run.external_run_id) for e in self.events if isinstance(e, Gone) for run in e.runs]

    @property
    def done(self) -> dict[str, Done]:
        return {i: event for event in self.events if isinstance(event, Done) for i in event.external_ids}

    @property
    def errors(self) -> dict[str, PartnerError]:
        return {i: event.error for event in self.events if isinstance(event, Failed) for i in event.external_ids}


def sweep(api: str, script: Script, targets: Sequence[Target], **fields: Any) -> Swept:
    """One sweep over the script, its records mapped."""

    async def scene() -> Swept:
        async with FaultServer(script) as server:
            source = connect(api, script, server.base_url, **fields)
            feed = source.open_feed()
            events = [event async for event in feed.sweep(targets)]
            await feed.aclose()
            pages = [event for event in events if isinstance(event, Page)]
            mapped = [(i, source.map_record(PIPELINE, r, page.observed_at)) for page in pages for i, r in page.records]
            return Swept(events, mapped)

    return asyncio.run(scene())


def open_run(run_id: str) -> Any:
    from chm_dagster.domain.runs import OpenRun

    return OpenRun(run_id, None, 0, None, None, {"id": run_id, "nonce": str(uuid4())})
