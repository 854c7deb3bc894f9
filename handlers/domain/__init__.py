"""The rules, as plain Python: the standard library only, no clock, no IO.

- `pricing`, `ledger`, `meter`: what running costs, who owns which millisatoshi, what is due now.
- `lifecycle`, `capacity`, `ports_pool`: the states of a container, and what each may hold.
- `image`, `limits`, `quote`: what was asked for, and what it gets.
- `plan`: what the engine must do so that it matches the store.

Amounts are integers in msat, times integers in seconds (``_s``, Unix unless said) or ``_ms``.
"""
