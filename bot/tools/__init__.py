"""What people call: the client, the command line, ``enclaved verify`` and ``enclaved release``. No part of a server.

- `cli` is the command line, `client` the caller's side of the RPC.
- `verify` walks from the root to the code, by what `lookup` finds on relays; `challenge` asks the instance itself,
  `report` tells a person or a program.
- `maintain` signs, publishes and checks releases, with a `signer`: a key in a file, or a bunker; `commands` is their
  part of the command line.
"""
