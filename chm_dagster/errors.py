"""Every error that CHM raises on purpose, split by what to do next.

- `ConfigError`: a person must change a setting; retrying cannot help.
- `RemoteError`: a request to a partner or another server failed. `Transient` and `RateLimited` pass by themselves,
  `AuthError`, `Permanent` and `SchemaDrift` need a person.
- `InputError`, `NotFound`, `Conflict`: the request was wrong; the message names the field and the fix.
- `Busy`: somebody else is doing this right now.
- `DatabaseUnavailable`: Postgres does not answer; nothing was written.
- `StorageUnavailable`: a file of CHM's own cannot be written or read, for lack of space or rights.

Messages are shown to people as they are. They never hold a secret, a URL's userinfo or its query.
"""


class ChmError(Exception):
    """Base of all of CHM's own errors."""


class ConfigError(ChmError):
    """A setting is missing or wrong."""


class InputError(ChmError):
    """A value was refused. `field` names it, `issue` says what would be accepted.

    `details` lists all (field, issue) pairs where several values were refused at once; the first is `field`, `issue`.
    """

    def __init__(self, field: str, issue: str, *others: tuple[str, str]) -> None:
        more = f" (and {len(others)} more: {', '.join(name for name, _ in others)})" if others else ""
        super().__init__(f"{field}: {issue}{more}")
        self.field = field
        self.issue = issue
        self.details = ((field, issue), *others)


class NotFound(ChmError):
    """The thing that was asked for does not exist."""


class Conflict(ChmError):
    """The thing exists already, or something else holds its name."""

    def __init__(self, field: str, issue: str) -> None:
        super().__init__(f"{field}: {issue}")
        self.field = field
        self.issue = issue
        self.details = ((field, issue),)


class Busy(ChmError):
    """Somebody else is doing this right now, or holds what it needs; try again when that is done."""


class DatabaseUnavailable(ChmError):
    """Postgres could not be reached, or it ended the session."""


class StorageUnavailable(ChmError):
    """A file under CHM's home cannot be written or read: the disk is full, or rights are missing."""


class RemoteError(ChmError):
    """A request to another server failed."""


class AuthError(RemoteError):
    """The server refused our credentials (401, 403)."""


class Transient(RemoteError):
    """A failure that may pass by itself: 5xx, a timeout, a broken connection."""


class RateLimited(Transient):
    """The server asked us to wait: `retry_after` seconds, None if it did not say how long."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Permanent(RemoteError):
    """The same request will fail again: 400, 404, 410, a redirect, too large a response."""


class ResponseTooLarge(Permanent):
    """The response exceeds the size limit, or has too many values for the memory. Fewer records at a time may fit."""


class NotAtPartner(Permanent):
    """The partner answers, and does not know this pipeline."""


class DeadlineExceeded(RemoteError):
    """Reading the connection took longer than its deadline; what had arrived by then is kept."""


class SchemaDrift(RemoteError):
    """The response is not in the agreed format."""
