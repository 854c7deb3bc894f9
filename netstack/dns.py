"""The resolver inside the enclave: Debian's unbound, which asks others over TLS only.

So the parent sees that names are asked, but not which, and cannot answer for them. Containers find it at
`RESOLVER` by Docker's daemon.json.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from netstack import vsock
from netstack.child import Child
from netstack.machine.layout import ENCLAVE_V4, RESOLVER, Inside

log = structlog.get_logger()
_UPSTREAM = re.compile(r"[0-9a-fA-F.:]+@[0-9]{1,5}#[A-Za-z0-9.-]+")
READY_S = 15.0
RESTART_S = 0.5


@dataclass(frozen=True)
class Resolver:
    """``upstreams``: address@port#name, each asked over TLS and known by that name's certificate."""

    upstreams: tuple[str, ...] = (
        "1.1.1.1@853#cloudflare-dns.com",
        "9.9.9.9@853#dns.quad9.net",
        "8.8.8.8@853#dns.google",
    )
    certificates: str = "/etc/ssl/certs/ca-certificates.crt"
    program: str = "unbound"

    def __post_init__(self) -> None:
        """Raises ValueError."""
        for each in self.upstreams:
            if not _UPSTREAM.fullmatch(each):
                raise ValueError(f"{each!r}: an upstream is address@port#name")


def unbound_text(resolver: Resolver, inside: Inside, folder: str) -> str:
    """Its configuration. Nothing is asked in plain: with no upstream there is no answer."""
    allowed = "".join(f"    access-control: {net} allow\n" for net in inside.containers)
    upstreams = "".join(f"    forward-addr: {each}\n" for each in resolver.upstreams)
    return (
        "server:\n"
        f"    interface: {RESOLVER}\n    interface: 127.0.0.1\n"
        "    access-control: 0.0.0.0/0 refuse\n    access-control: 127.0.0.0/8 allow\n"
        f"    access-control: {RESOLVER}/32 allow\n{allowed}"
        '    chroot: ""\n    username: ""\n    do-daemonize: no\n    use-syslog: no\n    logfile: ""\n'
        f'    directory: "{folder}"\n    pidfile: "{folder}/unbound.pid"\n    num-threads: 1\n'
        "    hide-identity: yes\n    hide-version: yes\n    harden-glue: yes\n    do-ip6: no\n"
        # A name of the internet must not lead a tenant to a private address (rebinding).
        + "".join(f"    private-address: {n}\n" for n in ("10.0.0.0/8", "172.16.0.0/12"))
        + "".join(f"    private-address: {n}\n" for n in ("192.168.0.0/16", "169.254.0.0/16"))
        + "    msg-cache-size: 4m\n    rrset-cache-size: 8m\n    ratelimit: 0\n    ip-ratelimit: 500\n"
        f'    tls-cert-bundle: "{resolver.certificates}"\n'
        "remote-control:\n    control-enable: no\n"
        f'forward-zone:\n    name: "."\n    forward-tls-upstream: yes\n    forward-first: no\n{upstreams}'
    )


def docker_settings(mtu: int) -> dict[str, object]:
    """What dockerd's daemon.json must say so that containers use this network."""
    return {"dns": [RESOLVER], "mtu": mtu, "ip-masq": False, "userland-proxy": False}


async def run(resolver: Resolver, inside: Inside, folder: Path, ready: trio.Event) -> None:
    """Keep it running until cancelled."""
    command = [resolver.program, "-d", "-c", str(_configure(resolver, inside, folder))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_announce, ready)
        while True:
            status = await _run_once(command)
            log.error("resolver.ended", status=status)
            await trio.sleep(RESTART_S)


def _configure(resolver: Resolver, inside: Inside, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "unbound.conf"
    file.write_text(unbound_text(resolver, inside, str(folder)))
    return file


async def _run_once(command: Sequence[str]) -> int:
    child = Child(command)
    try:
        return (await child.wait())[0]
    finally:
        child.end()


async def _announce(ready: trio.Event) -> None:
    while not ready.is_set():
        try:
            with await vsock.connect(vsock.parse_address(f"tcp:{RESOLVER}:53")):
                ready.set()
                log.info("resolver.ready", address=RESOLVER, own=ENCLAVE_V4)
        except (OSError, trio.TooSlowError):
            await trio.sleep(0.05)
