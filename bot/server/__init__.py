"""What answers: events in, replies out, and what the server does by itself.

- `app` is the composition root: one place where all parts are joined; `parts` is what a server consists of.
- `intake` takes events in, `inbox` admits them, `doors` decode, `dispatch` finds the row in ``handlers.ROUTES``.
- `loops` is what the server does by itself; `outbox` publishes what the handlers queued, through the `outlet`.
- `http` serves lightning addresses and attestation.
"""
