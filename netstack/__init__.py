"""A network for an enclave, over AF_VSOCK: packets, addresses, routes, firewall, resolver, streams.

What is pure:
- `packet`, `policy`, `framing`: headers, what may pass, the bytes on the stream. `fastpath` remembers what
  passed, `coalesce` joins datagrams.
- `netconfig`, `layout`: a machine's network as a value; `firewall` with `nft`, `iptables` and `egress`: its
  firewalls' texts. `config`: what the operator may choose.

What touches the world:
- `apply`: makes the machine be as the value says. `tun`, `vsock`: devices and streams.
- `link` with `pump` and `counters`: the `tun` plane. `nfqueue`: the compatible plane.
- `control`: the parent opens and closes ports; `dns`: the resolver; `streams`: what is no packet.
- `service`: the parent and the enclave as a whole; `python -m netstack`.
"""
