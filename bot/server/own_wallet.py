"""The instance's own wallet, which is found while the server runs: it lives in a container that the server starts."""

from collections.abc import Sequence

import structlog
import trio

from bot.adapters.engine.names import container_name
from bot.adapters.nwc_client import Whereabouts
from bot.boot.wake import Awake
from bot.config import Config, ConfigError
from bot.relay.server import RelayServer
from handlers.alarms import Alarm
from handlers.context import Builtin, Context
from handlers.duties.builtins import find_own
from handlers.duties.own_wallet import find_own_wallet, wallet_client
from handlers.records import Container
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
        row = await self._row(ctx)
        app = row.app if row is not None else None
        if self._uri is not None:
            # A wallet that lost its books makes itself new ones, with a new key.
            changed = app is not None and app != self._uri.wallet_pubkey
            ctx.alarms.set(Alarm.WALLET, f"it was {self._uri.wallet_pubkey}" if changed else None)
            return
        if self._relay is not None and app is not None:
            await self._relay.serve_for("wallet", [app])
        found = await find_own_wallet(ctx, self._name)
        if isinstance(found, WalletUri):
            log.info("our own wallet", pubkey=found.wallet_pubkey, relays=found.relay_urls)
            self._uri = found
            self._found.set()
        elif found != self._told:
            self._told = found
            log.warning("our own wallet is not there yet", reason=found)

    async def holding(self, ctx: Context) -> frozenset[str]:
        """The containers that hold our money, by their names at the engine: this one, once there is one."""
        row = await self._row(ctx)
        return frozenset([container_name(row.pubkey)] if row is not None else [])

    async def _row(self, ctx: Context) -> Container | None:
        return await ctx.store.read(find_own, ctx.key.pubkey, self._name)


def own_wallet(
    config: Config, builtins: Sequence[Builtin], awake: Awake, relay: RelayServer | None
) -> OwnWallet | None:
    """None where the operator has the wallet. Raises `ConfigError` where there could be none."""
    name = config.wallet.builtin
    if name is None:
        return None
    if name not in [builtin.name for builtin in builtins]:
        raise ConfigError(f"[wallet] builtin: no container {name} is named in [server] builtins")
    if awake.proof is None or not config.containers.port:
        raise ConfigError(
            "[wallet] builtin: a wallet proves its key to an enclave: [attestation] nsm and [containers] port are needed"
        )
    return OwnWallet(name, awake.key, relay)
