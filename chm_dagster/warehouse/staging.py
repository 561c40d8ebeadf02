"""Observations as rows of COPY's text format, the fastest door into Postgres."""

from collections.abc import Iterable

import orjson

from chm_dagster.domain.runs import Observation

KEY = ("pipeline_id", "external_run_id")
# In the order in which `encode` writes them.
COLUMNS = (
    "pipeline_id",
    "status",
    "attempt",
    "progress",
    "started_at",
    "finished_at",
    "duration_seconds",
    "rows_processed",
    "source_version",
    "observed_at",
    "payload",
    "external_run_id",
    "error_message",
    "status_reason",
    "source_url",
)

_NULL = r"\N"
_TABS = bytes.maketrans(b",", b"\t")
_BACKSLASH = "\\"


def _escape(text: str | None) -> str:
    if text is None:
        return _NULL
    # These two tests cost next to nothing, and nearly every text passes them.
    if text.isprintable() and _BACKSLASH not in text:
        return text
    text = text.replace(_BACKSLASH, _BACKSLASH * 2)
    return text.replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def encode(observations: Iterable[Observation]) -> bytes:
    """One line for each observation, UTF-8, ready for `COPY ... FROM STDIN`."""
    lines = []
    # Spelled out rather than looped: this runs once for every run that is ever ingested.
    for o in observations:
        # None of these ten can hold a comma, a quote or a backslash, so that JSON is COPY's format but for its signs.
        plain = orjson.dumps(
            (
                o.pipeline_id,
                o.status,
                o.attempt,
                o.progress,
                o.started_at,
                o.finished_at,
                o.duration_seconds,
                o.rows_processed,
                o.source_version,
                o.observed_at,
            )
        )
        # JSON escapes control characters itself; only its backslashes mean something to COPY.
        payload = orjson.dumps(o.payload).replace(b"\\", b"\\\\")
        texts = "\t".join(
            (_escape(o.external_run_id), _escape(o.error_message), _escape(o.status_reason), _escape(o.source_url))
        )
        plain = plain[1:-1].translate(_TABS, b'"').replace(b"null", b"\\N")
        lines.append(b"\t".join((plain, payload, texts.encode())))
    lines.append(b"")
    return b"\n".join(lines)
