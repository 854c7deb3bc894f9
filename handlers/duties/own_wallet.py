"""The instance's own wallet: a container of ours, which proves a key from inside and is believed only then.

The image is measured with us, the key lives in the container's volume, and we vouch for it by a certificate only after it was
proven from inside. What the wallet announces must lead back to all of that: whoever answers elsewhere is not our wallet.
"""

import hashlib
import hmac

from handlers.context import Context
from handlers.domain.lifecycle import State
from handlers.duties.builtins import find_own
from handlers.records import Container
from nips import kinds
from nips.errors import BadInput
from nips.event import Event
from nips.filters import Filter
from nips.keys import SecretKey
from nips.nip47 import WalletUri
from nips.relay_url import parse_relay_url_untrusted

MOST_RELAYS = 4


def wallet_client(identity: SecretKey) -> SecretKey:
    """The key that our own wallet knows us by: the same in every life, and nobody else's."""
    message = b"enclaved client of its own wallet"
    return SecretKey(hmac.new(identity.reveal_secret(), message, hashlib.sha256).digest())


def wallet_environment(ctx: Context, row: Container) -> dict[str, str]:
    """What our own wallet is told beside what all containers are: that it is internal, and who may admit others."""
    if row.admin != ctx.key.pubkey or row.name != ctx.own_wallet:
        return {}
    admin = wallet_client(ctx.key).pubkey
    return {"ENCLAVED_INTERNAL_WALLET": "true", "ENCLAVED_WALLET_ADMIN": admin}


async def find_own_wallet(ctx: Context, name: str) -> WalletUri | str:
    """Where it is, or why it cannot be trusted yet."""
    row = await ctx.store.read(find_own, ctx.key.pubkey, name)
    if row is None or row.state is not State.DEPLOYED:
        return f"its container {name} does not run"
    if row.app is None:
        return f"its container {name} has proven no key"
    wanted = Filter(authors=frozenset({row.app}), kinds=frozenset({kinds.WALLET_SERVICE}))
    reason = "it has announced itself on no relay of ours"
    for event in await ctx.events.find([wanted], ctx.presence.relay_urls):
        try:
            relay_urls = _relays_of(ctx, row, event)
        except BadInput as error:
            reason = f"its announcement does not hold: {error}"
        else:
            return WalletUri(row.app, relay_urls, wallet_client(ctx.key))
    return reason


def _relays_of(ctx: Context, row: Container, event: Event) -> tuple[str, ...]:
    """Raises `BadInput` unless the author lives in this container of ours, and runs what we started there."""
    if ctx.proof is None:
        raise BadInput("outside of an enclave nothing is proven")
    certified = ctx.proof.verify_certified(event, ctx.clock.now())
    if [c.subject for c in certified.certificates] != [row.pubkey, row.app]:
        raise BadInput("it is another container's")
    if certified.image != f"docker://{row.image}":
        raise BadInput("it runs another image")
    relay_urls = [parse_relay_url_untrusted(url) for url in event.tag_values("relay")]
    if not 1 <= len(relay_urls) <= MOST_RELAYS:
        raise BadInput(f"it names no relay, or more than {MOST_RELAYS}")
    return tuple(relay_urls)
