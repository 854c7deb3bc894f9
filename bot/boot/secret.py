"""What every checkpoint holds beside its files: who we are, and how our disk key is shared. Bytes in, bytes out.

It lies in the manifest, sealed like the rest. The shares stay the same for the split's life, and a part belongs to one
service as long as that may still have it: with two holders of one part, two majorities need have nobody in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from bot.checkpoint.seal import BadCheckpoint
from keycrux_client.shares import Split
from nips.errors import BadKey
from nips.keys import SecretKey

Holders = Mapping[str, tuple[int, int]]
"""Service → the part it has, and when it was last heard of (Unix seconds)."""


@dataclass(frozen=True)
class Secret:
    """``holders``: who had which part when this was written."""

    identity: SecretKey
    split: Split
    holders: Holders = field(default_factory=dict)


def encode_secret(secret: Secret) -> bytes:
    """For a manifest, which seals it."""
    return orjson.dumps(
        {
            "secret": secret.identity.reveal_secret().hex(),
            "set": secret.split.set_id,
            "k": secret.split.threshold,
            "parts": secret.split.parts,
            "holders": secret.holders,
        }
    )


def decode_secret(raw: bytes) -> Secret:
    """What was sealed with our key; so it is ours, or of another version. Raises `BadCheckpoint`."""
    try:
        match orjson.loads(raw):
            case {
                "secret": str(secret), "set": str(set_id), "k": int(k), "parts": list(parts),
                "holders": dict(holders),
            }:  # fmt: skip
                split = Split(set_id, k, tuple(map(str, parts)))
                held = {str(who): (int(index), int(at)) for who, (index, at) in holders.items()}
                return Secret(SecretKey.parse(secret), split, held)
            case _:
                pass
    except (ValueError, TypeError, BadKey):
        pass
    raise BadCheckpoint("what the manifest says of our identity has another shape")
