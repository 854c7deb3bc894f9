"""The root to believe: AWS's, unless somebody names a development root by file; and the module that attests us."""

from pathlib import Path

from bot.adapters.nsm import NsmSocket, NsmUnusable, Transport, open_transport
from bot.config import AttestationConfig
from netstack.vsock import parse_address
from nips.errors import BadAttestation
from nips.tee.anchor import AWS_NITRO_ROOT_G1, Anchor, development_anchor


def load_anchor(development_root: Path | None) -> Anchor:
    """Raises `BadAttestation`."""
    if development_root is None:
        return AWS_NITRO_ROOT_G1
    try:
        return development_anchor(development_root.read_bytes())
    except OSError as error:
        raise BadAttestation(f"{development_root}: {error.strerror}") from error


def open_module(config: AttestationConfig) -> Transport:
    """Raises `NsmUnusable`."""
    if config.development_nsm:
        return NsmSocket(parse_address(config.development_nsm))
    if config.nsm is None:
        raise NsmUnusable("[attestation] names no Nitro Security Module")
    return open_transport(config.nsm)
