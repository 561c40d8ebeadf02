"""Addresses: a base URL that is safe to use, paths below it, and links that must not lead away from it."""

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import httpx

from chm_dagster.errors import ConfigError

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def checked_base(connection: str, base_url: str) -> httpx.URL:
    """The base URL, parsed. Raises ConfigError for one that cannot be used, without showing it."""
    url: httpx.URL | None
    try:
        urlsplit(base_url).port  # noqa: B018 - raises on what is no port
        url = httpx.URL(base_url.strip())
    except (ValueError, TypeError, httpx.InvalidURL):
        url = None
    # Raised out here, because the caught exceptions quote parts of the URL.
    if url is None or url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"connection {connection}: base_url is not a URL that starts with http:// or https://")
    if url.userinfo or "?" in base_url or "#" in base_url:
        raise ConfigError(
            f"connection {connection}: base_url must be free of user, password, query and fragment; "
            "put the token into the variable that holds it"
        )
    return url


def encoded_segment(segment: str) -> str:
    """The segment, percent-encoded as a whole; empty for one that cannot be part of a path."""
    # Dots survive encoding, and a path normaliser anywhere on the way would walk up to another resource.
    if segment in (".", ".."):
        return ""
    try:
        return quote(segment, safe="")
    except UnicodeEncodeError:
        return ""


def redirect_host(location: str, own: str) -> str:
    """The host that a redirect leads to, in words that are safe to show; `own` for one within the host."""
    try:
        host = urlsplit(location).hostname
    except ValueError:
        host = ""
    if host is None:
        return own
    return host if _HOST.fullmatch(host) else "an unreadable address"


def link_below(base_url: str, link: str) -> tuple[Sequence[str], Sequence[tuple[str, str]]] | None:
    """The path segments below the base URL and the parameters of a link that a partner sent; None if it leads away.

    A link without a host counts from the host of the base URL.
    """
    try:
        base, there = urlsplit(base_url), urlsplit(link)
        if there.netloc and _origin(there.scheme, there.hostname, there.port) != _origin(
            base.scheme, base.hostname, base.port
        ):
            return None
        params = parse_qsl(there.query, keep_blank_values=True, errors="strict")
    except ValueError:
        return None
    root = base.path.rstrip("/")
    if there.username or there.password or not there.path.startswith(f"{root}/"):
        return None
    return [unquote(part) for part in there.path[len(root) + 1 :].split("/")], params


def _origin(scheme: str, host: str | None, port: int | None) -> tuple[str, str | None, int | None]:
    return scheme, host, port or _DEFAULT_PORTS.get(scheme)
