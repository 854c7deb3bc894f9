"""What the bytes mean: Nostr events, NIPs, NECs, invoices. Sans-IO.

Bytes and ``now`` come in, values go out; nothing here opens a socket, reads a clock or waits.

- `event`, `keys`, `crypto`: the signed event, the secret key that cannot be printed, the curve.
- `kinds`, `filters`, `nip01`: the vocabulary and messages between clients and relays.
- one module per NIP; `mention`, `rpc` for our own conventions; `bolt11`, `lnurl` for Lightning.
- `tee`: what proves which code runs.

Hostile input is marked in the name: ``*_untrusted`` raises exactly one exception, a `BadInput`.
"""
