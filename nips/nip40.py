"""NIP-40: an event may say when it ends."""

from nips.event import Event


def is_expired(event: Event, now: int) -> bool:
    """True when the ``expiration`` has passed; one that is no number fails closed."""
    expiration = event.tag("expiration")
    if expiration is None:
        return False
    is_number = expiration.isascii() and expiration.isdecimal() and len(expiration) <= 15
    return not is_number or int(expiration) <= now
