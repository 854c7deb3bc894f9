"""How an enclave gets its disk key back from key-escrow services, and when it must refuse to go on.

- `recovery`: the decision, a pure function over what the backup and the services say.
- `shares`: the value that is stored: a whole copy, or one share of it for each service.
- `discovery`: which services to believe, by their attested announcements.
- `protocol`: kind 29525 to the letter: ``get``, ``set``, ``has``, ``status``, ``ping``.
- `client`: one session with one service, under a key made for it and attested for it.
- `refresh`: keeps what is stored alive, and never puts another key in its place.

It reaches the world through the Protocols in `ports`.
"""
