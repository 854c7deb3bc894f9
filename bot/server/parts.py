"""What a running server consists of, and the nudges that wake its loops early."""

from dataclasses import dataclass, field

from bot.adapters.docker_engine import DockerEngine
from bot.adapters.enclave_network import EnclaveNetwork
from bot.adapters.nwc_wallet import NwcWallet
from bot.adapters.seen_store import SeenStore
from bot.config import Config
from bot.relay.pool import RelayPool
from bot.relay.server import RelayServer
from bot.server.checkpoints import Checkpointer
from bot.server.inbox import Inbox
from bot.server.nudge import Nudge
from bot.server.outlet import Outlet
from bot.server.own_wallet import OwnWallet
from bot.server.status import Status
from handlers.context import Context
from keycrux_client.refresh import Keeper


class TrioNudges:
    """`handlers.ports.Nudges`, one for each loop that has one."""

    def __init__(self) -> None:
        self.reconcile, self.announce, self.outbox = Nudge(), Nudge(), Nudge()

    def named(self, name: str | None) -> Nudge:
        """The one of a loop; without a name one that never comes."""
        return (
            Nudge()
            if name is None
            else {"reconcile": self.reconcile, "announce": self.announce, "outbox": self.outbox}[
                name
            ]
        )


@dataclass(frozen=True)
class App:
    """A server that is built but not running. `run` runs it."""

    config: Config
    ctx: Context
    nudges: TrioNudges
    wallet: NwcWallet
    engine: DockerEngine
    pool: RelayPool
    relay: RelayServer | None
    outlet: Outlet
    inbox: Inbox
    seen: SeenStore
    refused: SeenStore
    keeper: Keeper | None = None
    checkpointer: Checkpointer | None = None
    network: EnclaveNetwork | None = None
    status: Status = field(default_factory=Status)
    # None where the operator has it.
    own_wallet: OwnWallet | None = None
