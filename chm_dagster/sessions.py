"""Sessions of browsers: whoever knows the server's token gets a signed cookie, and sends that from then on.

The signature depends on the token, so a new token ends all sessions.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

SESSION_SECONDS = 30 * 86_400
MAX_FORM_BYTES = 4_096


class Sessions:
    """The sessions of one server. `cookie` is a name of its own: cookies of a machine are shared by all its ports."""

    def __init__(self, token: str, cookie: str) -> None:
        self._token = token.encode()
        self._cookie = cookie

    def is_token(self, text: str) -> bool:
        """Whether this is the server's token. The time that the comparison takes reveals nothing."""
        return _equal(text.strip().encode(), self._token)

    def is_open(self, cookies: Mapping[str, str]) -> bool:
        """Whether the cookies hold a session that this server has begun and that has not expired."""
        expires, _, signature = cookies.get(self._cookie, "").partition(".")
        return (
            expires.isascii()
            and expires.isdigit()
            and _equal(signature.encode("latin-1", "replace"), self._signature(expires).encode())
            and time.time() < int(expires[:12])
        )

    def begin(self, response: Response, request: Request) -> None:
        """Let the response set the cookie: not for scripts, not for other sites, over TLS only if it came over TLS."""
        expires = str(int(time.time()) + SESSION_SECONDS)
        secure = "https" in (urlsplit(request.headers.get("origin", "")).scheme, request.url.scheme)
        value = f"{expires}.{self._signature(expires)}"
        response.set_cookie(self._cookie, value, SESSION_SECONDS, httponly=True, samesite="lax", secure=secure)

    def end(self, response: Response) -> None:
        """Let the response remove the cookie."""
        response.delete_cookie(self._cookie, httponly=True, samesite="lax")

    def _signature(self, expires: str) -> str:
        return hmac.new(self._token, f"{self._cookie}:{expires}".encode(), hashlib.sha256).hexdigest()


def _equal(one: bytes, other: bytes) -> bool:
    # Digests are of one length, so the time that the comparison takes reveals nothing.
    return hmac.compare_digest(hashlib.sha256(one).digest(), hashlib.sha256(other).digest())


def local_path(path: str | None) -> str:
    """A path on this server, never an address elsewhere."""
    local = path is not None and path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if path is not None and local and path.isprintable() else "/"


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a posted form; none of one that is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace")))
