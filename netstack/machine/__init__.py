"""A machine's network as a value (`netconfig`, `layout`, `firewall`, `nft`, `iptables`, `egress`), and applying it
(`apply`, `linux`, `containers`)."""
