"""Where this installation's database, Dagster and partner are, embedded or given, for every command alike."""

import dataclasses
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chm_dagster import settings as names
from chm_dagster.errors import ConfigError
from chm_dagster.local.files import write_private
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.settings import Settings
from chm_dagster.warehouse import revision
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[2]
DATABASE, DAGSTER_DATABASE = "chm", "chm_dagster"


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """The settings with every address filled in. `sandbox` says that the partner is the built-in one.

    `partner_base_url` is empty if partners.yaml alone names the partners.
    """

    settings: Settings
    database_url: str = dataclasses.field(repr=False)
    dagster_database_url: str = dataclasses.field(repr=False)
    partner_base_url: str
    partner_token: str | None = dataclasses.field(repr=False)
    sandbox: bool

    @property
    def dagster_home(self) -> Path:
        """Dagster's instance folder. Its dagster.yaml is a link to the one at the top of the repository."""
        return self.settings.home / "dagster"

    def environment(self) -> dict[str, str]:
        """The variables that Dagster's processes and the sandbox need, on top of the caller's own."""
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, **self.own_environment(), "PYTHONUNBUFFERED": "1"}

    def own_environment(self) -> dict[str, str]:
        """Only what CHM adds."""
        own = {
            names.HOME: str(self.settings.home),
            names.DATABASE_URL: self.database_url,
            names.DAGSTER_DATABASE_URL: self.dagster_database_url,
            "DAGSTER_HOME": str(self.dagster_home),
        }
        if self.partner_base_url:
            own[names.PARTNER_API_BASE_URL] = self.partner_base_url
        if self.settings.partners_file:
            own[names.PARTNERS_FILE] = str(self.settings.partners_file)
        return {**own, names.PARTNER_API_TOKEN: self.partner_token} if self.partner_token else own

    def prepare_dagster_home(self) -> None:
        """Make the instance folder, and leave an `.env` so that `dagster dev` finds everything by itself."""
        self.dagster_home.mkdir(parents=True, exist_ok=True)
        link = self.dagster_home / "dagster.yaml"
        if not link.is_symlink() or link.resolve() != (ROOT / "dagster.yaml").resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / "dagster.yaml")
        env = ROOT / ".env"
        # Only for a home of this checkout: another one's must not take the file over.
        own = self.settings.database_url is None and self.settings.home.is_relative_to(ROOT)
        if own and (not env.exists() or env.read_text().startswith(_ENV_HEADER)):
            lines = [f"{name}='{value}'" for name, value in self.own_environment().items()]
            write_private(env, "\n".join([_ENV_HEADER, *lines, ""]))


_ENV_HEADER = "# Written by `chm up` for `dagster dev`; delete it freely."


def load_settings() -> Settings:
    """The settings of this process. A relative CHM_HOME belongs to the repository, wherever the command is called."""
    return Settings.from_env(os.environ, root=ROOT)


@contextmanager
def running_stack(settings: Settings) -> Iterator[Stack]:
    """A stack whose database runs: the given one, or the embedded one, started for as long as it is needed."""
    if settings.database_url is not None:
        yield given_stack(settings)
        return
    postgres = EmbeddedPostgres(settings.home)
    postgres.start()
    try:
        yield embedded_stack(settings, postgres)
    finally:
        # What `chm db start` has started stays until `chm db stop`.
        if postgres.started_here or not keep_marker(settings).exists():
            postgres.release()


def keep_marker(settings: Settings) -> Path:
    """The file that says that the embedded server was started to stay."""
    return settings.home / "postgres.keep"


@contextmanager
def open_warehouse() -> Iterator[Warehouse]:
    """The inventory and the ledger of this installation. Raises DatabaseUnavailable, also if they need migrating."""
    with running_stack(load_settings()) as stack:
        warehouse = Warehouse(make_engine(stack.database_url))
        try:
            revision.require_current(warehouse.engine)
            yield warehouse
        finally:
            warehouse.close()


def given_stack(settings: Settings) -> Stack:
    """The stack on databases of the user's own."""
    if settings.database_url is None or settings.dagster_database_url is None:
        raise ConfigError(f"{names.DATABASE_URL} and {names.DAGSTER_DATABASE_URL} are set together or not at all")
    return Stack(
        settings, settings.database_url, _dagster_url(settings.dagster_database_url), *partner_address(settings)
    )


def embedded_stack(settings: Settings, postgres: EmbeddedPostgres) -> Stack:
    """The stack on the embedded server, whose databases are made if they are missing."""
    for name in (DATABASE, DAGSTER_DATABASE):
        postgres.ensure_database(name)
    dagster_url = _dagster_url(postgres.url(DAGSTER_DATABASE))
    return Stack(settings, postgres.url(DATABASE), dagster_url, *partner_address(settings))


def _dagster_url(url: str) -> str:
    # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3; dagster-postgres speaks psycopg 2 alone.
    scheme, rest = url.split("://", 1)
    return f"{'postgresql+psycopg2' if scheme in ('postgresql', 'postgres') else scheme}://{rest}"


def partner_address(settings: Settings) -> tuple[str, str | None, bool]:
    """Base URL, token, and whether it is the sandbox: the partner that the environment names, or the built-in one.

    With partners of one's own in partners.yaml there is no built-in one: the base URL is empty.
    """
    if settings.partner_api_base_url is not None:
        return settings.partner_api_base_url, settings.partner_api_token, False
    if settings.partners_file is not None:
        return "", None, False
    return f"http://127.0.0.1:{settings.sandbox_port}", _sandbox_token(settings.home), True


def _sandbox_token(home: Path) -> str:
    path = home / "sandbox.token"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_urlsafe(24))
    return path.read_text().strip()


def python(*arguments: str) -> list[str]:
    """The command line that runs a module with this very interpreter."""
    return [sys.executable, *arguments]
