"""structlog, for a person or as JSON: one canonical line per request, secrets never.

Keys, URIs and environment values are in types whose ``repr`` is empty of them; as a second net, any
text that looks like a secret is blanked before it is written.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

_SECRETS = re.compile(
    r"nsec1[02-9ac-hj-np-z]{20,}|(?<=secret=)[0-9a-f]{64}|(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9+/=._-]{16,}"
)


def set_up(form: Literal["console", "json"], level: str) -> None:
    """Configure structlog and the standard library's loggers, once, at the start."""
    renderer: structlog.typing.Processor
    renderer = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            blank_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")


def blank_secrets(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The second net."""
    for name, value in line.items():
        if isinstance(value, str):
            line[name] = _SECRETS.sub("[secret]", value)
    return line
