"""AWS Signature Version 4 as a server checks it, written from its specification and without botocore."""

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlsplit


def signature_of(
    method: str, target: str, headers: Mapping[str, str], body: bytes, *, secret: str, scope: str, signed: str
) -> str:
    """The signature that this request should have. Names of `headers` are in lower case."""
    url = urlsplit(target)
    # The path was encoded once on its way, and is encoded once more to be signed.
    path = quote(url.path, safe="/-_.~") or "/"
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(url.query, True))
    canonical = [
        method,
        path,
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{' '.join(headers[name].split())}" for name in signed.split(";")),
        "",
        signed,
        hashlib.sha256(body).hexdigest(),
    ]
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    to_sign = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashed])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def is_signed(
    method: str, target: str, headers: Mapping[str, str], body: bytes, *, key_id: str, secret: str, service: str
) -> bool:
    """Whether the request is signed with this key, for this service in eu-west-1."""
    kind, _, rest = headers.get("authorization", "").partition(" ")
    fields = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
    if kind != "AWS4-HMAC-SHA256" or not {"Credential", "SignedHeaders", "Signature"} <= fields.keys():
        return False
    given_id, _, scope = fields["Credential"].partition("/")
    names = fields["SignedHeaders"].split(";")
    if given_id != key_id or not {"host", "x-amz-date"} <= set(names) or not set(names) <= headers.keys():
        return False
    if scope != f"{headers['x-amz-date'][:8]}/eu-west-1/{service}/aws4_request":
        return False
    wanted = signature_of(method, target, headers, body, secret=secret, scope=scope, signed=fields["SignedHeaders"])
    return hmac.compare_digest(wanted, fields["Signature"])
