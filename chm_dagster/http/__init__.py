"""Outbound HTTP: the only package that imports httpx. It knows no partner."""

import logging

# httpx logs each full URL with its query at INFO, httpcore response headers and hpack the Authorization header at
# DEBUG. Logger filters do not apply to child loggers, so every logger that writes is listed.
_LOGGERS = (
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
    """Drop everything that httpx, httpcore and hpack log. Idempotent.

    Filters, unlike levels, survive whoever configures logging later.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_SILENCE)
