"""Logging: in colour on a terminal, JSON otherwise."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.typing import Processor

__all__ = ["configure"]


def configure() -> None:
    """Configure structlog and the standard library's logging, which aiohttp uses, with the same format."""
    name = os.environ.get("EXAMPLE_NODE")  # of one of several servers on this terminal
    node = {} if name is None else {"node": name}
    processors: list[Processor] = [
        lambda _logger, _method, line: {**node, **line},
        structlog.contextvars.merge_contextvars,  # adds the execution_id of the request to each line
        structlog.processors.add_log_level,
    ]
    renderers: list[Processor]
    if sys.stdout.isatty():
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        renderers = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        processors.append(structlog.processors.TimeStamper(fmt="iso"))
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # The library logs at DEBUG why a stream ended.
    level = structlog.make_filtering_bound_logger(logging.DEBUG)
    structlog.configure(processors=[*processors, *renderers], wrapper_class=level)

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
