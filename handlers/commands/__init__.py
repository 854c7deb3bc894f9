"""A file for each row of ``handlers.ROUTES``: its parameters, what it does, how its result reads as text."""
