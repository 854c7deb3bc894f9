"""For those who check and those who vouch: ``enclaved verify`` and ``enclaved release``. No part of a server.

- `verify` walks from the root to the code, `challenge` asks for fresh proof, `report` tells a person or a program.
- `maintain` signs, publishes and checks releases, with a `signer`: a key in a file, or a bunker.
- `commands` is their command line.
"""
