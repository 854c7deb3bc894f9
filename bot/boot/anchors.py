"""The root to believe: AWS's, unless somebody names a development root by file."""

from pathlib import Path

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
