"""Reads the body of an answer under a cap, and parses it.

httpx decompresses each chunk as a whole, and a chunk of 64 kB may hold 64 MB; a gzip stream that was cut short comes
out of it as a shorter body without an error. So the raw bytes are decompressed here: bounded, and checked for an end.
"""

import json
import math
import zlib
from typing import Any, NoReturn

import httpx
import orjson


class BodyError(Exception):
    """The body could not be read to its end: it was cut, or its compression is damaged."""


class TooLargeError(BodyError):
    """The body is larger than the cap."""


class UnknownEncodingError(BodyError):
    """The body is compressed in a way that was not asked for."""


async def read_body(response: httpx.Response, cap: int) -> bytes:
    """The decompressed body, at most `cap` bytes; stops reading as soon as there are more.

    Raises TooLargeError, UnknownEncodingError, BodyError, and what httpx raises for a broken connection.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise UnknownEncodingError
    gunzip = _Gunzip() if encoding.endswith("gzip") else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += gunzip.feed(chunk, cap - len(body)) if gunzip else chunk
        if len(body) > cap:
            raise TooLargeError
    if gunzip and not gunzip.whole:
        raise BodyError
    return bytes(body)


class _Gunzip:
    """Decompresses gzip piece by piece, and never makes more than it has room for."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._started = False

    def feed(self, data: bytes, room: int) -> bytes:
        """At most `room + 1` bytes: the one too many tells the caller that there is more."""
        out = bytearray()
        while data and len(out) <= room:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            self._started = True
            try:
                out += self._member.decompress(data, room + 1 - len(out))
            except zlib.error:
                raise BodyError from None
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        return bytes(out)

    @property
    def whole(self) -> bool:
        return self._member.eof or not self._started


def parse_json(body: bytes) -> Any:
    """The JSON value of a body. Raises ValueError or RecursionError for what is not JSON, NaN and Infinity included.

    Strings may hold NUL and lone surrogates: whoever maps a record decides about them.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # Half a surrogate pair in one record, or a byte order mark, must not cost the whole page.
        return json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of floats")
    return value
