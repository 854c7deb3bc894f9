"""``enclaved`` and ``python -m bot``."""

import sys


def main() -> int:
    """Refuse an interpreter that removes checks, then hand over to the command line."""
    # secp256k1 checks its arguments by assert: under -O garbage would pass.
    if not __debug__:
        sys.stderr.write("enclaved: error: never run this under python -O\n")
        return 1
    from bot import terminal
    from bot.tools.cli import main as command_line

    sys.excepthook = terminal.tell_crash
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
