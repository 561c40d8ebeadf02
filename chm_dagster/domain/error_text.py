"""Long error texts: the one line that says what went wrong, and the part worth keeping.

Partners send tracebacks, stack traces, whole logs, JSON and HTML pages. The useful line is rarely the first one.
Pure: no clock, no I/O. Every expression is linear in the length of the text.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from chm_dagster.domain.limits import MAX_ERROR_BYTES

SUMMARY_CHARS = 160
"""Characters of a summary, unless the caller asks for another limit."""
_FINGERPRINT_CHARS = 300

_TRACEBACK = "Traceback (most recent call last):"
_MESSAGE_FIELDS = (
    *("message", "error_message", "errorMessage", "error", "detail", "details", "description", "reason", "msg"),
    *("exception", "cause", "title", "errors"),
)
_MAX_DEPTH = 6
_WINDOW = 500_000
"""Characters at the end of a text that are searched."""
_LINE_CHARS = 500
"""Room for the line of a summary: one that begins closer to the end of a piece counts as cut."""
_CUT_JSON = re.compile(r'"(?:message|error_?[mM]essage|detail|reason|msg)"\s*:\s*"((?:[^"\\]|\\.){1,2000})')
_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{1,500})</title", re.IGNORECASE)
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_GUTTER = re.compile(r"^\s*[|+][-+]*[ ]?(?:\+?[-]{3,}.*)?")
"""What stands left of the sub-exceptions of an exception group."""

_DATE = r"\d{4}-\d\d-\d\d[T, ]{1,2}\d\d:\d\d(?::\d\d)?(?:[.,]\d{1,9})?(?: ?(?:Z|UTC|[+-]\d\d(?::?\d\d)?))?"
_PREFIX = re.compile(
    rf"^\[?(?:{_DATE}|\d\d:\d\d:\d\d(?:[.,]\d{{1,9}})?(?= ))\]?"  # a time
    r"(?: ?\{[^}]{1,100}\})?"  # Airflow's {module.py:12}
    r"(?: ?[-|:]?[ ]?\[?(?:DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\]?(?=[ :|-]))?"
    r"(?: ?[-|:])? ?"
)
_EXCEPTION = re.compile(r"(?:Error|Exception|Warning|Interrupt|Exit|Failure|Timeout)\b")
_NAMED = re.compile(r"[A-Za-z_][\w$.]*(?:Error|Exception|Warning|Interrupt|Exit|Failure|Timeout)\b")
_ERROR_WORD = re.compile(
    r"\b(?:error|errors|exception|fail|failed|failure|fatal|denied|refused|panic|abort|aborted|cannot|could not"
    r"|unable to|not found|does not exist|timed out|timeout|killed|out of memory|no space left)\b",
    re.IGNORECASE,
)
_JAVA_THREAD = re.compile(r'^Exception in thread "[^"]{0,200}" ')
_FRAME = re.compile(r"^\s+at \S")
_CAUSED_BY = re.compile(r"^\s*Caused by: (?=\S)")
_LABELLED = re.compile(r"^\s*(?:root )?(?:cause|reason): (?=\S+ \S)", re.IGNORECASE)
"""A line that says itself that it is the cause; `reason: Error` alone tells nothing."""
_DBT = re.compile(r"^\s*(?:\w+ ){0,3}(?:Error|Failure) in \w[\w ]* \S+ \(\S+\)$")
_LEFT_OUT = re.compile(r"^\.\.\. \([\d,]+ of [\d,]+ characters left out\) \.\.\.$")
# What differs between two occurrences of the same error, what stands in for it, and what every such part contains at
# least one of, if anything: looking for that first takes a fraction of the time. The order matters.
_DOMAINS = r"com|net|org|io|dev|app|cloud|local|internal|lan|example|eu|de|uk"
_CODE = "".join(f"(?<!{word})" for word in (r"\bcode ", r"\bcode: ", r"\bstatus ", r"\berrno ", r"\bhttp ", r"error: "))
_VARIABLE_PARTS: tuple[tuple[re.Pattern[str], str, tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), f"<{kind}>", signs)
    for kind, signs, pattern in (
        ("url", ("://",), r"\b[a-z][a-z0-9+.-]{1,20}://[^\s'\"<>(){}|]+"),
        ("address", ("@",), r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
        ("id", ("-",), r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"),
        ("path", ("/", "\\"), r"(?<![\w/<.])(?:[a-z]:)?(?:[/\\][\w.@%+=~-]{1,255}){2,64}[/\\]?"),
        ("path", ("/",), r"(?<![\w/<])/[\w@%+=~-]{1,255}\.[a-z]\w{0,9}\b"),
        (
            "time",
            ("-", "/", ".", "T", "t"),
            rf"\b(?:{_DATE}|\d{{4}}[-/.]\d\d[-/.]\d\d|\d\d[-/.]\d\d[-/.]\d{{4}}|\d{{8}}T\d{{4,6}}Z?)\b",
        ),
        ("time", (":",), r"\b\d\d?:\d\d(?::\d\d)?(?:[.,]\d{1,9})?\b"),
        (
            "host",
            (".", ":"),
            r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b|\[[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}\](?::\d{1,5})?",
        ),
        ("host", (".",), rf"\b(?:[a-z0-9-]{{1,63}}\.){{1,8}}(?:{_DOMAINS})\b(?::\d{{1,5}})?"),
        ("host", (), r"\blocalhost(?::\d{1,5})?\b|\b[a-z][\w.-]{0,100}:\d{2,5}\b"),
        ("id", (), r"\b0x[0-9a-f]+\b|\b(?=[a-f]{0,64}\d)(?=\d{0,64}[a-f])[0-9a-f]{7,64}\b"),
        ("n", (), rf"(?=[-+\d])(?:{_CODE}[-+]?\b\d[\w,.]*\b%?|(?<=[_-])\d[\w-]*|(?<=[a-z])\d{{4,}}\w*)"),
    )
)
_NINES = str.maketrans("012345678", "9" * 9)
_BOILERPLATE = re.compile(
    r"^(?:\W*$|LINE \d+:|HINT:|DETAIL:|CONTEXT:|compiled code at |Done\. PASS=|Completed with \d+ error"
    r"|\[?SQL: |\(Background on this error at: |Marking task as |During handling of the above exception"
    r"|The above exception was the direct cause|File \"|Suppressed: |goroutine \d+|\.\.\. \d+ (?:more|common frames)"
    r"|.{0,100}\bbefore the (?:error|failure)(?:: \d+)?\.?$"
    r"|.{0,60}\b(?:exit code|exit status|return code|exited with(?: code)?) ?-?\d+\.?$)"
)


def error_summary(text: str | None, limit: int = SUMMARY_CHARS) -> str:
    """What went wrong, on one line of at most `limit` characters; empty for a blank text or None.

    Of a traceback the last exception, of a stack trace the root cause, of JSON the message, of an HTML page the title,
    of a log the last line that reports an error, or else its last line that says anything.
    """
    if not text or not text.strip():
        return ""
    line = _one_line(_from_document(text) or _from_lines(text)) or " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def fingerprint(message: str | None) -> str:
    """What two occurrences of the same error have in common: the line of `error_summary`, in lower case, with
    `<url>`, `<address>`, `<time>`, `<path>`, `<host>`, `<id>` and `<n>` in place of what differs from one run, client
    or machine to the next. Empty for a blank text or None.

    Names in quotes and the codes of errors stay: a missing `price` is not a missing `id`, and 401 is not 503. Used
    wherever errors are grouped, so that all mean the same by "the same error". The ledger stores it with each failed
    run: whoever changes what it returns adds a migration that computes it again, as 0020 does.
    """
    line = error_summary(message, _FINGERPRINT_CHARS)
    if "0x" not in line.lower():
        # Apart from 0x, one digit is as good as another: messages that differ in numbers alone are looked at once.
        common = _common_parts(line.translate(_NINES))
        if "9" not in common:
            return common
    return _common_parts(line)


@functools.lru_cache(maxsize=2_000)
def _common_parts(line: str) -> str:
    for pattern, kind, signs in _VARIABLE_PARTS:
        if not signs or any(sign in line for sign in signs):
            line = pattern.sub(kind, line)
    return " ".join(line.lower().split())


def error_excerpt(text: str, limit: int = MAX_ERROR_BYTES) -> str:
    """The text in at most `limit` bytes of UTF-8: its head, its end, and the line that `error_summary` shows.

    A note stands where something is left out. `limit` is at least 1,000.
    """
    if len(text) * 4 <= limit or len(text.encode()) <= limit:
        return text
    room = limit - 2 * len(_note(len(text), len(text))) - len(_TRACEBACK) - 1
    head, tail = _begin(text, room // 4), _whole_lines(_end(text, room // 2))
    rest = len(text) - len(tail)
    traceback, cause = _places(text)
    if len(head) - _LINE_CHARS < cause < rest:
        first = max(len(head), cause)
        middle = _begin(text[first:rest], room // 4)
        pieces = [(0, head), (first, middle), (rest, tail)]
    else:
        tail = _whole_lines(_end(text, room - len(head.encode())))
        pieces = [(0, head), (len(text) - len(tail), tail)]
    return _joined(pieces, len(text), traceback)


def _places(text: str) -> tuple[int, int]:
    """Where the last Python traceback begins (-1: there is none), and the line that says what went wrong."""
    if (field := _message_place(text)) >= 0:
        return -1, field
    offset = max(0, len(text) - _WINDOW)
    lines = text[offset:].splitlines(keepends=True)
    cause = sum(map(len, lines[: _cause(lines)]))
    return text.rfind(_TRACEBACK, offset, offset + cause), offset + cause


def _joined(pieces: list[tuple[int, str]], total: int, traceback: int) -> str:
    """The pieces in a row. A traceback's head is repeated where it was left out above its exception."""
    joined, reached = "", 0
    for start, piece in pieces:
        if start > reached:
            joined += _note(start - reached, total)
            if reached <= traceback + len(_TRACEBACK) and traceback < start and traceback >= 0:
                joined += _TRACEBACK + "\n"
        joined += piece
        reached = start + len(piece)
    return joined


def _note(left_out: int, total: int) -> str:
    return f"\n... ({left_out:,} of {total:,} characters left out) ...\n"


def _begin(text: str, size: int) -> str:
    return text[:size].encode()[:size].decode(errors="ignore")


def _end(text: str, size: int) -> str:
    return text[-size:].encode()[-size:].decode(errors="ignore")


def _whole_lines(text: str) -> str:
    """The text without the rest of a line that it begins with, unless that is most of it."""
    rest, newline, lines = text.partition("\n")
    return lines if newline and len(rest) < len(text) // 2 else text


def _one_line(text: str) -> str:
    return " ".join(_ANSI.sub("", text).split())


# --- JSON and HTML ---------------------------------------------------------------------------------------------------


def _from_document(text: str) -> str:
    start = text.lstrip()[:1]
    if start == "<":
        found = _TITLE.search(text)
        return found[1] if found else ""
    if start not in ("{", "["):
        return ""
    try:
        message = _message(orjson.loads(text))
    except orjson.JSONDecodeError:
        cut = _CUT_JSON.search(text)
        message = _unescaped(cut[1]) if cut else ""
    return error_summary(message, len(message) + 1) if message else ""


def _message_place(text: str) -> int:
    """Where a JSON document's first message field is; -1 in any other text."""
    found = _CUT_JSON.search(text) if text.lstrip()[:1] in ("{", "[") else None
    return found.start() if found else -1


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace('\\"', '"').replace("\\t", "\t")


def _message(value: Any, depth: int = 0) -> str:
    """The first text that a message field of this document holds."""
    if isinstance(value, str):
        return value.strip()
    if depth >= _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return next(filter(None, (_message(item, depth + 1) for item in value)), "")
    if not isinstance(value, Mapping):
        return ""
    return next(filter(None, (_message(value.get(name), depth + 1) for name in _MESSAGE_FIELDS)), "")


# --- lines -----------------------------------------------------------------------------------------------------------


def _from_lines(text: str) -> str:
    if "\n" not in text and "\\n" in text:
        text = _unescaped(text)
    lines = text.rstrip()[-_WINDOW:].splitlines()
    number = _cause(lines)
    line = _plain(lines[number])
    if _DBT.match(line):
        # dbt names the model on one line and the reason on the next.
        reason = next((follow.strip() for follow in map(_plain, lines[number + 1 : number + 4]) if follow.strip()), "")
        return f"{line.strip()}: {reason}" if reason else line
    line = _JAVA_THREAD.sub("", _LABELLED.sub("", _CAUSED_BY.sub("", line)))
    if _TRACEBACK in line:
        return "a traceback without its exception"
    return line if line.strip() else lines[number]


def _plain(line: str) -> str:
    """The line without colours, an exception group's gutter, and the time and level in front; indentation is kept."""
    plain = _ANSI.sub("", line.rstrip())
    for pattern in (_GUTTER, _PREFIX):
        plain = pattern.sub("", plain, count=1)
    return plain


def _cause(lines: list[str]) -> int:
    """Which of the lines says what went wrong; the first if all are blank."""
    plain = [_plain(line) for line in lines]
    start = max((n for n, line in enumerate(plain) if _TRACEBACK in line), default=-1)
    for candidates in (_root_causes(plain, start), _raised(plain, start), _stack_heads(plain), _log_lines(plain)):
        for number in candidates:
            return number
    return max((n for n, line in enumerate(lines) if line.strip()), default=0)


def _root_causes(plain: list[str], start: int) -> Iterator[int]:
    """Java's `Caused by:`, the deepest first; after the last Python traceback where there is one, as in PySpark."""
    return (n for n in range(len(plain) - 1, start, -1) if _CAUSED_BY.match(plain[n]))


def _raised(plain: list[str], start: int) -> Iterator[int]:
    """The exception below the last Python traceback: its first line that is not indented."""
    if start >= 0:
        below = range(start + 1, len(plain))
        yield from (n for n in below if plain[n][:1].strip() and not _LEFT_OUT.match(plain[n]))
        # The end is cut off. An exception that stands before it is the next best.
        yield from (n for n in range(start - 1, -1, -1) if _NAMED.match(plain[n]))


def _stack_heads(plain: list[str]) -> Iterator[int]:
    """The exception above the first frame of a stack trace (Java, JavaScript, .NET), and Go's panic."""
    for n, line in enumerate(plain):
        if line.startswith("panic: "):
            yield n
        if n and _FRAME.match(line):
            above = [m for m in range(max(0, n - 5), n) if plain[m].strip()]
            named = [m for m in above if _EXCEPTION.search(plain[m])]
            yield from (named or above)[-1:]
            return


def _log_lines(plain: list[str]) -> Iterator[int]:
    """dbt's first error, then the line that names the cause, those that report an error, any that say something; the
    last first.
    """
    yield from (n for n, line in enumerate(plain) if _DBT.match(line))
    yield from (n for n in range(len(plain) - 1, -1, -1) if _LABELLED.match(plain[n]))
    said = [n for n in range(len(plain) - 1, -1, -1) if not _empty_words(plain[n])]
    yield from (n for n in said if _EXCEPTION.search(plain[n]) or _ERROR_WORD.search(plain[n]))
    yield from said


def _empty_words(line: str) -> bool:
    words = line.strip()
    return bool(_BOILERPLATE.match(words) or _LEFT_OUT.match(words) or _TRACEBACK in words)
