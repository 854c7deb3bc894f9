"""A network for an enclave, over AF_VSOCK: packets, addresses, routes, firewall, resolver, streams.

What is pure:
- `packet`, `policy`, `framing`: headers, what may pass, the bytes on the stream.
- `netconfig`, `firewall`: a machine's network as a value; `config`: what the operator may choose.

What touches the world:
- `apply`: makes the machine be as the value says. `tun`, `vsock`: devices and streams.
- `link` with `pump` and `counters`: the `tun` plane. `nfqueue`: the compatible plane.
- `control`: the parent opens and closes ports; `dns`: the resolver; `relay`: streams through the vsock.
- `service`: the parent and the enclave as a whole; `python -m netstack`.
"""
