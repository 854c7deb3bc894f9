"""A machine's network, simulated: it refuses what Linux would refuse, and can die between any two steps."""

import re

from netstack.machine.apply import CannotApply


class Died(Exception):
    """The process ended here."""


class FakeKernel:
    """`netstack.machine.apply.Kernel` in memory. ``die_after``: how many changes it lives."""

    def __init__(self, die_after=None):
        self.sysctls = {
            "net/ipv4/ip_forward": "0",
            "net/ipv4/ip_local_port_range": "32768\t60999",
            "net/ipv4/conf/default/rp_filter": "0",
            "net/ipv4/conf/all/rp_filter": "0",
            "net/ipv4/conf/all/accept_redirects": "1",
            "net/ipv4/conf/default/accept_redirects": "1",
            "net/ipv4/conf/all/send_redirects": "1",
            "net/ipv4/conf/default/send_redirects": "1",
            "net/ipv4/conf/all/accept_source_route": "0",
            "net/ipv4/tcp_mtu_probing": "0",
            "net/ipv6/conf/all/forwarding": "0",
            "net/ipv6/conf/eth0/accept_ra": "1",
        }
        self.firewalls = {}
        self.tuns = {}
        self._addresses = {"lo": set(), "eth0": set()}
        self._routes = set()
        self._rules = set()
        self.die_after = die_after
        self.changes = 0

    def picture(self):
        """All of it, to compare."""
        places = {name: set(found) for name, found in self._addresses.items()}
        return (dict(self.sysctls), dict(self.firewalls), dict(self.tuns), places,
                set(self._routes), set(self._rules))  # fmt: skip

    def _change(self):
        if self.die_after is not None and self.changes >= self.die_after:
            raise Died
        self.changes += 1

    def sysctl(self, key):
        return self.sysctls.get(key)

    def set_sysctl(self, key, value):
        if key not in self.sysctls:
            raise CannotApply(f"no {key}")
        self._change()
        self.sysctls[key] = value

    def has_firewall(self, firewall):
        return self.firewalls.get(firewall.tool) == firewall.mark

    def load_firewall(self, firewall):
        if firewall.tool == "nft":
            assert firewall.text.count("{") == firewall.text.count("}")
        else:
            self._check_iptables(firewall.text)
        self._change()
        self.firewalls[firewall.tool] = firewall.mark

    def _check_iptables(self, text):
        for table in text.split("COMMIT\n")[:-1]:
            declared = set(re.findall(r"^:(\S+) ", table, re.MULTILINE))
            for chain, target in re.findall(r"^-A (\S+) .*-j (\S+)", table, re.MULTILINE):
                if chain not in declared:
                    raise CannotApply(f"no chain {chain}")
                if target.startswith("NETSTACK") and target not in declared:
                    raise CannotApply(f"no target {target}")
                if len(chain) > 28:
                    raise CannotApply(f"{chain} is too long a name")

    def remove_firewall(self, tool):
        if tool not in self.firewalls:
            return False
        self._change()
        del self.firewalls[tool]
        return True

    def tun(self, name):
        return self.tuns.get(name)

    def add_tun(self, tun):
        self._change()
        self.tuns[tun.name] = tun
        self._addresses.setdefault(tun.name, set())

    def remove_tun(self, name):
        self._change()
        del self.tuns[name]
        del self._addresses[name]
        self._routes = {r for r in self._routes if r.link != name}

    def addresses(self, link):
        return set(self._addresses.get(link, ()))

    def add_address(self, address):
        if address.link not in self._addresses:
            raise CannotApply(f"no link {address.link}")
        if address in self._addresses[address.link]:
            raise CannotApply(f"{address.local} exists")
        self._change()
        self._addresses[address.link].add(address)

    def remove_address(self, address):
        self._change()
        self._addresses[address.link].remove(address)

    def routes(self, table):
        return {r for r in self._routes if r.table == table}

    def add_route(self, route):
        if route in self._routes:
            raise CannotApply(f"{route.destination} exists")
        if route.link is not None and route.link not in self.tuns:
            raise CannotApply(f"{route.link} is down")
        if route.source is not None and not any(
            a.local == route.source for found in self._addresses.values() for a in found
        ):
            raise CannotApply(f"{route.source} is no address of ours")
        self._change()
        self._routes.add(route)

    def remove_route(self, route):
        self._change()
        self._routes.remove(route)

    def rules(self):
        return set(self._rules)

    def add_rule(self, rule):
        if rule in self._rules:
            raise CannotApply(f"rule {rule.priority} exists")
        self._change()
        self._rules.add(rule)

    def remove_rule(self, rule):
        self._change()
        self._rules.remove(rule)
