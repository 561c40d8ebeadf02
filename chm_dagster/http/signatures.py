"""Sign-ins that are code: requests signed for AWS, and signed JWTs, which Google and GitHub exchange for tokens.

The libraries are optional extras of the package, and are imported when a connection needs them.
"""

import importlib
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from chm_dagster.errors import ConfigError
from chm_dagster.http.auth import TOKEN_HINT, AuthParts, Send

_MAX_ASSERTION_SECONDS = 540
"""GitHub accepts ten minutes at the most, by its own clock; Google an hour."""
_SKEW_SECONDS = 60
"""How far our clock may be ahead of the server's: an assertion from the future is refused."""


def library(label: str, module: str, extra: str) -> Any:
    """The module of an optional extra. Raises ConfigError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        pass
    package = module.partition(".")[0]
    raise ConfigError(
        f"{label}: this sign-in needs the package {package}, which is not installed; pip install 'chm-dagster[{extra}]'"
    )


class AwsSignature:
    """Signs each attempt of a request with AWS Signature Version 4. Raises ConfigError without botocore."""

    has_login = False
    sends_credentials = True

    def __init__(
        self,
        label: str,
        *,
        service: str,
        region: str,
        access_key_id: str,
        secret_access_key: str,
        session_token: str | None = None,
        hint: str = TOKEN_HINT,
    ) -> None:
        self.hint = f"{hint}, and the clock of this machine"
        self._request = library(label, "botocore.awsrequest", "aws").AWSRequest
        credentials = library(label, "botocore.credentials", "aws").Credentials
        signer = library(label, "botocore.auth", "aws").SigV4Auth
        self._signer = signer(credentials(access_key_id, secret_access_key, session_token), service, region)

    async def authenticate(self, send: Send, request: httpx.Request) -> AuthParts:
        """The signature's headers. It covers method, address, parameters, body and the headers that AWS reads."""
        signed = {
            name: value
            for name, value in request.headers.items()
            if name.startswith("x-amz-") or name in ("content-type", "host")
        }
        url = urlsplit(str(request.url))
        unsigned = self._request(
            request.method,
            url._replace(query="").geturl(),
            headers=signed,
            data=request.content,
            # Decoded: the signature has its own way to encode them, which is stricter than that of URLs.
            params=list(request.url.params.multi_items()),
        )
        self._signer.add_auth(unsigned)
        return {name: value for name, value in unsigned.headers.items() if name.lower() not in signed}, ()

    def renew(self, refused: AuthParts, *, expired: bool) -> bool:
        """Never: the same keys would be refused again."""
        return False


class JwtSigner:
    """Signs short-lived assertions with an RSA key in PEM form.

    Raises ConfigError without PyJWT, or, without showing it, for an unusable key. `extra` names the extra to install.
    """

    def __init__(self, label: str, private_key: str, *, extra: str, hint: str, key_id: str | None = None) -> None:
        self._jwt = library(label, "jwt", extra)
        library(label, "cryptography", extra)
        # Environment files hold line breaks as \n.
        self._key = private_key.replace("\\n", "\n")
        self._headers = {} if key_id is None else {"kid": key_id}
        problem = False
        try:
            self.assertion({})
        except (ValueError, TypeError, self._jwt.PyJWTError):
            problem = True
        # Raised outside of the handler: the caught exceptions may quote the key.
        if problem:
            raise ConfigError(f"{label}: the private key is not an unencrypted RSA key in PEM form; {hint}")

    def assertion(self, claims: Mapping[str, Any]) -> str:
        """The signed claims, with the times of issue and expiry by our clock."""
        now = int(time.time())
        times = {"iat": now - _SKEW_SECONDS, "exp": now + _MAX_ASSERTION_SECONDS}
        return str(self._jwt.encode({**times, **claims}, self._key, algorithm="RS256", headers=self._headers))
