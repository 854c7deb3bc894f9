"""Rules and byte counters of containers, in the enclave's firewall. Blocking; see `netstack.machine.linux`."""

from collections.abc import Mapping

from netstack.machine.egress import Egress, Traffic, container_changes, traffic_in
from netstack.machine.iptables import chains_in
from netstack.machine.linux import run

_SAVE = ["iptables-legacy-save", "-t", "mangle", "-c"]


def set_rules(wanted: Mapping[str, Egress]) -> bool:
    """Make them be so, in one transaction; whether something changed. Raises `CannotApply`."""
    text = container_changes(chains_in(run(_SAVE)), wanted)
    if text:
        run(["iptables-legacy-restore", "--noflush", "--wait", "5"], text)
    return bool(text)


def traffic() -> dict[str, Traffic]:
    """Bytes of each container since it was named. Raises `CannotApply`."""
    return traffic_in(run(_SAVE))
