"""Keeps the HTTP libraries' own log lines out of every log.

httpx writes each full URL, with its query, at INFO; httpcore writes response headers and hpack writes the
`Authorization` header at DEBUG. `partners.http` logs what an operator needs, without any of that. A filter is used
and not a level, because a level is undone by whoever configures logging later.
"""

import logging

# A filter on a logger is not asked about its children's records, so every logger that writes is named.
_CHATTY = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "hpack.hpack",
    "hpack.table",
)


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


_SILENCE = _Silence()


def silence_http_loggers() -> None:
    """Drop everything that httpx, httpcore and hpack log. Calling it again changes nothing."""
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_SILENCE)
