"""One JSON object a line on standard output: our own events and those of the libraries alike."""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from chm_dagster.domain.redaction import redact


def configure(stream: TextIO = sys.stdout, level: int = logging.INFO) -> None:
    """Set logging up for this process. Call it once, from the entry point."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_EVENT, processors=_LINE))
    logging.basicConfig(handlers=[handler], level=level, force=True)


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Mask what looks like a secret in the texts of an event."""
    event.pop("color_message", None)  # uvicorn's event over again, for terminals
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event


_EVENT: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_LINE: list[Processor] = [
    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    structlog.processors.format_exc_info,
    mask_secrets,
    structlog.processors.JSONRenderer(),
]
