"""Relay URLs as strangers write them: in zap requests, relay lists, invitations."""

from urllib.parse import urlsplit

from nips.errors import BadInput

MAX_LENGTH = 256


class BadRelayUrl(BadInput):
    """Not a websocket URL that could be a relay's."""


def parse_relay_url_untrusted(text: str) -> str:
    """``ws://host[:port][/path]`` or ``wss://…``, without a trailing slash. Raises `BadRelayUrl`."""
    if len(text) > MAX_LENGTH or not text.isascii() or not text.isprintable() or " " in text:
        raise BadRelayUrl("a relay URL is at most 256 printable ASCII characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadRelayUrl("a relay URL is malformed") from error
    if parts.scheme not in ("ws", "wss") or not host or port == 0:
        raise BadRelayUrl("a relay URL begins with ws:// or wss:// and a host")
    labels = host.rstrip(".").split(".") if ":" not in host else []
    if (
        parts.username is not None
        or parts.fragment
        or not all(0 < len(label) < 64 for label in labels)
    ):
        raise BadRelayUrl("a relay URL has no user, no fragment, and a proper host name")
    return text.rstrip("/")
