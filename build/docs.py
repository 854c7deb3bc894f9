"""Writes the parts of the documents that come from the code; with ``--check``, fails when they are stale.

``docs/protocol.md`` is made from ``handlers.ROUTES``; the diagram in ``ARCHITECTURE.md`` and the commands in
``README.md`` stand between markers.
"""

import sys
from pathlib import Path

from handlers import ROUTES
from handlers.domain.lifecycle import TABLE
from handlers.errors import Code

ROOT = Path(__file__).resolve().parents[1]
INTRO = """# Commands

Generated from `handlers.ROUTES` by `make docs`; do not edit.

An encrypted RPC is an event of kind 29425 with a `p` tag for the instance; its content is NIP-44 of
`{"id": string, "method": string, "params": object}`. The reply is of the same kind, with `p` for the caller and
`e` for the request: NIP-44 of `{"id", "result"}` or `{"id", "error"}`. A public mention is a note of kind 1 with
`nostr:npub…` and a command line: positional words in the order below, then `name=value`.

An `error` starts with a machine word: {codes}.
"""
INSIDE = """
# From inside a container

A websocket at `ENCLAVED_ENDPOINT`, with the header `token: <ENCLAVED_TOKEN>`; both stand in the container's environment, and
the token works from its address only. `{"id", "method", "params"}` in, `{"id", "result"}` or `{"id", "error"}` out.

- `get_challenge {pubkey}`: what the app must sign with that key: kind 22242 with the tags `relay`, `challenge` and `p`.
- `create_certificate {pubkey, proof}`: `{root, certs}`, the instance's attestation (23793), its certificate for the container
  and the container's for the app (23797). In the tags `tee_root` and `tee_cert` of the app's events they let anybody verify it.
"""


def protocol() -> str:
    parts = [INTRO.replace("{codes}", ", ".join(f"`{code.value}:`" for code in Code))]
    for route in ROUTES:
        doors = "RPC and mention" if route.public else "RPC only"
        who = "the container's admin" if route.admin_only else "anybody"
        names = f" (also `{'`, `'.join(route.aliases)}`)" if route.aliases else ""
        parts.append(f"## `{route.usage}`{names}\n\n{route.summary} For {who}; {doors}.\n")
        parts += [
            f"- `{name}`{'' if required else ' (optional)'}: {says}"
            for name, required, says in route.parameter_help()
        ]
        parts.append(f"\nReturns: {route.returns}\n")
    return "\n".join(parts).rstrip() + "\n" + INSIDE


def commands() -> str:
    rows = ["| command | what it does | who | where |", "|---|---|---|---|"]
    for route in ROUTES:
        who = "admin" if route.admin_only else "anybody"
        where = "RPC, mention" if route.public else "RPC"
        rows.append(f"| `{route.usage}` | {route.summary} | {who} | {where} |")
    return "\n".join(rows)


def lifecycle() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> WAITING: deploy"]
    lines += [
        f"    {a.name} --> {b.name}: {happening.value}" for (a, happening), b in TABLE.items()
    ]
    return "\n".join([*lines, "    STOPPED --> [*]", "```"])


def between(text: str, name: str, made: str) -> str:
    """The text with ``made`` between the two markers of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the markers of {name} are missing")
    return f"{head}{begin}{made}\n{end}{tail}"


def wanted() -> dict[Path, str]:
    readme, architecture = ROOT / "README.md", ROOT / "ARCHITECTURE.md"
    return {
        ROOT / "docs/protocol.md": protocol(),
        readme: between(readme.read_text(), "commands", commands()),
        architecture: between(architecture.read_text(), "lifecycle", lifecycle()),
    }


def main() -> int:
    stale = {
        path: text
        for path, text in wanted().items()
        if not path.exists() or path.read_text() != text
    }
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`")
        return 1 if stale else 0
    for path, text in stale.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
