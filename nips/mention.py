"""A public note as a command: ``nostr:npub… deploy <image> units=2``.

The note must mention us, by a p tag or in its text. The command line is what follows our mention up
to the end of that line; words ``name=value`` are named parameters, the rest are positional.
"""

import re
from dataclasses import dataclass

from nips.event import Event
from nips.nip19 import npub

MAX_NOTE = 4_096
MAX_WORDS = 32
# "nostr:npub1…", and "@npub1…" as people type it.
_MENTION = re.compile(r"(?:nostr:|@)(npub1[02-9ac-hj-np-z]{58}|nprofile1[02-9ac-hj-np-z]{20,400})")


@dataclass(frozen=True)
class CommandLine:
    """``method`` and the words after it, split but not yet typed."""

    method: str
    words: tuple[str, ...]
    named: tuple[tuple[str, str], ...]


def is_mention(note: Event, pubkey: str) -> bool:
    """Whether the note speaks to ``pubkey``."""
    return pubkey in note.tag_values("p") or f"nostr:{npub(pubkey)}" in note.content


def parse_command(note: Event, our_npub: str) -> CommandLine | None:
    """The command for us, or None when the note only talks about us."""
    content = note.content[:MAX_NOTE]
    at = content.find(our_npub)
    if at < 0:
        return None
    line = content[at + len(our_npub) :].partition("\n")[0]
    words = _MENTION.sub("", line).split()[:MAX_WORDS]
    if not words:
        return None
    pairs = [word.partition("=") for word in words[1:]]
    return CommandLine(
        method=words[0].lower(),
        words=tuple(word for word, equals, _ in pairs if not equals),
        named=tuple((name, value) for name, equals, value in pairs if equals),
    )
