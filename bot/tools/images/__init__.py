"""``enclaved image``: what an enclave is started from.

look    what is in one, what is measured of it, what two of them differ in
build   from a checkout to a file
sign    who vouches for one, and whether what runs comes from here
run     start one
"""

import argparse

from bot.image.apt import CannotFetch
from bot.image.root import CannotBuild
from bot.tools.images import build, look, run, sign

EXPECTED = (CannotFetch, CannotBuild)


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """All of them."""
    image = commands.add_parser("image", help="enclave images: build, sign, compare, start them")
    actions = image.add_subparsers(required=True, metavar="action")
    for group in (build, look, sign, run):
        group.add_commands(actions)
