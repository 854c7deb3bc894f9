"""DEVELOPMENT ONLY: a whole world around one server, on one machine, without accounts or internet.

- `stack` starts it: a private Docker (`engine`), a registry with a sample app (`registry`, `sample`),
  a Lightning wallet service (`wallet` on `wallet_book`), and ``enclaved`` itself.
- `demo` does the main job against it, as a stranger would, and prints what it sees.

Nothing here is part of the server: an import rule in pyproject.toml keeps it out.
"""
