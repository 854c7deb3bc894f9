"""NIP-11: what a relay says of itself over HTTP."""

from dataclasses import dataclass

SUPPORTED_NIPS = (1, 9, 11, 40, 42, 45, 70)
_INBOX = (
    "The inbox relay of an enclaved instance. It takes events by or addressed to (p tag) the instance, its "
    "containers, its wallet and its key escrow, and no others."
)
_OPEN = "The relay of an enclaved instance under development; it takes everybody's events."


@dataclass(frozen=True)
class RelayLimits:
    """Limits of the embedded relay; sizes in bytes, times in seconds.

    A guest is an address (for IPv6 a /64); on this machine's own addresses, each connection.
    """

    max_message_bytes: int = 256 * 1024
    max_subscriptions: int = 64
    max_filters: int = 16
    max_limit: int = 500
    # Each is a row or two in an index.
    max_event_tags: int = 200
    max_content_bytes: int = 128 * 1024
    # Room for strangers' events; what a class of authors of our own may take up has this much for itself.
    max_stored_events: int = 100_000
    max_stored_bytes: int = 256 * 1024 * 1024
    max_own_events: int = 50_000
    max_own_bytes: int = 64 * 1024 * 1024
    max_connections: int = 1_000
    max_connections_per_address: int = 64
    # Addresses that the limits per address are not for: this machine, and a proxy on it.
    own_addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    events_per_minute: int = 6_000
    queries_per_minute: int = 600
    # Messages of any kind, a large one counting as many; more end the connection.
    frames_per_minute: int = 12_000
    # Live filters, and the values that they list: of one connection, of one guest, of all.
    connection_filters: int = 128
    connection_values: int = 2_000
    guest_filters: int = 512
    guest_values: int = 8_000
    all_filters: int = 8_192
    all_values: int = 50_000
    # What one filter may cost: rows looked at, and time.
    query_rows: int = 50_000
    query_s: float = 0.25
    # A client that has not been heard of for so long, pings included, is gone.
    silent_s: float = 120
    # One that wants nothing and says nothing for so long makes room for others.
    idle_s: float = 300
    future_s: int = 900
    # Bytes that may wait for a slow reader before it is disconnected, and for all of them together.
    max_queued_bytes: int = 2 * 1024 * 1024
    all_queued_bytes: int = 16 * 1024 * 1024


def relay_document(
    name: str, pubkey: str | None, limits: RelayLimits, *, is_open: bool
) -> dict[str, object]:
    """The JSON document. ``is_open``: it takes everybody's events, as in development."""
    return {
        "name": name,
        "description": _OPEN if is_open else _INBOX,
        "pubkey": pubkey,
        "supported_nips": list(SUPPORTED_NIPS),
        "software": "enclaved",
        "limitation": {
            "max_message_length": limits.max_message_bytes,
            "max_subscriptions": limits.max_subscriptions,
            "max_limit": limits.max_limit,
            "max_subid_length": 64,
            "max_event_tags": limits.max_event_tags,
            "max_content_length": limits.max_content_bytes,
            "auth_required": False,
            "payment_required": False,
            "restricted_writes": not is_open,
            "created_at_upper_limit": limits.future_s,
        },
    }
