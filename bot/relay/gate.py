"""Places for connections: by address and in all, counted from the first byte.

Who says nothing, half a request, or half a handshake takes up a place as well. When all places are taken, the
address with the most connections gives up its newest one, unless it is the newcomer's own: a crowd from one
address shuts out itself only.
"""

import ipaddress
import resource
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

# This machine: our own processes, and everybody who comes through a proxy on it.
OWN_ADDRESSES = ("127.0.0.1", "::1")
OWN_SHARE = 0.75
# Descriptors for what is not a stranger's connection: databases, logs, relays, the engine, the wallet.
RESERVED_DESCRIPTORS = 256


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or for IPv6 its /64, which one customer gets whole."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    if parsed.is_loopback:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def network_of_peer(stream: trio.SocketStream) -> str:
    """Raises `OSError` when the peer has gone already."""
    return network_of(str(stream.socket.getpeername()[0]))


def raise_descriptor_limit() -> None:
    """The soft limit becomes the hard one: a thousand, the usual soft one, is soon used up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def places(wanted: int, share: float) -> int:
    """How many places one door may give away, ``share`` of the descriptors that strangers may use."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    for_strangers = max(soft - RESERVED_DESCRIPTORS, soft // 2)
    return min(wanted, int(for_strangers * share))


class Gate:
    """``most`` places, ``per_network`` of them for one network, more for ``own`` addresses."""

    def __init__(self, most: int, per_network: int, own: Iterable[str] = OWN_ADDRESSES) -> None:
        self._most, self._per_network = most, per_network
        self._own = frozenset(map(network_of, own))
        self._places: defaultdict[str, list[trio.CancelScope]] = defaultdict(list)
        self._taken = 0

    def is_own(self, network: str) -> bool:
        return network in self._own

    def __len__(self) -> int:
        return self._taken

    @contextmanager
    def place(self, network: str) -> Iterator[bool]:
        """Whether there is a place. Who must give it up later is cancelled, and the block ends quietly."""
        if not self._has_room(network):
            yield False
            return
        with trio.CancelScope() as scope:
            self._places[network].append(scope)
            self._taken += 1
            try:
                yield True
            finally:
                self._leave(network, scope)

    def _has_room(self, network: str) -> bool:
        held = len(self._places[network]) if network in self._places else 0
        most = int(self._most * OWN_SHARE) if self.is_own(network) else self._per_network
        if held >= most:
            return False
        return self._taken < self._most or self._make_room(held)

    def _make_room(self, held: int) -> bool:
        crowd = max(self._places, key=lambda network: len(self._places[network]))
        # Not for somebody who would then be the crowd.
        if len(self._places[crowd]) <= held + 1:
            return False
        newest = self._places[crowd][-1]
        self._leave(crowd, newest)
        newest.cancel()
        return True

    def _leave(self, network: str, scope: trio.CancelScope) -> None:
        if scope in self._places.get(network, ()):
            self._places[network].remove(scope)
            self._taken -= 1
            if not self._places[network]:
                del self._places[network]
