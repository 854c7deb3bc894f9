"""The process: everything that touches the world, in rooms that an import contract keeps apart.

- `relay`: events on the wire; connections to relays, and the embedded one.
- `server`: what answers; `server.app` is the composition root.
- `boot`: from a cold enclave to an identity that can be trusted; the supervisor of programs.
- `adapters`: fulfil ``handlers.ports``: Docker, registry, wallet, SQLite.
- `tools`: what people call: command line, client, verify, release.
- `devstack`: DEVELOPMENT ONLY, a machine around a server; imported by nothing.

At the root: `config` is read once, `clock` is the only place where clocks are read, `logging` sets up the log.
"""
