"""The process: everything that touches the world.

- `cli` and `config` start it, `app` is the composition root: one place where all parts are joined.
- `relay` carries events: `connection` and `pool` outwards, `server` is the embedded relay.
- `intake` takes events in, `loops` is what the server does by itself, `parts` what it consists of.
- `inbox` admits, `doors` decode, `dispatch` finds the row in ``handlers.ROUTES`` and answers.
- `outbox` publishes what the handlers queued; `http` serves lightning addresses.
- `adapters` fulfil ``handlers.ports``: Docker, registry, wallet, SQLite.
- `client` is the caller's side of the RPC; `devstack` is the development machine around a server.
"""
