"""The control channel: JSON lines over a stream. The enclave asks, the parent answers; and within the
enclave the server asks us.

``{"id", "method", "params"}`` -> ``{"id", "result"}`` or ``{"id", "error"}``. What the parent answers is
believed no further than its word can harm: an MTU within bounds, an address.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

import structlog
import trio

from netstack import vsock
from netstack.machine.egress import Allow, Egress
from netstack.machine.layout import ENCLAVE_PORTS, Uplink

log = structlog.get_logger()
MAX_LINE_BYTES = 256 * 1024
MOST_CONNECTIONS = 16
MOST_PORTS = 4_096
CALL_S = 20.0
IDLE_S = 120.0


class Refused(Exception):
    """Expected: the other side is told, and may ask otherwise."""


Handler = Callable[[Mapping[str, object]], Awaitable[object]]


@dataclass(frozen=True)
class Ports:
    """Ports that the internet may reach, by protocol."""

    tcp: frozenset[int] = frozenset()
    udp: frozenset[int] = frozenset()

    def words(self) -> dict[str, object]:
        """As JSON."""
        return {"tcp": sorted(self.tcp), "udp": sorted(self.udp)}


def read_ports(params: Mapping[str, object]) -> Ports:
    """Raises `Refused`."""
    return Ports(_ports(params, "tcp"), _ports(params, "udp"))


def _ports(params: Mapping[str, object], name: str) -> frozenset[int]:
    given = params.get(name, [])
    if not isinstance(given, list) or len(given) > MOST_PORTS:
        raise Refused(f"{name} must be a list of at most {MOST_PORTS} ports")
    return frozenset(_port(each) for each in given)


def _port(value: object) -> int:
    if type(value) is not int or not any(a <= value <= b for a, b in ENCLAVE_PORTS):
        raise Refused(f"{value!r} is no port of the enclave's: 80, 443, 1024-61439")
    return value


def read_uplink(result: object) -> Uplink:
    """What the parent says of itself. Raises `Refused`."""
    if not isinstance(result, dict):
        raise Refused("the uplink is no object")
    address, mtu, ipv6 = (result.get(name) for name in ("address", "mtu", "ipv6"))
    if not isinstance(address, str) or type(mtu) is not int or not isinstance(ipv6, bool):
        raise Refused("an uplink has address, mtu and ipv6")
    try:
        own = IPv4Address(address)
    except ValueError as error:
        raise Refused(f"the uplink's address: {error}") from error
    if own.is_loopback or own.is_multicast or own.is_unspecified or own.is_link_local:
        raise Refused(f"{own} is no address of an uplink")
    return Uplink("", str(own), mtu, ipv6)


def read_containers(params: Mapping[str, object]) -> dict[str, Egress]:
    """``{address: null | [{network, protocol, first_port, last_port}]}``. Raises `Refused`."""
    given = params.get("containers")
    if not isinstance(given, dict):
        raise Refused("containers must be an object: address -> rules")
    try:
        return {str(IPv4Address(address)): _egress(rules) for address, rules in given.items()}
    except (ValueError, TypeError) as error:
        raise Refused(str(error)) from error


def _egress(rules: object) -> Egress:
    if rules is None:
        return Egress()
    if not isinstance(rules, list):
        raise Refused("the rules of a container are null or a list")
    egress = Egress(tuple(_allow(rule) for rule in rules))
    egress.rules()  # raises what is wrong with them
    return egress


def _allow(rule: object) -> Allow:
    if not isinstance(rule, dict) or not isinstance(rule.get("network"), str):
        raise Refused(f"a rule names a network, {rule!r} does not")
    if not all(type(rule.get(name, 0)) is int for name in ("first_port", "last_port")):
        raise Refused("ports are numbers")
    return Allow(**rule)


async def serve(
    listener: trio.socket.SocketType, handlers: Mapping[str, Handler], peer_cid: int | None = None
) -> None:
    """Until cancelled. A caller that breaks the rules loses its connection; others stay."""
    places = trio.CapacityLimiter(MOST_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        async for sock in vsock.accept_forever(listener, peer_cid):
            nursery.start_soon(_converse, sock, handlers, places)


async def _converse(
    sock: trio.socket.SocketType, handlers: Mapping[str, Handler], places: trio.CapacityLimiter
) -> None:
    with sock:
        try:
            places.acquire_on_behalf_of_nowait(sock)
        except trio.WouldBlock:
            log.warning("control.full", connections=MOST_CONNECTIONS)
            return
        try:
            lines = Lines(sock)
            while (line := await lines.next(IDLE_S)) is not None:
                await send_line(sock, await _answer(line, handlers))
        except (OSError, ValueError, RecursionError, trio.TooSlowError) as error:
            log.info("control.closed", reason=str(error) or type(error).__name__)
        finally:
            places.release_on_behalf_of(sock)


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> dict[str, object]:
    number: object = None
    try:
        request = _object(json.loads(line))
        number = request.get("id")
        handler = handlers.get(str(request.get("method")))
        if handler is None:
            raise Refused(f"no method {request.get('method')!r}; there are {', '.join(handlers)}")
        return {"id": number, "result": await handler(_object(request.get("params", {})))}
    except Refused as refusal:
        return {"id": number, "error": str(refusal)}
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"id": number, "error": f"not JSON: {error}"}
    except Exception as error:
        log.exception("control.internal")
        return {"id": number, "error": f"internal: {type(error).__name__}"}


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Refused("an object is wanted")
    return value


class Lines:
    """Lines of a stream, of bounded length."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._buffer = bytearray()

    async def next(self, within_s: float) -> bytes | None:
        """None at the end. Raises ValueError, OSError, `trio.TooSlowError`."""
        with trio.fail_after(within_s):
            while (end := self._buffer.find(b"\n")) < 0:
                if len(self._buffer) > MAX_LINE_BYTES:
                    raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
                chunk = await self._sock.recv(65_536)
                if not chunk:
                    return None
                self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


async def send_line(sock: trio.socket.SocketType, value: object) -> None:
    """Raises OSError, `trio.TooSlowError`."""
    data = json.dumps(value).encode() + b"\n"
    with trio.fail_after(CALL_S):
        while data:
            data = data[await sock.send(data) :]


async def call(address: vsock.Address, method: str, **params: object) -> object:
    """One question on a connection of its own. Raises `Refused`, OSError, `trio.TooSlowError`."""
    with await vsock.connect(address) as sock:
        await send_line(sock, {"id": 1, "method": method, "params": params})
        try:
            line = await Lines(sock).next(CALL_S)
            reply = json.loads(line) if line is not None else None
        except (ValueError, RecursionError) as error:
            raise Refused(f"{address} answers {method} with nonsense: {error}") from error
    if not isinstance(reply, dict):
        raise Refused(f"{address} does not answer {method}")
    if "error" in reply:
        raise Refused(str(reply["error"])[:500])
    return reply.get("result")
