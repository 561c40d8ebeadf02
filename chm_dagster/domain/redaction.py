"""Mask secrets in what partners send.

Error texts, links and run configurations often hold passwords and tokens. CHM masks them before it stores or shows
anything. When in doubt, it masks: a masked harmless word costs less than a stored secret. It cannot find secrets
without a known form, such as a password in plain prose.

Every pattern runs in linear time, because partners choose the text.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from chm_dagster.domain.limits import BIGINT_MAX

MASK = "***"

_NAME = (
    r"(?:pass[_. -]?(?:word|wd|phrase)|pwd|secret|token|credential|authorization|cookie|signature"
    r"|(?:api|access|private|account|signing|encryption)[_. -]?key)"
)
_SECRET_NAME = re.compile(
    _NAME + r"|dsn|conn(?:ection)?[_. -]?(?:str|uri|url)|(?:^|[_. -])pass$|auth$", re.ASCII | re.IGNORECASE
)

# Ordinary texts hold none of these, so that one search clears them. What a pattern below can match must match here.
# Every branch starts with a letter that is rare in ids and times: the engine skips the others at the speed of C.
_TRACE = re.compile(
    r"k(?:e[ny]|ie|ia|s\.slack|[-_](?<=[sr]k[-_])(?<![a-z0-9][sr]k[-_]))|w(?:d|ord)|cre[dt]|z(?:ation|a[\w-]{16})"
    r"|xox|xapp|yj[\w-]|b(?:earer|asic|egin |t[cus]_)|g(?:h[oprsu]_|ithub_|lpat|=|nature)"
    r"|p(?:hrase|ass=|i[0-9a-f]{16}|n[ub]_|m_)"
)

# A value ends before the next `name=`; a bracket opens something that is looked through by itself.
_VALUE = (
    r"""(?:(?P<escaped>\\{1,4}")[^"]*"?|(?P<quote>["'])(?:\\.|(?!(?P=quote))[^\\])*(?P=quote)?|\{[^{}:=]{1,200}\}"""
    r"""|(?:(?:bearer|basic|token|digest|negotiate)[ \t]{1,4})?(?![{\[(])"""
    rf"""(?!{_NAME}[\w-]{{0,24}}["']?[ \t]?[:=])(?:[^\s&;,"'<]|,(?![ \w.-]{{1,40}}["']?[ \t]?[:=]))+)"""
)
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL)
_USERINFO = re.compile(
    r"""://(?:[^\s/?#"'<>]*@|[^\s/:@?#"'<>]*:(?!\d{1,5}[/?#])[^\s@"'<>]{1,128}@)""",
)
_COOKIES = re.compile(r"(cookie: ?)[^\r\n\"']+", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<name>(?:" + _NAME + r"s?\d{0,2}(?:[_-][a-z0-9_-]{1,24})?|(?<![a-z])(?:pass|sig)(?==))"
    r"(?:\\{0,4}[\"']?[ \t]{0,4}(?:=>?|:|%3[ad])[ \t]{0,4}|>(?=[^\s<>=])))" + _VALUE,
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_OPTION = re.compile(
    r"(?P<name>(?<![\w-])--(?=[a-z])[a-z-]{0,30}" + _NAME + r"[a-z-]{0,20}[ \t]{1,4})" + _VALUE,
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_SCHEME = re.compile(
    r"\b(bearer|basic)[ \t]+(?:[\w.~+/=-]{16,}|(?=[a-z.~_+/-]{0,16}[\d=])[\w.~+/=-]{6,})", re.ASCII | re.IGNORECASE
)
_TOKEN = re.compile(
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*"
    r"|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z0-9]{12,}|sk-[\w-]{16,}|[rs]k_(?:live|test)_\w{8,}|gh[oprsu]_\w{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{8,}|xapp-[\w-]{8,}|AIza[\w-]{30,}|dapi[0-9a-f]{24,}"
    r"|pn[ub]_\w{16,}|dbt[cus]_[\w-]{16,}|npm_\w{30,})"
    r"|(?<=hooks\.slack\.com/services/)[\w/]+",
    re.ASCII,
)


_LONG_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_TOKEN_CHANGES = 8
"""Random text of 20 characters changes its kind about ten times; `acmeProductionAirflow2024` five times."""


@functools.lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def is_secret_name(name: str) -> bool:
    """True if a field of this name holds a secret: `password`, `DB_PASSWORD`, `apiKey`, `x-api-key`, `auth`, `dsn`."""
    # Partners choose the names: only short ones may stay in the cache.
    return _is_secret_name(name) if len(name) <= 64 else _SECRET_NAME.search(name) is not None


def is_count_name(name: str) -> bool:
    """True if numbers under this secret-looking name are counts: `tokens_used: 512`, `pass: 17`, `fail: 0`."""
    return "token" in name.lower() or name.lower().endswith("pass")


def may_hold_secret(text: str) -> bool:
    """False only if `redact` would not change the text. Cheap enough for every record."""
    return _TRACE.search(text.lower()) is not None or ("@" in text and "://" in text) or "ASIA" in text


def looks_like_secret(text: str) -> bool:
    """Whether a name is more likely a token: of a known form, or a long run of mixed letters and digits."""
    if redact(text) != text:
        return True
    return any(_changes(run) >= _TOKEN_CHANGES for run in _LONG_RUN.findall(text))


def _changes(run: str) -> int:
    """How often a run of characters changes between lower case, upper case and digits."""
    kinds = [(char.isdigit(), char.isupper()) for char in run]
    return sum(first != second for first, second in itertools.pairwise(kinds))


def redact(text: str) -> str:
    """The text with every secret replaced by `***`; what was masked before stays masked.

    Known forms: `name=value` and `name: value` of secret-looking names, quoted or not; user and password in URLs;
    `Bearer` and `Basic` credentials; cookies; JWTs; private keys; tokens of well-known prefixes.
    """
    if not may_hold_secret(text):
        return text
    text = _PEM.sub(MASK, text)
    text = _USERINFO.sub(f"://{MASK}@", text)
    text = _COOKIES.sub(rf"\1{MASK}", text)
    text = _NAMED.sub(_masked, text)
    text = _OPTION.sub(_masked, text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    return _TOKEN.sub(MASK, text)


def _masked(match: re.Match[str]) -> str:
    # Quotes stay, so that JSON inside a text stays JSON.
    quote = match["quote"] or match["escaped"] or ""
    return f"{match['name']}{quote}{MASK}{quote}"


# --- records that can be stored as they are: nearly all, and checking is much cheaper than cleaning -------------------

HOSTILE = re.compile("[\x00\ud800-\udfff]")
"""NUL and lone surrogates, which Postgres rejects."""

MAX_DEPTH, MAX_ITEMS = 3, 256
MAX_SHAPE_CHARS, MAX_SHAPES = 1_000, 10_000

_ALL_DIGITS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_harmless_shapes: set[bytes] = set()


def is_ordinary(record: dict[Any, Any]) -> bool:
    """True only if nothing in a record must be cleaned or masked. A large or deep record is never ordinary."""
    texts: list[str] = []
    return _gather(record, texts, 0) and _is_harmless("\n".join(texts))


def have_ordinary_names(record: Mapping[Any, Any]) -> bool:
    """True only if no field name must be cleaned, and none says that its field, or another one, holds a secret."""
    try:
        names = "\n".join(record)
    except TypeError:
        return False
    # A partner's records share their names: one check covers all of them. Only short ones are cached.
    return len(names) <= 2_000 and _are_ordinary_names(names)


@functools.lru_cache(maxsize=1024)
def _are_ordinary_names(names: str) -> bool:
    # A field "value" may be the other half of a secret's name.
    plain = HOSTILE.search(names) is None and redact(names) == names
    return plain and not any(name == "value" or is_secret_name(name) for name in names.split("\n"))


def _gather(value: dict[Any, Any] | list[Any], texts: list[str], depth: int) -> bool:
    """Collect all texts of a small JSON value; False as soon as something in it is not ordinary."""
    if depth > MAX_DEPTH or len(value) > MAX_ITEMS:
        return False
    items: Iterable[Any] = value
    if isinstance(value, dict):
        if not have_ordinary_names(value):
            return False
        items = value.values()
    for item in items:
        kind = type(item)
        if kind is str:
            texts.append(item)
        elif item is None or kind is bool:
            continue
        elif kind is int:
            if not -BIGINT_MAX <= item <= BIGINT_MAX:
                return False
        elif kind is float:
            if not math.isfinite(item):
                return False
        elif kind not in (dict, list) or not _gather(item, texts, depth + 1):
            return False
    return True


def _is_harmless(text: str) -> bool:
    """True if a text holds nothing hostile and no trace of a secret. Its digits make no difference."""
    if not text.isascii() or len(text) > MAX_SHAPE_CHARS:
        return HOSTILE.search(text) is None and not may_hold_secret(text)
    # The texts of one pipeline's runs differ in digits only: one check covers most of them.
    shape = text.encode().translate(_ALL_DIGITS_ZERO)
    if shape in _harmless_shapes:
        return True
    if "\0" in text or may_hold_secret(text):
        return False
    if len(_harmless_shapes) >= MAX_SHAPES:
        _harmless_shapes.clear()
    _harmless_shapes.add(shape)
    return True
