"""NIP-10: which note a note answers, and how an answer is tagged."""

from nips.crypto import is_pubkey
from nips.event import Event, Tag

MAX_PEOPLE = 10


def thread_root(note: Event) -> str:
    """The id of the note that opened the thread; a note that answers nothing opens its own."""
    marked = [t for t in note.tags if t[0] == "e" and len(t) > 3 and t[3] == "root"]
    if marked:
        return marked[0][1]
    replies = note.tag_values("e")
    return replies[0] if replies else note.id


def reply_tags(parent: Event, relay_url: str) -> list[Tag]:
    """Tags for a kind-1 answer to ``parent``: marked e tags, and p tags for all who took part."""
    root = thread_root(parent)
    tags: list[Tag]
    if root == parent.id:
        tags = [("e", root, relay_url, "root", parent.pubkey)]
    else:
        tags = [
            ("e", root, relay_url, "root"),
            ("e", parent.id, relay_url, "reply", parent.pubkey),
        ]
    # Bounded: we sign this, and a note may name thousands.
    others = [pubkey for pubkey in parent.tag_values("p")[:MAX_PEOPLE] if is_pubkey(pubkey)]
    people = dict.fromkeys([parent.pubkey, *others])
    return tags + [("p", pubkey) for pubkey in people]
