"""`chm partner`: the connections to partners."""

import asyncio

import typer

from chm_dagster.cli.output import Format, chosen, console, show
from chm_dagster.cli.stack import load_settings, partner_address
from chm_dagster.errors import NotFound
from chm_dagster.partners.connections import default_partners
from chm_dagster.partners.port import Partner, Probe

app = typer.Typer(help="Connections to partners.", no_args_is_help=True)


@app.command()
def check(
    name: str | None = typer.Argument(None, help="A connection; all of them if left out."),
    form: Format | None = typer.Option(None, "--format", help="table, json or yaml."),
) -> None:
    """Ask each partner whether it answers and takes our credentials. Exit code 1 if one does not."""
    base_url, token, _ = partner_address(load_settings())
    partners = default_partners(base_url, token)
    if name is not None and name not in partners:
        raise NotFound(f"there is no connection {name!r}; configured: {', '.join(sorted(partners))}")
    chosen_partners = [partner for key, partner in partners.items() if name in (None, key)]
    probes = {partner.name: asyncio.run(_probe(partner)) for partner in chosen_partners}
    rows = [{"connection": key, "ok": probe.ok, "detail": probe.detail} for key, probe in probes.items()]
    if chosen(form) is Format.TABLE:
        for row in rows:
            style = "green" if row["ok"] else "red"
            console.print(f"{row['connection']}: {row['detail']}", style=style, markup=False, highlight=False)
    else:
        show(rows, form)
    raise typer.Exit(0 if all(probe.ok for probe in probes.values()) else 1)


async def _probe(partner: Partner) -> Probe:
    feed = partner.open_feed()
    try:
        return await feed.check()
    finally:
        await feed.aclose()
