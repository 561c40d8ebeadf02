"""`chm partner`: the connections to partners."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
import typer

from chm_dagster.cli.output import Format, FormatOption, chosen, console, errors, show
from chm_dagster.cli.stack import load_settings, open_warehouse, partner_address
from chm_dagster.domain.inventory import slugify
from chm_dagster.errors import InputError, NotFound
from chm_dagster.ingestion import inventory_file
from chm_dagster.ingestion.discovery import as_inventory, lacking
from chm_dagster.partners.connections import all_partners, configured
from chm_dagster.partners.connections_file import json_schema
from chm_dagster.partners.declared.model import Rest
from chm_dagster.partners.instances import Instance
from chm_dagster.partners.platforms.registry import shipped
from chm_dagster.partners.port import Partner, PipelineList, Probe, SourcePipeline
from chm_dagster.warehouse.paging import every

app = typer.Typer(help="Connections to partners.", no_args_is_help=True)


def _partners() -> dict[str, Partner]:
    settings = load_settings()
    base_url, token, _ = partner_address(settings)
    return all_partners(settings.partners_file, os.environ, base_url or None, token)


def _partner(partners: dict[str, Partner], name: str) -> Partner:
    if name not in partners:
        raise NotFound(f"there is no connection {name!r}; configured: {', '.join(sorted(partners)) or 'none'}")
    return partners[name]


@app.command("list")
def list_(
    apis: Annotated[bool, typer.Option("--apis", help="The APIs that CHM is shipped with, instead.")] = False,
    form: FormatOption = None,
) -> None:
    """The connections, and what each can tell. Asks nobody."""
    if apis:
        show([_api_row(name, rest) for name, rest in shipped().items()], form, "APIs")
        return
    described = {one.name: one for one in configured(load_settings().partners_file)}
    show([_connection_row(partner, described.get(name)) for name, partner in _partners().items()], form, "Connections")


def _api_row(name: str, rest: Rest) -> dict[str, Any]:
    return {"api": name, "title": rest.title, "platform": rest.platform.value, "verified": rest.verified}


def _connection_row(partner: Partner, one: Instance | None) -> dict[str, Any]:
    can = partner.capabilities
    variables = one.connection.credentials.values() if one else ()
    return {
        "connection": partner.name,
        "platform": partner.platform.value if partner.platform else "any",
        "api": one.rest.title if one and one.rest else "CHM's own",
        "scope": can.scope,
        "reopens": can.reopens,
        "errors": can.gives_errors,
        "rows": can.gives_rows,
        "deletions": can.finds_deletions,
        "default": partner.is_default,
        "unset variables": ", ".join(name for name in variables if not os.environ.get(name)),
    }


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="A connection; all of them if left out.")] = None,
    form: FormatOption = None,
) -> None:
    """Ask each partner for its version, whether it takes our credentials, and whether they may read runs.

    Exit code 1 if one of them does not answer as it should.
    """
    partners = _partners()
    wanted = partners if name is None else {name: _partner(partners, name)}
    probes = {key: asyncio.run(_probe(partner)) for key, partner in wanted.items()}
    if chosen(form) is Format.TABLE:
        for key, probe in probes.items():
            _print_probe(key, probe)
    else:
        show([_probe_row(key, probe) for key, probe in probes.items()], form)
    raise typer.Exit(0 if all(probe.ok for probe in probes.values()) else 1)


async def _probe(partner: Partner) -> Probe:
    feed = partner.open_feed()
    try:
        return await feed.check()
    finally:
        await feed.aclose()


def _probe_row(name: str, probe: Probe) -> dict[str, Any]:
    findings = [{"topic": f.topic, "ok": f.ok, "sentence": f.sentence} for f in probe.findings]
    return {"connection": name, "ok": probe.ok, "detail": probe.detail, "findings": findings}


def _print_probe(name: str, probe: Probe) -> None:
    told = [(f.ok, f"{f.topic}: {f.sentence}") for f in probe.findings] or [(probe.ok, probe.detail)]
    for ok, sentence in told:
        style = "green" if ok else "red"
        console.print(f"{name}: {sentence}", style=style, markup=False, highlight=False, soft_wrap=True)


@app.command()
def discover(
    name: Annotated[str, typer.Argument(help="A connection.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write them as inventory YAML; - shows it.")
    ] = None,
    client: Annotated[
        str | None, typer.Option("--client", help="Whose they are to be; the connection if left out.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are in the inventory.")] = False,
    form: FormatOption = None,
) -> None:
    """List the partner's pipelines that the inventory lacks. `chm inventory apply` takes what --output writes."""
    partners = _partners()
    partner = _partner(partners, name)
    found: Sequence[SourcePipeline] = asyncio.run(_discovered(partner))
    slug = slugify(client or name)
    if not slug:
        raise InputError("--client", "no letter and no digit in it; name it so that it can be part of a path")
    with open_warehouse() as warehouse:
        inventory = list(every(warehouse.pipelines.list, active=None))
    new = list(found) if everything else lacking(found, inventory, partner, partners)
    if output is None:
        show([_found_row(pipeline) for pipeline in new], form, f"{len(new)} of {len(found)} pipelines of {name}")
        return
    taken = [pipeline.slug for pipeline in inventory if pipeline.client_slug == slug]
    text = inventory_file.dump(as_inventory(new, partner, (slug, client or name), taken))
    _write(output, text)
    errors.print(
        f"{len(new)} of {len(found)} pipelines of {name} are not in the inventory", markup=False, highlight=False
    )


def _found_row(pipeline: SourcePipeline) -> dict[str, Any]:
    return {"external_id": pipeline.external_id, "name": pipeline.name, "active": pipeline.is_active}


async def _discovered(partner: Partner) -> Sequence[SourcePipeline]:
    if not partner.capabilities.lists_pipelines:
        raise InputError("NAME", f"the API of connection {partner.name} has no list of pipelines")
    feed = partner.open_feed()
    try:
        return await cast(PipelineList, feed).discover()
    finally:
        await feed.aclose()


def _write(output: Path, text: str) -> None:
    if str(output) == "-":
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError("--output", f"cannot write {output} ({error.strerror})") from None


@app.command()
def schema() -> None:
    """Print the JSON schema of partners.yaml, for editors that complete and check it."""
    sys.stdout.write(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
