"""`chm dashboards`: CHM's dashboards in other tools."""

import asyncio
import dataclasses
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from chm_dagster.cli.output import Format, FormatOption, chosen, say, show, warn
from chm_dagster.errors import ConfigError, InputError
from chm_dagster.installation import load_settings
from chm_dagster.presentation.columns import Column
from chm_dagster.presentation.metabase_server import Connection, Credentials, apply
from chm_dagster.settings import Settings
from chm_dagster.warehouse.roles import BI

app = typer.Typer(help="CHM's dashboards in other tools.", no_args_is_help=True)
metabase_app = typer.Typer(help="A collection in Metabase.", no_args_is_help=True)
app.add_typer(metabase_app, name="metabase")

_CHANGES = (Column("kind"), Column("name", elastic=True), Column("change"))


@metabase_app.callback()
def _group() -> None:
    """A collection in Metabase."""


@metabase_app.command("apply")
def apply_(
    url: Annotated[str, typer.Option("--url", help="Where Metabase is, such as http://127.0.0.1:3002.")],
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            help="CHM's database as Metabase reaches it: host:port/name, with ?sslmode=disable where the server has no "
            "certificate. The default is the one in CHM_DATABASE_URL.",
        ),
    ] = None,
    renew_password: Annotated[
        bool, typer.Option("--renew-password", help="Send the password of chm_bi again, after a change of it.")
    ] = False,
    form: FormatOption = None,
) -> None:
    """Create CHM's collection, questions and dashboards in Metabase, or bring them up to date.

    A fresh Metabase is set up first. Signs in with CHM_METABASE_API_KEY, or with CHM_METABASE_USER and
    CHM_METABASE_PASSWORD. Metabase reads the database as chm_bi, with CHM_BI_POSTGRES_PASSWORD. A second run changes
    nothing.
    """
    settings = load_settings()
    own = Credentials(settings.metabase_api_key, settings.metabase_user, settings.metabase_password)
    changes = asyncio.run(apply(url, own, _connection(settings, database), renew_password=renew_password))
    for change in changes:
        if change.lost:
            warn(f"this Metabase did not keep {', '.join(change.lost)} of the {change.kind} {change.name}")
    if chosen(form) is Format.TABLE and not changes:
        say("Metabase is up to date; nothing was changed.")
    else:
        show([dataclasses.asdict(change) for change in changes], form, "Changed in Metabase", _CHANGES)


def _connection(settings: Settings, database: str | None) -> Connection:
    if settings.bi_postgres_password is None:
        raise ConfigError(f"set CHM_BI_POSTGRES_PASSWORD: the password of {BI}, with which Metabase reads")
    if database is None and settings.database_url is None:
        raise ConfigError("name CHM's database with --database, or set CHM_DATABASE_URL: Metabase needs a server")
    # What stands before the @ in CHM's own address is not passed on, and a message never quotes it.
    given = f"//{database}" if database is not None else "//" + str(settings.database_url).partition("://")[2]
    try:
        parts = urlsplit(given)
        host, port, name = parts.hostname, parts.port or 5432, parts.path.strip("/")
    except ValueError:
        host, port, name = None, 5432, ""
    if not host or not name or "/" in name or (database is not None and "@" in database):
        raise InputError("--database", "is not host:port/name")
    ssl = parse_qs(parts.query).get("sslmode") != ["disable"]
    return Connection(host, port, name, BI, settings.bi_postgres_password, ssl)
