"""`chm partner`: the connections to partners."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, cast

import orjson
import typer

from chm_dagster.cli.output import Format, FormatOption, chosen, errors, say, show
from chm_dagster.domain.fields import slugify
from chm_dagster.errors import ChmError, ConfigError, InputError, NotFound
from chm_dagster.ingestion import inventory_file
from chm_dagster.ingestion.inventory_apply import as_inventory, lacking
from chm_dagster.installation import configured, load_settings, open_warehouse
from chm_dagster.partners.connections import configured as connections_of
from chm_dagster.partners.connections import partner_of
from chm_dagster.partners.engine.model import Rest
from chm_dagster.partners.partners_file import Connection, json_schema
from chm_dagster.partners.platforms import shipped
from chm_dagster.partners.port import Partner, PipelineList, Probe, SourcePipeline
from chm_dagster.presentation.columns import Column
from chm_dagster.warehouse.inventory.pipelines import ingested_pipelines
from chm_dagster.warehouse.paging import every

app = typer.Typer(help="Connections to partners.", no_args_is_help=True)

_CONNECTION = (
    Column("connection"),
    Column("platform"),
    Column("api", rank=1, elastic=True),
    Column("default", rank=2),
    Column("scope", rank=3),
    Column("errors", rank=4),
    Column("rows", rank=5),
    Column("deletions", rank=6),
    Column("reopens", "re-runs", rank=7),
    Column("unset variables", elastic=True),
)


def _partners() -> dict[str, Partner]:
    return configured().partners()


def _partner(partners: dict[str, Partner], name: str) -> Partner:
    if name not in partners:
        raise NotFound(f"there is no connection {name!r}; configured: {', '.join(sorted(partners)) or 'none'}")
    return partners[name]


@app.command("list")
def list_(
    apis: Annotated[bool, typer.Option("--apis", help="List the APIs that CHM ships with instead.")] = False,
    form: FormatOption = None,
) -> None:
    """List the connections and what each supports. Makes no request."""
    if apis:
        show([_api_row(name, rest) for name, rest in shipped().items()], form, "APIs")
        return
    described = {one.name: one for one in connections_of(load_settings().partners_file)}
    rows = [_connection_row(partner, described.get(name)) for name, partner in _partners().items()]
    show(rows, form, "Connections", _CONNECTION)


def _api_row(name: str, rest: Rest) -> dict[str, Any]:
    return {"api": name, "title": rest.title, "platform": rest.platform.value, "verified": rest.verified}


def _connection_row(partner: Partner, one: Connection | None) -> dict[str, Any]:
    can = partner.capabilities
    variables = one.config.credentials.values() if one else ()
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
    name: Annotated[str | None, typer.Argument(help="A connection; all of them by default.")] = None,
    form: FormatOption = None,
) -> None:
    """Check version, credentials and rights at each partner. Exit code 1 if one of them cannot be read."""
    partners = _partners()
    wanted = partners if name is None else {name: _partner(partners, name)}
    probes = {key: asyncio.run(_probe(partner)) for key, partner in wanted.items()}
    # A partner may have nothing to show but the runs of a pipeline that one knows by its id.
    silent = [key for key, probe in probes.items() if any(f.topic == "answer" and not f.ok for f in probe.findings)]
    external_ids = _external_ids(partners) if silent else {}
    probes |= {key: asyncio.run(_probe(partners[key], external_ids[key])) for key in silent if key in external_ids}
    if chosen(form) is Format.TABLE:
        for key, probe in probes.items():
            _print_probe(key, probe)
    else:
        show([_probe_row(key, probe) for key, probe in probes.items()], form)
    raise typer.Exit(0 if all(probe.ok for probe in probes.values()) else 1)


def _external_ids(partners: Mapping[str, Partner]) -> dict[str, str]:
    """A pipeline of the inventory for each connection that has one; none if the database does not respond."""
    found: dict[str, str] = {}
    try:
        with open_warehouse() as warehouse:
            for pipeline in ingested_pipelines(warehouse.engine):
                with suppress(ConfigError):
                    found.setdefault(partner_of(pipeline, partners).name, pipeline.external_id)
    except ChmError:
        return {}
    return found


async def _probe(partner: Partner, external_id: str | None = None) -> Probe:
    feed = partner.open_feed()
    try:
        return await feed.check(external_id)
    finally:
        await feed.aclose()


def _probe_row(name: str, probe: Probe) -> dict[str, Any]:
    findings = [{"topic": f.topic, "ok": f.ok, "sentence": f.sentence} for f in probe.findings]
    return {"connection": name, "ok": probe.ok, "detail": probe.detail, "findings": findings}


def _print_probe(name: str, probe: Probe) -> None:
    sentences = [finding.sentence for finding in probe.findings if finding.ok is probe.ok] or [probe.detail]
    text = "; ".join(sentence.removeprefix(f"connection {name}: ") for sentence in sentences)
    say(f"{name}: OK ({text})" if probe.ok else f"{name}: {text}", style="green" if probe.ok else "red")


@app.command()
def discover(
    name: Annotated[str, typer.Argument(help="A connection.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write them here as inventory YAML; - for standard output."),
    ] = None,
    client: Annotated[
        str | None,
        typer.Option("--client", help="Their client; by default named after the connection."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Include those that are already in the inventory.")] = False,
    form: FormatOption = None,
) -> None:
    """List the partner's pipelines that are not in the inventory. `chm inventory apply` reads what --output writes."""
    partners = _partners()
    partner = _partner(partners, name)
    found: Sequence[SourcePipeline] = asyncio.run(_discovered(partner))
    slug = slugify(client or name)
    if not slug:
        raise InputError("--client", "must contain a letter or a digit")
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
    """Print the JSON schema of partners.yaml, for completion and checks in editors."""
    sys.stdout.write(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
