"""Answers that fit: secrets masked, long texts and lists cut, and a count of whatever was left out."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from chm_dagster.domain.redaction import redact

MAX_BYTES = 100_000
"""The size of an answer as JSON."""
MAX_CHARS = 500
"""The length of one text in a list."""


class Cutter:
    """Cuts the texts and lists of JSON values, and counts what it cut."""

    def __init__(self, max_chars: int, max_items: int) -> None:
        self._max_chars = max_chars
        self._max_items = max_items
        self.texts = 0
        self.items = 0

    def cut(self, value: Any) -> Any:
        """The value with every secret masked and nothing in it too long."""
        if isinstance(value, str):
            return self._text(redact(value))
        if isinstance(value, Mapping):
            return {key: self.cut(one) for key, one in value.items()}
        if isinstance(value, list):
            self.items += max(0, len(value) - self._max_items)
            return [self.cut(one) for one in value[: self._max_items]]
        return value

    def _text(self, text: str) -> str:
        over = len(text) - self._max_chars
        if over <= 0:
            return text
        self.texts += 1
        return f"{text[: self._max_chars]} ... ({over} more characters)"


def fitted(make: Callable[[int], dict[str, Any]], limit: int, *, max_chars: int = MAX_CHARS) -> dict[str, Any]:
    """What `make` returns for the limit, cut; for half of it, and so on, while it is larger than `MAX_BYTES`.

    So a cursor in it continues after its last row, and its counts are about its own rows.
    """
    while True:
        cutter = Cutter(max_chars, limit)
        answer = cutter.cut(orjson.loads(orjson.dumps(make(limit), default=str)))
        answer |= {"cut_texts": cutter.texts, "cut_items": cutter.items}
        if limit == 1 or len(orjson.dumps(answer)) <= MAX_BYTES:
            return dict(answer)
        limit //= 2
