"""A network for an enclave, over AF_VSOCK: packets, addresses, routes, firewall, resolver, streams.

- `packets`: headers, what may pass, the bytes on the stream. Pure.
- `machine`: a machine's network as a value, its firewalls' texts, and applying them.
- `planes`: what moves packets: the `tun` plane, and the compatible one on NFQUEUE.
- `config`: what the operator may choose. `vsock`, `streams`: stream sockets, and what is no packet.
- `control`: the parent opens and closes ports. `dns`: the resolver. `child`: a process that dies with us.
- `service`: the parent and the enclave as a whole; `python -m netstack`.
"""
