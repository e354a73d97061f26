"""Log lines: in colour for a person at a terminal, JSON for a program that reads them."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

__all__ = ["configure"]


def configure() -> None:
    """Configure structlog, and the standard library's logging, which aiohttp uses, to look the same."""
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,  # puts the execution_id of its request on each line
        structlog.processors.add_log_level,
    ]
    last: list[Processor]
    if sys.stdout.isatty():
        first.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        last = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        first.append(structlog.processors.TimeStamper(fmt="iso"))
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # From DEBUG on, which is where the library tells why a stream ended.
    structlog.configure(processors=[*first, *last], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=first,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
