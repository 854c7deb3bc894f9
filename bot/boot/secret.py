"""What every checkpoint holds beside its files: who we are, how our disk key is shared, and whose files these are. Bytes in, bytes out.

It lies in the manifest, sealed like the rest. The shares stay the same for the split's life, and a part belongs to one
service as long as that may still have it: with two holders of one part, two majorities need have nobody in common.
"""

from dataclasses import dataclass, field

import orjson

from bot.checkpoint.seal import BadCheckpoint
from keycrux_client.fence import Holders, Voters
from keycrux_client.shares import Split
from nips.errors import BadKey
from nips.keys import SecretKey


@dataclass(frozen=True)
class Secret:
    """``holders``: who had which part when this was written. ``deciders``: who had to agree beside them. ``line``: which files
    it was made from, see `line`."""

    identity: SecretKey
    split: Split
    holders: Holders = field(default_factory=dict)
    line: str = ""
    deciders: tuple[Voters, ...] = ()

    @property
    def voters(self) -> tuple[Voters, ...]:
        """All who must agree to what a life does that goes on from here, each once."""
        named = Voters.named(self.split.threshold, self.holders)
        return (*(each for each in self.deciders if each != named), named)


def encode_secret(secret: Secret) -> bytes:
    """For a manifest, which seals it."""
    return orjson.dumps(
        {
            "secret": secret.identity.reveal_secret().hex(),
            "set": secret.split.set_id,
            "k": secret.split.threshold,
            "parts": secret.split.parts,
            "holders": secret.holders,
            "line": secret.line,
            "deciders": [[each.threshold, each.holders] for each in secret.deciders],
        }
    )


def decode_secret(raw: bytes) -> Secret:
    """What was sealed with our key; so it is ours, or of another version. Raises `BadCheckpoint`."""
    try:
        match orjson.loads(raw):
            case {
                "secret": str(secret), "set": str(set_id), "k": int(k), "parts": list(parts),
                "holders": dict(holders), "line": str(line), "deciders": list(deciders),
            }:  # fmt: skip
                split = Split(set_id, k, tuple(map(str, parts)))
                held = {str(who): (int(index), int(at)) for who, (index, at) in holders.items()}
                decided = tuple(Voters(int(k), dict(who)) for k, who in deciders)
                return Secret(SecretKey.parse(secret), split, held, line, decided)
            case _:
                pass
    except (ValueError, TypeError, BadKey):
        pass
    raise BadCheckpoint("what the manifest says of our identity has another shape")
