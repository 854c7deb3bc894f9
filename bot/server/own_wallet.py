"""The instance's own wallet, which is found while the server runs: it lives in a container that the server starts."""

import structlog
import trio

from bot.adapters.nwc_client import Whereabouts
from bot.relay.server import RelayServer
from handlers.alarms import Alarm
from handlers.context import Context
from handlers.duties.builtins import find_own
from handlers.duties.own_wallet import find_own_wallet, wallet_client
from nips.keys import SecretKey
from nips.nip47 import WalletUri

log = structlog.get_logger()


class OwnWallet:
    """``name``: of the container; ``relay``: ours, which keeps nothing of somebody it does not know."""

    def __init__(self, name: str, identity: SecretKey, relay: RelayServer | None) -> None:
        self._name, self._relay = name, relay
        self._uri: WalletUri | None = None
        self._found, self._told = trio.Event(), ""
        self.where = Whereabouts(wallet_client(identity), self._wait)

    async def _wait(self) -> WalletUri:
        await self._found.wait()
        assert self._uri is not None  # noqa: S101 - set before the event
        return self._uri

    async def once(self, ctx: Context) -> None:
        """Look for it, until it is found; from then on, whether it is still the same."""
        app = await self._app(ctx)
        if self._uri is not None:
            # A wallet that lost its books makes itself new ones, with a new key.
            changed = app is not None and app != self._uri.wallet_pubkey
            ctx.alarms.set(Alarm.WALLET, f"it was {self._uri.wallet_pubkey}" if changed else None)
            return
        found = await find_own_wallet(ctx, self._name)
        if isinstance(found, WalletUri):
            log.info("our own wallet", pubkey=found.wallet_pubkey, relays=found.relay_urls)
            self._uri = found
            self._found.set()
        elif found != self._told:
            self._told = found
            log.warning("our own wallet is not there yet", reason=found)

    async def _app(self, ctx: Context) -> str | None:
        """Its key, as far as it is proven; its announcement may come to our relay."""
        row = await ctx.store.read(find_own, ctx.key.pubkey, self._name)
        app = row.app if row is not None else None
        if self._relay is not None and app is not None:
            await self._relay.serve_for("wallet", [app])
        return app
