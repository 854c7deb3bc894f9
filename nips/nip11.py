"""NIP-11: what a relay says of itself over HTTP."""

from dataclasses import dataclass

SUPPORTED_NIPS = (1, 9, 11, 40, 42, 45, 70)


@dataclass(frozen=True)
class RelayLimits:
    """Limits of the embedded relay; sizes in bytes, times in seconds."""

    max_message_bytes: int = 256 * 1024
    max_subscriptions: int = 64
    max_filters: int = 16
    max_limit: int = 500
    max_stored_events: int = 100_000
    max_event_tags: int = 2_000
    max_content_bytes: int = 128 * 1024
    max_connections: int = 1_000
    max_stored_bytes: int = 256 * 1024 * 1024
    events_per_minute: int = 6_000
    queries_per_minute: int = 600
    # A client that has not been heard of for so long, pings included, is gone.
    silent_s: int = 120
    future_s: int = 900
    # Bytes that may wait for a slow reader before it is disconnected.
    max_queued_bytes: int = 8 * 1024 * 1024


def relay_document(name: str, pubkey: str | None, limits: RelayLimits) -> dict[str, object]:
    """The JSON document."""
    return {
        "name": name,
        "description": "The inbox relay of an enclaved instance.",
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
            "created_at_upper_limit": limits.future_s,
        },
    }
