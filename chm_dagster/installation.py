"""The composition root: settings become databases, partners and folders, in one place for CLI, API and Dagster.

`load_settings` reads the environment. `running` gives an installation whose database runs, started if need be;
`configured` gives the one that the environment alone describes, for processes that something else has started.
"""

import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chm_dagster import settings as names
from chm_dagster.errors import ConfigError
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.local.postgres_setup import make_home, make_private, write_private
from chm_dagster.local.processes import STACK_ID
from chm_dagster.settings import Settings
from chm_dagster.shipped import checkout, shipped
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse

if TYPE_CHECKING:
    # Imported when used: most commands need only the warehouse.
    from chm_dagster.alerting.channels import Channels
    from chm_dagster.alerting.inbox import Inbox
    from chm_dagster.alerting.operator import Operator
    from chm_dagster.ingestion.landing import LandingZone
    from chm_dagster.ingestion.lineage import UnmatchedEvents
    from chm_dagster.partners.port import Partner

DATABASE, DAGSTER_DATABASE = "chm", "chm_dagster"


@dataclasses.dataclass(frozen=True, slots=True)
class Installation:
    """The settings with every address filled in, and what is built from them.

    An address is None where none is set. `sandbox` is True if the built-in sandbox is the partner. `variables` is the
    environment, for the credentials that partners.yaml names.
    """

    settings: Settings
    database_url: str | None = dataclasses.field(repr=False)
    dagster_database_url: str | None = dataclasses.field(repr=False)
    variables: Mapping[str, str] = dataclasses.field(repr=False)
    partner_base_url: str | None = None
    sandbox: bool = False

    def warehouse(self, *, pool_size: int = 5, statement_seconds: int = 0) -> Warehouse:
        """CHM's database. It connects when it is first used; `close` it afterwards. Raises ConfigError without one."""
        if self.database_url is None:
            raise ConfigError(f"{names.DATABASE_URL} is not set")
        return Warehouse(make_engine(self.database_url, pool_size=pool_size, statement_seconds=statement_seconds))

    @property
    def partner_token(self) -> str | None:
        """The token of the default connection. The sandbox's token is created when it is first needed."""
        return _sandbox_token(self.settings.home) if self.sandbox else self.settings.partner_api_token

    def partners(self) -> "dict[str, Partner]":
        """The partners by connection name. Sends no request. Raises ConfigError for each mistake in partners.yaml."""
        from chm_dagster.partners.connections import load_partners

        settings = self.settings
        return load_partners(
            settings.partners_file,
            self.variables,
            self.partner_base_url,
            self.partner_token,
            sync_cron=settings.sync_cron,
        )

    def channels(self) -> "Channels":
        """How alerts reach their receivers. Sends nothing."""
        from chm_dagster.alerting.channels import Channels, Endpoint

        settings = self.settings
        return Channels(
            slack_webhook=settings.slack_webhook_url,
            slack_token=settings.slack_bot_token,
            smtp_url=settings.smtp_url,
            email_from=settings.smtp_from or "chm@localhost",
            endpoints={name: Endpoint(url, secret) for name, (url, secret) in settings.webhooks.items()},
            apprise_urls=settings.apprise_urls,
            inbox=self.inbox(),
            board_url=self.board_url,
        )

    @property
    def board_url(self) -> str | None:
        """Where people find the board, for links in messages; None: nobody has said so."""
        settings = self.settings
        if settings.public_url is None and settings.database_url is None:  # everything runs on this machine
            return f"http://127.0.0.1:{settings.api_port}"
        return settings.public_url

    def operator(self) -> "Operator":
        """Who is notified of CHM's own blindness."""
        from chm_dagster.alerting.operator import Operator
        from chm_dagster.domain.rules import Channel

        settings = self.settings
        return Operator(settings.home, (Channel(settings.operator_channel), settings.operator_destination))

    def inbox(self) -> "Inbox":
        """Where messages of the channel `inbox` are kept."""
        from chm_dagster.alerting.inbox import Inbox

        return Inbox(self.settings.home / "inbox", self.board_url)

    def landing(self) -> "LandingZone":
        """Where partners' raw records are kept."""
        from chm_dagster.ingestion.landing import LandingZone

        return LandingZone(self.settings.home / "landing")

    def unmatched_events(self) -> "UnmatchedEvents":
        """OpenLineage events that match no pipeline of the inventory."""
        from chm_dagster.ingestion.lineage import UnmatchedEvents

        return UnmatchedEvents(self.settings.home / "lineage")

    @property
    def stack(self) -> str | None:
        """The id of the `chm up` that this process belongs to."""
        return self.variables.get(STACK_ID)

    @property
    def dagster_home(self) -> Path:
        """Dagster's instance folder."""
        return self.settings.home / "dagster"

    @property
    def log_folder(self) -> Path:
        """Where the processes of `chm up` and `chm ingest` write their logs."""
        return self.settings.home / "logs"

    def environment(self) -> dict[str, str]:
        """The complete environment of Dagster's processes, the API and the sandbox: the caller's plus all addresses."""
        file = self.settings.partners_file
        own: dict[str, str | None] = {
            names.HOME: str(self.settings.home),
            names.DATABASE_URL: self.database_url,
            names.DAGSTER_DATABASE_URL: self.dagster_database_url,
            names.PUBLIC_URL: self.board_url,
            names.PARTNERS_FILE: None if file is None else str(file),
            names.PARTNER_API_BASE_URL: self.partner_base_url,
            names.PARTNER_API_TOKEN: self.partner_token,
            "DAGSTER_HOME": str(self.dagster_home),
            "PYTHONUNBUFFERED": "1",
            # The logs of code servers are files; Dagster would colour them.
            "DAGSTER_CLI_API_GRPC_LOG_FORMAT": "json",
        }
        inherited = {name: value for name, value in self.variables.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return inherited | {name: value for name, value in own.items() if value is not None}

    def prepare_dagster_home(self) -> None:
        """Make Dagster's instance folder; its dagster.yaml is a link. Raises ConfigError without Dagster's database."""
        if self.dagster_database_url is None:
            raise ConfigError(
                f"{names.DAGSTER_DATABASE_URL} is not set: Dagster needs a database beside {names.DATABASE_URL}"
            )
        make_private(self.dagster_home)
        link, target = self.dagster_home / "dagster.yaml", configuration("dagster.yaml")
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def folder() -> Path:
    """Where a relative CHM_HOME begins: the top of the clone, or the current folder if CHM came as a wheel."""
    return checkout() or Path.cwd()


def configuration(name: str) -> Path:
    """dagster.yaml or workspace.yaml: the one in the folder if there is one, else the one that CHM ships with.

    Raises ConfigError if the folder's workspace leaves CHM out.
    """
    own = folder() / name
    if not own.is_file():
        return shipped(name)
    if name == "workspace.yaml" and "chm_dagster" not in own.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{own} does not load chm_dagster.definitions; add it, or run this in another folder")
    return own


def load_settings() -> Settings:
    """The settings of this process. Raises ConfigError with a line for each invalid variable."""
    return Settings.from_env(os.environ, root=folder())


def configured(settings: Settings | None = None) -> Installation:
    """The installation of the environment, without starting anything. Without CHM_DATABASE_URL, it has no database."""
    settings = settings or load_settings()
    dagster_url = settings.dagster_database_url
    return _installation(settings, settings.database_url, dagster_url)


@contextmanager
def running(settings: Settings | None = None) -> Iterator[Installation]:
    """An installation whose database runs: the given one, or the embedded one, started for as long as it is needed."""
    settings = settings or load_settings()
    if settings.database_url is not None:
        yield configured(settings)
        return
    postgres = EmbeddedPostgres(settings.home)
    postgres.start()
    try:
        yield embedded(settings, postgres)
    finally:
        # What `chm db start` has started stays until `chm db stop`.
        if postgres.started_here or not keep_marker(settings).exists():
            postgres.release()


def embedded(settings: Settings, postgres: EmbeddedPostgres) -> Installation:
    """The installation on the embedded server, which must run. Creates its databases if they are missing."""
    if settings.dagster_database_url is not None:
        raise ConfigError(f"{names.DATABASE_URL} is not set, but {names.DAGSTER_DATABASE_URL} is: set both or neither")
    for name in (DATABASE, DAGSTER_DATABASE):
        postgres.ensure_database(name)
    return _installation(settings, postgres.url(DATABASE), postgres.url(DAGSTER_DATABASE))


def keep_marker(settings: Settings) -> Path:
    """The file that says that the embedded server was started to stay."""
    return settings.home / "postgres.keep"


@contextmanager
def open_warehouse() -> Iterator[Warehouse]:
    """The inventory and the ledger of this installation. Raises DatabaseUnavailable, also if they need migrating."""
    with running() as installation:
        warehouse = installation.warehouse()
        try:
            schema.require_current(warehouse.engine)
            yield warehouse
        finally:
            warehouse.close()


def _installation(settings: Settings, database_url: str | None, dagster_url: str | None) -> Installation:
    base_url, sandbox = _partner(settings)
    dagster_url = None if dagster_url is None else _for_psycopg2(dagster_url)
    return Installation(settings, database_url, dagster_url, os.environ, base_url, sandbox)


def _for_psycopg2(url: str) -> str:
    # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3; dagster-postgres speaks psycopg 2 alone.
    scheme, rest = url.split("://", 1)
    return f"{'postgresql+psycopg2' if scheme in ('postgresql', 'postgres') else scheme}://{rest}"


def _partner(settings: Settings) -> tuple[str | None, bool]:
    """The base URL of the default connection, and whether it is the sandbox."""
    if settings.partner_api_base_url is not None:
        return settings.partner_api_base_url, False
    own = settings.database_url is not None or settings.partners_file is not None
    if settings.sandbox == "off" or (settings.sandbox == "auto" and own):
        return None, False
    return f"http://127.0.0.1:{settings.sandbox_port}", True


def _sandbox_token(home: Path) -> str:
    path = home / "sandbox.token"
    if not path.exists():
        make_home(home)
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()
