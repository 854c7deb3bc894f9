"""structlog, for a person or as JSON: one canonical line per request, secrets never.

Keys, URIs and environment values are in types whose ``repr`` is empty of them; as a second net, any
text that looks like a secret is blanked before it is written. Strangers' text cannot drive the terminal that
shows a log, nor write lines of its own into it.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from bot.terminal import printable, printable_json

_SECRETS = re.compile(
    r"nsec1[02-9ac-hj-np-z]{20,}|(?<=secret=)[0-9a-f]{64}|(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9+/=._-]{16,}"
)


def set_up(form: Literal["console", "json"], level: str) -> None:
    """Configure structlog and the standard library's loggers, once, at the start."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            blank_secrets,
            *(_AS_JSON if form == "json" else _FOR_A_PERSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(PrintableFormatter("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[others], level=logging.WARNING)


def blank_secrets(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The second net."""
    for name, value in line.items():
        if isinstance(value, str):
            line[name] = _SECRETS.sub("[secret]", value)
    return line


def one_line_each(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Every value on one line; of a traceback each line, set in, so that none looks like a record."""
    for name, value in line.items():
        if isinstance(value, str):
            line[name] = _set_in(value) if name == "exception" else printable(value)
    return line


def _set_in(text: str) -> str:
    return "    " + printable(text, block=True).replace("\n", "\n    ")


class PrintableFormatter(logging.Formatter):
    """For libraries, which log what servers told them."""

    def format(self, record: logging.LogRecord) -> str:
        return _set_in(super().format(record)).lstrip()


# The last step sees the whole text, whatever the values were.
_AS_JSON: tuple[Any, ...] = (
    structlog.processors.JSONRenderer(ensure_ascii=False),
    lambda _, __, text: printable_json(text),
)
_FOR_A_PERSON: tuple[Any, ...] = (
    one_line_each,
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    lambda _, __, text: printable(text, block=True),
)
