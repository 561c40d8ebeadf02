"""What an answer, or the lack of one, means: an error that says it in safe words, and whether to ask again.

Errors are made from the connection's name, the path below the base URL and a status; URLs, queries, headers, bodies
and the libraries' exceptions (which carry all of them) never get into one.
"""

import dataclasses
import re
import ssl
from datetime import datetime

import httpx

from chm_dagster.errors import AuthError, PartnerError, Permanent, RateLimited, SchemaDrift, Transient
from chm_dagster.partners.addresses import redirect_host
from chm_dagster.partners.body import TooLargeError, UnknownEncodingError
from chm_dagster.partners.retry import RETRY_COST, TIMEOUT_COST, Misconfigured, retry_after_seconds

_MAX_SHOWN_PATH = 200


class Refused(Permanent):
    """The partner refused the request for good with this HTTP `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended. It is returned and not raised, so that no library exception hangs on it as context."""

    error: PartnerError
    retry: bool = False
    cost: int = RETRY_COST
    retry_after: float | None = None
    status: int | None = None
    """The HTTP status, where it says that the credentials were refused."""

    @property
    def denied(self) -> bool:
        """Whether a new session may help."""
        return self.status in (401, 403)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdicts:
    """Judges the answers of one connection. `auth_hint` says what to do about refused credentials."""

    connection: str
    host: str
    auth_hint: str
    max_wait: float

    def says(self, path: str, what: str) -> str:
        """The text of an error about this path."""
        shown = path if len(path) <= _MAX_SHOWN_PATH else path[:_MAX_SHOWN_PATH] + "..."
        return f"connection {self.connection}: {shown or '/'}: {what}"

    def refusal(
        self, path: str, response: httpx.Response, server_time: datetime | None, now: datetime, *, known: bool
    ) -> Failure | None:
        """Why the answer is of no use, told by its status and headers; None for one whose body may be read.

        `known` says that the same credentials were accepted before: a 403 is then about the thing that was asked for.
        """
        status = response.status_code
        if 200 <= status < 300:
            return self._unreadable(path, response)
        if status == 403 and known:
            what = "refused (403): the credentials are accepted, but they may not read this"
            return Failure(Refused(self.says(path, what), status), status=status)
        if status in (401, 403):
            what = f"connection {self.connection}: credentials refused ({status}); {self.auth_hint}"
            return Failure(AuthError(what), status=status)
        if 300 <= status < 400:
            to = redirect_host(response.headers.get("location", ""), self.host)
            what = f"redirect ({status}) to {to} not followed; set base_url to the final address"
            return Failure(Misconfigured(self.says(path, what)))
        if status in (429, 503):
            return self._asked_to_wait(path, response, server_time, now)
        if status == 408 or (status >= 500 and status not in (501, 505)):
            return Failure(Transient(self.says(path, f"answered {status}")), retry=True)
        return Failure(Refused(self.says(path, f"refused ({status})"), status))

    def _unreadable(self, path: str, response: httpx.Response) -> Failure | None:
        status = response.status_code
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if status in (204, 205):
            return Failure(SchemaDrift(self.says(path, f"an answer without content ({status})")))
        if not _may_be_json(kind):
            return Failure(SchemaDrift(self.says(path, f"not JSON but {_shown_type(kind)}")))
        return None

    def _asked_to_wait(
        self, path: str, response: httpx.Response, server_time: datetime | None, now: datetime
    ) -> Failure:
        status = response.status_code
        wish = retry_after_seconds(response.headers.get("retry-after"), server_time=server_time, now=now)
        too_long = wish is not None and wish > self.max_wait
        if status == 429 or too_long:
            wait = "" if wish is None else f", asks to wait for {wish:.0f} s"
            error: Transient = RateLimited(self.says(path, f"answered {status}{wait}"), wish)
        else:
            error = Transient(self.says(path, f"answered {status}"))
        return Failure(error, retry=not too_long, retry_after=wish)

    def broken(self, path: str, error: Exception, cap: int) -> Failure:
        """What an exception on the way means. `cap` is the size, in bytes, that a body must not exceed."""
        if isinstance(error, (TimeoutError, httpx.TimeoutException)):
            return Failure(Transient(self.says(path, "no full answer in time")), retry=True, cost=TIMEOUT_COST)
        if isinstance(error, TooLargeError):
            return Failure(Permanent(self.says(path, f"the answer is larger than {cap} bytes")))
        if isinstance(error, UnknownEncodingError):
            return Failure(SchemaDrift(self.says(path, "compressed in a way that was not asked for")))
        if isinstance(error, httpx.ConnectError):
            if _is_tls_refusal(error):
                return Failure(Misconfigured(self.says(path, "no TLS connection that can be trusted")))
            return Failure(Transient(self.says(path, "could not be reached")), retry=True)
        return Failure(Transient(self.says(path, f"the answer broke off ({type(error).__name__})")), retry=True)


def _may_be_json(kind: str) -> bool:
    return "json" in kind or kind in ("", "text/plain", "application/octet-stream", "text/javascript")


def _shown_type(kind: str) -> str:
    return kind if re.fullmatch(r"[a-z0-9.+/-]{1,80}", kind) else "another content type"


def _is_tls_refusal(error: BaseException) -> bool:
    passing = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, passing):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
