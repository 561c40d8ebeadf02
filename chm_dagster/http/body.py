"""Read a response body under a size cap, and parse it.

httpx decompresses whole chunks, and a chunk of 64 kB may expand to 64 MB; a truncated gzip stream yields a shorter
body without an error. So the raw bytes are decompressed here, bounded and checked for their end.
"""

import codecs
import json
import math
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson

MAX_VALUES = 2_000_000
"""Per response: about 30 values in each of 64,000 records. As objects they take at most about 200 MB."""
MAX_DEPTH = 100
MAX_ERROR_BODY = 64 * 1024


class BodyError(Exception):
    """The body is truncated, or its compression is damaged."""


class TooLargeError(BodyError):
    """The body is larger than the cap."""


class TooManyValuesError(BodyError):
    """The body holds more JSON values than anybody can use; as objects they would take many times its size."""


class UnknownEncodingError(BodyError):
    """The body has an encoding that the request did not accept."""


@asynccontextmanager
async def streamed(client: httpx.AsyncClient, request: httpx.Request) -> AsyncIterator[httpx.Response]:
    """The response to the request, with its body still to be read."""
    response = await client.send(request, stream=True)
    try:
        yield response
    finally:
        await response.aclose()


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
    """Decompresses gzip incrementally within a given room."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._started = False

    def feed(self, data: bytes, room: int) -> bytes:
        """At most `room + 1` bytes: the extra one means that there is more."""
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
    """The JSON value of a body, read as leniently as is safe: one bad value must not cost the whole response.

    NaN, infinities and numbers beyond the range of floats become None, integers beyond 64 bits their digits as text,
    values nested deeper than MAX_DEPTH None, and bytes that are not UTF-8 the characters that Latin-1 has for them.
    Strings may hold NUL and lone surrogates.

    Raises TooManyValuesError before any object is built, and ValueError for a body that is not JSON.
    """
    if _value_count(body) > MAX_VALUES and _value_count(_without_strings(body)) > MAX_VALUES:
        raise TooManyValuesError
    is_deep = _is_deep(body) and _is_deep(_without_strings(body))
    if not is_deep:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
    text = _text(body)
    return _DECODER.decode(_without_deep_values(text) if is_deep else text)


def _value_count(body: bytes) -> int:
    """How many values there are, at most: commas and brackets inside strings count as well."""
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _is_deep(body: bytes) -> bool:
    """Whether values may be nested deeper than MAX_DEPTH; brackets inside strings count as well."""
    brackets = body.translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        inner = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return len(brackets) > 0


def _without_strings(body: bytes) -> bytes:
    return re.sub(rb'"[^"]*"', b"", body.replace(rb"\\", b"").replace(rb"\"", b""))


def _without_deep_values(text: str) -> str:
    """The text with null in the place of every value nested deeper than MAX_DEPTH."""
    kept: list[str] = []
    depth = start = 0
    for token in _STRUCTURE.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [text[start : token.start()], "null"]
        elif token[0] in "]}":
            depth -= 1
            if depth == MAX_DEPTH:
                start = token.end()
    return "".join([*kept, text[start:]])


def _text(body: bytes) -> str:
    encoding = json.detect_encoding(body)
    return body.decode(encoding, errors="latin-1-bytes" if encoding.startswith("utf-8") else "replace")


def _latin_1_bytes(error: UnicodeError) -> tuple[str, int]:
    """Decodes the bytes of an error one by one; unlike a replacement character, that keeps ids apart."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _int(text: str) -> int | str:
    # 64 bits have at most 20 digits and a sign, and Python refuses to read thousands of them.
    value = int(text) if len(text) <= 21 else None
    return value if value is not None and -(2**63) <= value < 2**64 else text


codecs.register_error("latin-1-bytes", _latin_1_bytes)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=lambda name: None, strict=False)


async def error_body(response: httpx.Response) -> Any:
    """The JSON of an error; None if it is no JSON, too long, or does not arrive."""
    try:
        return parse_json(await read_body(response, MAX_ERROR_BODY))
    except (BodyError, httpx.HTTPError, httpx.StreamError, ValueError, RecursionError):
        return None
