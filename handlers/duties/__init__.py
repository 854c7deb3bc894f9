"""What the server does by itself, without being asked; every one may be repeated, and cut off, at any moment.

`settle` follows incoming payments and `outgoing` those of ours, `charge` meters, `upkeep` lets things expire,
`reconcile` makes the engine match the store, `announce` tells the world, `sweep` collects what was earned.
"""
