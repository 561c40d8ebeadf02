"""Every environment variable that CHM reads, by name, in one place.

Entry points call `Settings.from_env(os.environ)` once and pass the values on. No other module reads the environment.
"""

import dataclasses
import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from croniter import croniter

from chm_dagster.errors import ConfigError

HOME = "CHM_HOME"
DATABASE_URL = "CHM_DATABASE_URL"
DAGSTER_DATABASE_URL = "CHM_DAGSTER_DATABASE_URL"
UI_PORT = "CHM_UI_PORT"
API_HOST = "CHM_API_HOST"
API_PORT = "CHM_API_PORT"
API_TOKEN = "CHM_API_TOKEN"  # noqa: S105 - the name of a variable, not a token
SANDBOX_PORT = "CHM_SANDBOX_PORT"
SWEEP_CRON = "CHM_SWEEP_CRON"
PARTNERS_FILE = "CHM_PARTNERS_FILE"
PARTNER_API_BASE_URL = "CHM_PARTNER_API_BASE_URL"
PARTNER_API_TOKEN = "CHM_PARTNER_API_TOKEN"  # noqa: S105 - the name of a variable, not a token

KNOWN = frozenset(
    {
        HOME,
        DATABASE_URL,
        DAGSTER_DATABASE_URL,
        UI_PORT,
        API_HOST,
        API_PORT,
        API_TOKEN,
        SANDBOX_PORT,
        SWEEP_CRON,
        PARTNERS_FILE,
        PARTNER_API_BASE_URL,
        PARTNER_API_TOKEN,
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """CHM's configuration. `database_url` and `dagster_database_url` are None when the embedded Postgres is used."""

    home: Path = Path(".chm")
    database_url: str | None = dataclasses.field(default=None, repr=False)
    dagster_database_url: str | None = dataclasses.field(default=None, repr=False)
    ui_port: int = 3000
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    api_token: str | None = dataclasses.field(default=None, repr=False)
    sandbox_port: int = 8900
    sweep_cron: str = "*/5 * * * *"
    partners_file: Path | None = None
    partner_api_base_url: str | None = None
    partner_api_token: str | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, root: Path | None = None) -> "Settings":
        """Read all of CHM's variables. `root` is what a relative `CHM_HOME` hangs on (default: the current folder).

        Raises ConfigError with one line for each variable that is wrong. Values are never shown.
        """
        reader = _Reader(environ)
        settings = cls(
            home=((root or Path.cwd()) / (reader.text(HOME) or ".chm")).resolve(),
            database_url=reader.url(DATABASE_URL, ("postgresql", "postgresql+psycopg", "postgres")),
            dagster_database_url=reader.url(DAGSTER_DATABASE_URL, ("postgresql", "postgresql+psycopg2", "postgres")),
            ui_port=reader.port(UI_PORT, 3000),
            api_host=reader.host(API_HOST, "127.0.0.1"),
            api_port=reader.port(API_PORT, 8000),
            api_token=reader.token(API_TOKEN),
            sandbox_port=reader.port(SANDBOX_PORT, 8900),
            sweep_cron=reader.cron(SWEEP_CRON, "*/5 * * * *"),
            partners_file=reader.path(PARTNERS_FILE),
            partner_api_base_url=reader.url(PARTNER_API_BASE_URL, ("http", "https")),
            partner_api_token=reader.text(PARTNER_API_TOKEN),
        )
        reader.pair(DATABASE_URL, DAGSTER_DATABASE_URL)
        reader.guarded(settings.api_host)
        reader.finish()
        return settings


class _Reader:
    """Collects every problem before it complains, so that one start shows all of them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []
        # A prefix of its own is left to secrets that partners.yaml names.
        for name in sorted(n for n in environ if n.startswith("CHM_") and n not in KNOWN):
            close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.85)
            if close:
                self._problems.append(f"{name} is not a setting of CHM; did you mean {close[0]}?")

    def text(self, name: str) -> str | None:
        value = self._environ.get(name)
        if value is None:
            return None
        if not value.strip():
            self._problems.append(f"{name} is set but empty; unset it or give it a value")
            return None
        return value.strip()

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

    def token(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None and re.fullmatch(r"[!-~]+", value) is None:
            self._problems.append(f"{name} holds characters that a header cannot carry: use ASCII letters and digits")
            return None
        return value

    def guarded(self, host: str) -> None:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
        if not loopback and API_TOKEN not in self._environ:
            self._problems.append(
                f"{API_HOST} lets other machines in, so {API_TOKEN} must be set: "
                "a long random text, which callers send as a bearer token"
            )

    def cron(self, name: str, default: str) -> str:
        value = self.text(name)
        if value is None:
            return default
        if len(value.split()) != 5 or not croniter.is_valid(value):
            self._problems.append(f"{name} is not a cron expression of five fields, such as {default!r}")
            return default
        return value

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        if value is None:
            return None
        if not Path(value).is_file():
            self._problems.append(f"{name} names a file that does not exist")
            return None
        # The processes that CHM starts work in other folders.
        return Path(value).resolve()

    def pair(self, one: str, other: str) -> None:
        if (one in self._environ) != (other in self._environ):
            missing = other if one in self._environ else one
            self._problems.append(f"{missing} is missing: {one} and {other} are set together or not at all")

    def finish(self) -> None:
        if self._problems:
            raise ConfigError("\n".join(self._problems))
