"""Is it as late as we think? Wall clock, boot clock and the attestation document's own time must go together. Pure.

The parent gives us our first time; the document's comes from the hypervisor, whom we believe anyway. A wrong clock lets expired
certificates and old signatures pass, and charges tenants for hours that did not pass.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """Read within one moment. ``wall_s`` and ``document_s`` are Unix seconds, ``boot_s`` counts from power-on."""

    wall_s: float
    boot_s: float
    document_s: float


def why_wrong(first: Reading, now: Reading, most_apart_s: float) -> str | None:
    """None when the clock can be believed. ``first``: the reading at boot, or `now` itself."""
    if abs(off := now.wall_s - now.document_s) > most_apart_s:
        return f"the clock is {_off(off)} the hypervisor's, by its document"
    drift = (now.wall_s - first.wall_s) - (now.boot_s - first.boot_s)
    if abs(drift) > most_apart_s:
        return f"the clock was set while we ran: it is {_off(drift)} the time since boot"
    if (
        abs(drift := (now.document_s - first.document_s) - (now.boot_s - first.boot_s))
        > most_apart_s
    ):
        return f"the hypervisor's clock is {_off(drift)} the time since boot"
    return None


def _off(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'}"
