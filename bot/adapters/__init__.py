"""One module per port of ``handlers.ports``, named after the technology behind it."""
