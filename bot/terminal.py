"""The only way to a terminal: what others wrote is shown, never obeyed.

A relay, an instance, a registry or a container may put escape sequences into any text, C1 controls that drive a
terminal without an escape, or characters without a shape that make one text look like another. Each of
them is written out as an escape (``\\x1b``, ``\\u202e``), so that a person sees that somebody tried. JSON stays
JSON: what reads it gets the very characters back.
"""

import json
import sys
import traceback
from types import TracebackType
from typing import TextIO


def printable(text: str, *, block: bool = False) -> str:
    """One line, or with ``block`` several, without anything that has no shape of its own: controls, format
    characters (Unicode Cf), line separators, lone surrogates, what is not assigned."""
    return "".join(c if c.isprintable() or (block and c == "\n") else _escaped(c) for c in text)


def printable_json(text: str) -> str:
    """The same JSON, with such characters written as JSON writes them. They can only stand in its strings."""
    return "".join(c if c.isprintable() or c == "\n" else _json_escaped(c) for c in text)


def _escaped(c: str) -> str:
    return c.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escaped(c: str) -> str:
    return json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f"


def say(*lines: str) -> None:
    """Lines for whoever asked."""
    _write(sys.stdout, "\n".join(map(printable, lines)))


def say_json(value: object) -> None:
    """A value for whoever asked, person or program."""
    say_json_text(json.dumps(value, indent=2, ensure_ascii=False))


def say_json_text(text: str) -> None:
    """JSON that somebody else wrote, such as an event."""
    _write(sys.stdout, printable_json(text))


def is_watched() -> bool:
    """Whether a person looks on: what takes long may move there."""
    return sys.stdout.isatty()


def redraw(text: str) -> None:
    """In the place of the line before that was drawn so; an empty text ends it."""
    sys.stdout.write(f"\r\x1b[K{printable(text)}" if text else "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """One line beside the answer: a failure, or what is going on."""
    _write(sys.stderr, f"enclaved: {printable(text)}")


def tell_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """`sys.excepthook`: an exception's text may be a stranger's as well."""
    told = "".join(traceback.format_exception(kind, error, trace))
    _write(sys.stderr, printable(told.rstrip("\n"), block=True))


def _write(stream: TextIO, text: str) -> None:
    # A terminal that knows few characters gets the others spelt out, not a traceback.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
