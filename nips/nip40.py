"""NIP-40: an event may say when it ends."""

from nips.event import Event


def is_expired(event: Event, now: int) -> bool:
    """True when the ``expiration`` has passed; one that is no number fails closed."""
    return event.tag("expiration") is not None and (expiration_of(event) or 0) <= now


def expiration_of(event: Event) -> int | None:
    """The ``expiration`` as Unix seconds; None when there is none, more than one, or it is no number."""
    match event.tag_values("expiration"):
        case [text] if text.isascii() and text.isdecimal() and len(text) <= 15:
            return int(text)
        case _:
            return None
