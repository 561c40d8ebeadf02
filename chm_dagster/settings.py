"""Every environment variable that CHM reads, by name, in one place.

Entry points call `Settings.from_env(os.environ)` once and pass the values on. No other module reads the environment.
"""

import dataclasses
import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from chm_dagster.domain.rules import Channel
from chm_dagster.domain.schedule import Cron, TimeZone
from chm_dagster.domain.validation import read_value
from chm_dagster.errors import ConfigError, InputError

HOME = "CHM_HOME"
DATABASE_URL = "CHM_DATABASE_URL"
DAGSTER_DATABASE_URL = "CHM_DAGSTER_DATABASE_URL"
DAGSTER_PREFIX = "CHM_DAGSTER_PREFIX"
UI_HOST = "CHM_UI_HOST"
UI_PORT = "CHM_UI_PORT"
PUBLIC_HOSTS = "CHM_PUBLIC_HOSTS"
API_HOST = "CHM_API_HOST"
API_PORT = "CHM_API_PORT"
PUBLIC_URL = "CHM_PUBLIC_URL"
MIN_TOKEN_CHARS = 16
API_TOKEN = "CHM_API_TOKEN"  # noqa: S105 - the name of a variable, not a token
SANDBOX = "CHM_SANDBOX"
SANDBOX_PORT = "CHM_SANDBOX_PORT"
SYNC_CRON = "CHM_SYNC_CRON"
TIMEZONE = "CHM_TIMEZONE"
PARTNERS_FILE = "CHM_PARTNERS_FILE"
PARTNER_API_BASE_URL = "CHM_PARTNER_API_BASE_URL"
PARTNER_API_TOKEN = "CHM_PARTNER_API_TOKEN"  # noqa: S105 - the name of a variable, not a token
SLACK_WEBHOOK_URL = "CHM_SLACK_WEBHOOK_URL"
SLACK_BOT_TOKEN = "CHM_SLACK_BOT_TOKEN"  # noqa: S105 - the name of a variable, not a token
SMTP_URL = "CHM_SMTP_URL"
SMTP_FROM = "CHM_SMTP_FROM"
APP_PASSWORD = "CHM_APP_POSTGRES_PASSWORD"  # noqa: S105 - the name of a variable, not a password
BI_PASSWORD = "CHM_BI_POSTGRES_PASSWORD"  # noqa: S105 - the name of a variable, not a password
METABASE_API_KEY = "CHM_METABASE_API_KEY"
METABASE_USER = "CHM_METABASE_USER"
METABASE_PASSWORD = "CHM_METABASE_PASSWORD"  # noqa: S105 - the name of a variable, not a password
OPERATOR_CHANNEL = "CHM_OPERATOR_CHANNEL"
OPERATOR_DESTINATION = "CHM_OPERATOR_DESTINATION"
WEBHOOK_URL = "CHM_WEBHOOK_URL_"
"""In front of the name of an endpoint; `WEBHOOK_SECRET` as well."""
WEBHOOK_SECRET = "CHM_WEBHOOK_SECRET_"  # noqa: S105 - the beginning of a variable's name
APPRISE_URL = "CHM_APPRISE_URL_"
"""In front of the name of an endpoint of the channel apprise."""

KNOWN = frozenset(
    {
        HOME,
        DATABASE_URL,
        DAGSTER_DATABASE_URL,
        DAGSTER_PREFIX,
        UI_HOST,
        UI_PORT,
        PUBLIC_HOSTS,
        API_HOST,
        API_PORT,
        PUBLIC_URL,
        API_TOKEN,
        SANDBOX,
        SANDBOX_PORT,
        SYNC_CRON,
        TIMEZONE,
        PARTNERS_FILE,
        PARTNER_API_BASE_URL,
        PARTNER_API_TOKEN,
        SLACK_WEBHOOK_URL,
        SLACK_BOT_TOKEN,
        SMTP_URL,
        SMTP_FROM,
        APP_PASSWORD,
        BI_PASSWORD,
        METABASE_API_KEY,
        METABASE_USER,
        METABASE_PASSWORD,
        OPERATOR_CHANNEL,
        OPERATOR_DESTINATION,
    }
)
RENAMED = {"CHM_SWEEP_CRON": SYNC_CRON}
_FOREIGN = frozenset({"CHM_STACK_ID", "CHM_POSTGRES_PASSWORD", "CHM_DAGSTER_POSTGRES_PASSWORD"})
"""Not settings, but expected: the mark of `chm up`'s processes, and what docker-compose.yml asks for."""

_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")
_NAMED = re.compile(f"({WEBHOOK_URL}|{WEBHOOK_SECRET}|{APPRISE_URL})([A-Z0-9][A-Z0-9_]{{0,49}})")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]")


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """CHM's configuration. Without a `database_url`, the embedded Postgres is used.

    `timezone` is where the days of the command line begin. `sandbox` is on, off or auto: on only where neither a
    database nor a partner of the user's own is configured.
    """

    home: Path = Path(".chm")
    database_url: str | None = dataclasses.field(default=None, repr=False)
    dagster_database_url: str | None = dataclasses.field(default=None, repr=False)
    dagster_prefix: str | None = None
    ui_host: str = "127.0.0.1"
    ui_port: int = 3000
    public_hosts: frozenset[str] | None = None
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    public_url: str | None = None
    api_token: str | None = dataclasses.field(default=None, repr=False)
    sandbox: str = "auto"
    sandbox_port: int = 8900
    sync_cron: str = "*/5 * * * *"
    timezone: str = "UTC"
    partners_file: Path | None = None
    partner_api_base_url: str | None = None
    partner_api_token: str | None = dataclasses.field(default=None, repr=False)
    slack_webhook_url: str | None = dataclasses.field(default=None, repr=False)
    slack_bot_token: str | None = dataclasses.field(default=None, repr=False)
    smtp_url: str | None = dataclasses.field(default=None, repr=False)
    smtp_from: str | None = None
    operator_channel: str = "inbox"
    operator_destination: str = "operator"
    webhooks: Mapping[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict, repr=False)
    apprise_urls: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    app_postgres_password: str | None = dataclasses.field(default=None, repr=False)
    bi_postgres_password: str | None = dataclasses.field(default=None, repr=False)
    metabase_api_key: str | None = dataclasses.field(default=None, repr=False)
    metabase_user: str | None = None
    metabase_password: str | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, root: Path | None = None) -> "Settings":
        """Read all of CHM's variables. A relative `CHM_HOME` begins at `root` (default: the current folder).

        Raises ConfigError with one line for each variable that is wrong. Values are never shown.
        """
        reader = _Reader(environ)
        settings = cls(
            home=((root or Path.cwd()) / (reader.text(HOME) or ".chm")).resolve(),
            database_url=reader.database(DATABASE_URL, ("postgresql", "postgresql+psycopg", "postgres")),
            dagster_database_url=reader.database(
                DAGSTER_DATABASE_URL, ("postgresql", "postgresql+psycopg2", "postgres")
            ),
            dagster_prefix=reader.prefix(DAGSTER_PREFIX),
            ui_host=reader.host(UI_HOST, "127.0.0.1"),
            ui_port=reader.port(UI_PORT, 3000),
            public_hosts=reader.host_names(PUBLIC_HOSTS),
            api_host=reader.host(API_HOST, "127.0.0.1"),
            api_port=reader.port(API_PORT, 8000),
            public_url=reader.url(PUBLIC_URL, ("https", "http")),
            api_token=reader.token(API_TOKEN),
            sandbox=reader.choice(SANDBOX, "auto", "on", "off"),
            sandbox_port=reader.port(SANDBOX_PORT, 8900),
            sync_cron=reader.spelled(SYNC_CRON, Cron, "*/5 * * * *"),
            timezone=reader.spelled(TIMEZONE, TimeZone, "UTC"),
            partners_file=reader.path(PARTNERS_FILE),
            partner_api_base_url=reader.url(PARTNER_API_BASE_URL, ("http", "https")),
            partner_api_token=reader.text(PARTNER_API_TOKEN),
            slack_webhook_url=reader.url(SLACK_WEBHOOK_URL, ("https", "http")),
            slack_bot_token=reader.text(SLACK_BOT_TOKEN),
            smtp_url=reader.mail_server(SMTP_URL),
            smtp_from=reader.address(SMTP_FROM),
            operator_channel=reader.choice(OPERATOR_CHANNEL, Channel.INBOX, *Channel),
            operator_destination=reader.text(OPERATOR_DESTINATION) or "operator",
            webhooks=reader.webhooks(),
            apprise_urls=reader.named(APPRISE_URL),
            app_postgres_password=reader.password(APP_PASSWORD),
            bi_postgres_password=reader.password(BI_PASSWORD),
            metabase_api_key=reader.text(METABASE_API_KEY),
            metabase_user=reader.address(METABASE_USER),
            metabase_password=reader.password(METABASE_PASSWORD),
        )
        reader.require_token(API_HOST, settings.api_host)
        reader.require_token(UI_HOST, settings.ui_host)
        reader.unknown(settings.partners_file)
        reader.finish()
        return settings


class _Reader:
    """Collects all problems, so that one start shows all of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def text(self, name: str) -> str | None:
        value = self._environ.get(name)
        if value is None:
            return None
        if not value.strip():
            self._problems.append(f"{name} is set but empty; unset it or give it a value")
            return None
        return value.strip()

    def password(self, name: str) -> str | None:
        """The value as it is: psql and libpq do not strip it either."""
        return None if self.text(name) is None else self._environ[name]

    def url(self, name: str, schemes: tuple[str, ...]) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            scheme = urlsplit(value).scheme
        except ValueError:
            scheme = ""
        if scheme not in schemes:
            self._problems.append(f"{name} is not a URL that starts with {' or '.join(s + '://' for s in schemes)}")
            return None
        return value

    def address(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and not re.fullmatch(r"[^\r\n]*[^\s@<>]+@[A-Za-z0-9.-]+>?", value):
            self._problems.append(f"{name} is not an email address, such as chm@example.com or CHM <chm@example.com>")
            return None
        return value

    def webhooks(self) -> dict[str, tuple[str, str | None]]:
        """The address and the secret of each named endpoint, by its name in capitals."""
        found = {}
        for variable in sorted(self._environ):
            if variable.startswith(WEBHOOK_URL) and (url := self.url(variable, ("https", "http"))) is not None:
                name = variable.removeprefix(WEBHOOK_URL)
                found[name] = (url, self.text(WEBHOOK_SECRET + name))
        return found

    def named(self, prefix: str) -> dict[str, str]:
        """The value of each variable with this prefix, by what stands behind it."""
        values = {
            name.removeprefix(prefix): self.text(name) for name in sorted(self._environ) if name.startswith(prefix)
        }
        return {name: value for name, value in values.items() if value is not None}

    def mail_server(self, name: str) -> str | None:
        value = self.url(name, ("smtp", "smtps", "smtp+plain"))
        if value is None:
            return None
        parts = urlsplit(value)
        try:
            is_whole = bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_whole = False
        # A `/`, `?` or `#` in the password would end the address: CHM would turn to a host named like the user.
        if is_whole and parts.path in ("", "/") and not re.search(r"[?#]", value):
            return value
        self._problems.append(
            f"{name} cannot be read: write smtp://user:password@host:port, and percent-encode special characters in "
            "the password"
        )
        return None

    def database(self, name: str, schemes: tuple[str, ...]) -> str | None:
        value = self.url(name, schemes)
        try:
            # Read here, because whoever reads it later would quote what stands for the port, which may be a password.
            port = None if value is None else make_url(value).port
        except (ArgumentError, ValueError):
            port = -1
        if port is None or 1 <= port <= 65535:
            return value
        self._problems.append(
            f"{name} cannot be read: percent-encode special characters in the password, or set PGPASSWORD instead"
        )
        return None

    def port(self, name: str, default: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 65535:
            self._problems.append(f"{name} is not a port number from 1 to 65535")
            return default
        return int(value)

    def host(self, name: str, default: str) -> str:
        value = self.text(name)
        if value is None or value == "localhost":
            return value or default
        try:
            return str(ipaddress.ip_address(value.strip("[]")))
        except ValueError:
            self._problems.append(f"{name} is not an IP address to listen on, such as 127.0.0.1 or 0.0.0.0")
            return default

    def host_names(self, name: str) -> frozenset[str] | None:
        hosts = [host.strip().lower() for host in (self.text(name) or "").split(",") if host.strip()]
        if not all(_HOST_NAME.fullmatch(host) for host in hosts):
            self._problems.append(f"{name} is not a list of host names without ports, such as chm.example.com")
            return None
        return frozenset(host.strip("[]") for host in hosts) or None

    def token(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and re.fullmatch(r"[!-~]+", value) is None:
            self._problems.append(f"{name} holds characters that a header cannot carry: use ASCII letters and digits")
            return None
        if value is not None and len(value) < MIN_TOKEN_CHARS:
            self._problems.append(
                f"{name} is too short to be safe: use at least {MIN_TOKEN_CHARS} random characters, for example from "
                "`openssl rand -hex 32`"
            )
            return None
        return value

    def require_token(self, name: str, host: str) -> None:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        if not loopback and API_TOKEN not in self._environ:
            self._problems.append(
                f"{name} lets other machines in, so {API_TOKEN} must be set: "
                "a long random text that API clients send as a bearer token"
            )

    def spelled(self, name: str, kind: Any, default: str) -> str:
        value = self.text(name)
        if value is None:
            return default
        try:
            return str(read_value(kind, value, name))
        except InputError as refused:
            self._problems.append(str(refused))
            return default

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        if value is None:
            return None
        path = Path(value)
        if not path.is_file():
            what = "is a folder; name the file itself" if path.is_dir() else "names a file that does not exist"
            self._problems.append(f"{name} {what}")
            return None
        # The processes that CHM starts have other working folders.
        return path.resolve()

    def prefix(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and not _PREFIX.fullmatch(value):
            self._problems.append(f"{name} is not a name of letters, digits and underscores that begins with a letter")
            return None
        return value

    def choice(self, name: str, default: str, *others: str) -> str:
        value = (self.text(name) or default).lower()
        if value not in (default, *others):
            self._problems.append(f"{name} is not one of {', '.join((default, *others))}")
            return default
        return value

    def unknown(self, partners_file: Path | None) -> None:
        """Notice misspelt settings. Variables that partners.yaml names are not settings, whatever they begin with."""
        unknown = sorted(n for n in self._environ if n.startswith("CHM_") and not _expected(n))
        named = _words(partners_file) if unknown else frozenset()
        for name in unknown:
            if name in RENAMED:
                self._problems.append(f"{name} is now called {RENAMED[name]}")
            elif name not in named:
                close = _closest(name)
                hint = f"did you mean {close}?" if close else "unset it"
                self._problems.append(f"{name} is not a setting of CHM; {hint}")

    def finish(self) -> None:
        if self._problems:
            raise ConfigError("\n".join(self._problems))


def _expected(name: str) -> bool:
    return name in KNOWN | _FOREIGN or _NAMED.fullmatch(name) is not None


def _closest(name: str) -> str | None:
    """The setting that has all words of the name, or else the one that is spelt most like it."""
    words = set(name.split("_"))
    longer = [known for known in sorted(KNOWN, key=len) if words <= set(known.split("_"))]
    return next(iter(longer or difflib.get_close_matches(name, sorted(KNOWN), n=1, cutoff=0.6)), None)


def _words(file: Path | None) -> frozenset[str]:
    try:
        text = "" if file is None else file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(re.findall(r"\w+", text))
