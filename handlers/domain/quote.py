"""A quote: an image pinned to its digest, at a price, for some minutes."""

from dataclasses import dataclass

from handlers.domain.pricing import Tariff


@dataclass(frozen=True)
class Quote:
    """``image`` is pinned (``host/name@sha256:…``); ``signers`` and ``version`` are the image's labels."""

    quote_id: str
    image: str
    asked_for: str
    units: int
    tariff: Tariff
    compressed_bytes: int
    ports: tuple[str, ...]
    volumes: tuple[str, ...]
    signers: tuple[str, ...]
    version: str | None
    expires_at: int

    def is_valid_for(self, asked_for: str, units: int, now: int) -> bool:
        """Whether a deploy of that image and size may rely on it."""
        return self.expires_at > now and (self.asked_for, self.units) == (asked_for, units)
