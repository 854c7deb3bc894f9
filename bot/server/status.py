"""What the server says of itself: how far it is, and how it is. Nothing of it is a secret, or anybody's money.

In an enclave ``enclaved boot`` asks for it on a socket; elsewhere we tell the parent ourselves, where there is one.
"""

from dataclasses import asdict, dataclass, field

import trio

from bot.adapters.enclave_network import EnclaveNetwork
from bot.boot.steps import Steps
from bot.boot.wake import parent_of
from bot.checkpoint.restore import Progress
from bot.config import Config
from bot.parent.client import ParentChannel, ParentSilent
from bot.server.checkpoints import Checkpointer
from handlers.alarms import Alarms
from netstack.control import serve
from netstack.vsock import listen

EVERY_S = 5.0


@dataclass
class Status:
    """Filled in as the server comes up."""

    steps: Steps = field(default_factory=lambda: Steps(trio.current_time))
    restore: Progress = field(default_factory=Progress)
    checkpointer: Checkpointer | None = None
    alarms: Alarms | None = None
    network: EnclaveNetwork | None = None

    def words(self) -> dict[str, object]:
        """As JSON."""
        told = self.steps.words()
        told["error"] = self.alarms.no_containers_because if self.alarms is not None else None
        told["ports"] = self.network.open_tcp if self.network is not None else None
        if self.restore.all_bytes:
            told["restore"] = asdict(self.restore)
        if self.checkpointer is not None and (newest := self.checkpointer.newest) is not None:
            told["checkpoint"] = {
                "number": newest.number,
                "put_bytes": newest.put_bytes,
                "s_ago": round(trio.current_time() - newest.at_s, 1),
            }
        return told


async def run_status(config: Config, status: Status) -> None:
    """Until cancelled."""
    if config.boot is not None:
        await _answer(config, status)
    elif (parent := parent_of(config)) is not None:
        await _tell(parent, status)


async def _answer(config: Config, status: Status) -> None:
    assert config.boot is not None  # noqa: S101 - asked by the caller

    async def words(_: object) -> object:
        await trio.lowlevel.checkpoint()
        return status.words()

    await serve(await listen(config.boot.status), {"status": words})


async def _tell(parent: ParentChannel, status: Status) -> None:
    """A parent that does not listen is told again."""
    while True:
        try:
            await parent.ask("report", **status.words())
        except ParentSilent:
            pass
        await trio.sleep(EVERY_S)
