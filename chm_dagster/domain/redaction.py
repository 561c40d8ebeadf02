"""Mask secrets in what partners send.

Error texts, links and run configurations of other people's pipelines hold passwords and tokens more often than anyone
likes. Whatever CHM stores or shows of them passes through here first. It rather masks a harmless word too many than a
secret too few; what it does not know (a password in plain prose, a token of a form of its own) it cannot find.

Every pattern takes linear time: partners choose the text.
"""

import functools
import re

MASK = "***"

_NAME = (
    r"(?:pass[_. -]?(?:word|wd|phrase)|pwd|secret|token|credential|authorization|cookie|signature"
    r"|(?:api|access|private|account|signing|encryption)[_. -]?key)"
)
_SECRET_NAME = re.compile(
    _NAME + r"|dsn|conn(?:ection)?[_. -]?(?:str|uri|url)|(?:^|[_. -])pass$|auth$", re.ASCII | re.IGNORECASE
)

# Ordinary texts hold none of these, so that one pass clears them. Whatever a pattern below can match must show here.
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


@functools.lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def is_secret_name(name: str) -> bool:
    """True if a field of this name holds a secret: `password`, `DB_PASSWORD`, `apiKey`, `x-api-key`, `auth`, `dsn`."""
    # A name is of the partner's choosing: only short ones may live on in the cache.
    return _is_secret_name(name) if len(name) <= 64 else _SECRET_NAME.search(name) is not None


def is_count_name(name: str) -> bool:
    """True if numbers under this secret-looking name are counts: `tokens_used: 512`, `pass: 17`, `fail: 0`."""
    return "token" in name.lower() or name.lower().endswith("pass")


def may_hold_secret(text: str) -> bool:
    """False only if `redact` would leave the text as it is. Cheap: the test that ordinary records take."""
    return _TRACE.search(text.lower()) is not None or ("@" in text and "://" in text) or "ASIA" in text


def redact(text: str) -> str:
    """The text with every secret in it replaced by `***`; what was masked before stays masked.

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
