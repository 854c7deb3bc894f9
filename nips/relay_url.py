"""Relay URLs as strangers write them: in zap requests, relay lists, invitations."""

from urllib.parse import urlsplit, urlunsplit

from nips.errors import BadInput

MAX_LENGTH = 256
_DEFAULT_PORTS = {"ws": 80, "wss": 443}


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


def normal_url(text: str) -> str:
    """The one spelling by which relays are compared (RFC 3986, 6.2): scheme and host in lower case, no
    default port, no slash where there is no path. What is no URL comes back as it is.
    """
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return text
    if not host:
        return text
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS.get(parts.scheme):
        place += f":{port}"
    path = "" if parts.path == "/" else parts.path
    return urlunsplit((parts.scheme, place, path, parts.query, ""))
