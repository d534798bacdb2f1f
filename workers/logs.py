"""Log lines with their job, attempt and epoch, as text or JSON, on standard error.

Lines of libraries that use Python's logging pass through the same processors.
"""

import logging
import sys
from typing import Any

import structlog

from service.contract.settings import Settings

SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(level: str, form: str) -> None:
    """Send every line of this process to standard error in one form ("text" or "json")."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *SHARED,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=_rendering(form), foreign_pre_chain=SHARED))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _rendering(form: str) -> list[Any]:
    last = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    return [structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]


def configure_for(settings: Settings) -> None:
    """Log as the settings say."""
    configure(settings.log_level, settings.log_format)
