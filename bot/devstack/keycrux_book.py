"""DEVELOPMENT ONLY. What a keycrux service keeps: values by measurements, handed out by the rules upstream has.

A value is found by PCR0, 1, 2 and 4; failing that, among the values of the same PCR4, by its policy. Unlike
upstream's, a policy is mandatory, and values survive a restart.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from keycrux_client.protocol import LIFE_S, MAX_DATA, NOT_FOUND, held_digest
from nips.errors import BadInput
from nips.event import parse_event_untrusted
from nips.tee.attestation import Pcrs
from nips.tee.nec05 import verify_release_signature

_SCHEMA = """
CREATE TABLE IF NOT EXISTS held (
    measured TEXT PRIMARY KEY, pcr4 TEXT NOT NULL, debug INTEGER NOT NULL,
    data TEXT NOT NULL, policy TEXT NOT NULL, asked_at INTEGER NOT NULL, expires_at INTEGER NOT NULL);
"""
Json = dict[str, Any]


class KeycruxError(Exception):
    """Goes back to the caller as the ``error``."""


class KeycruxBook:
    """SQLite; nothing in it is ever logged."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)

    def set(self, pcrs: Pcrs, params: Json, asked_at: int, now: int) -> str:
        """``asked_at``: when the request was signed. One that was held up must not undo a later one."""
        data, policy, given = params.get("data"), params.get("policy"), params.get("input")
        if not isinstance(data, str) or not 0 < len(data) < MAX_DATA:
            raise KeycruxError("Invalid request")
        if not isinstance(policy, dict) or not policy.get("ref"):
            raise KeycruxError("No policy")
        if not isinstance(given, dict):
            raise KeycruxError("No input for policy")
        if not _fulfils(pcrs, policy, given):
            raise KeycruxError("Policy check failed")
        earlier = "SELECT 1 FROM held WHERE measured = ? AND asked_at > ?"
        if self._db.execute(earlier, (_measured(pcrs), asked_at)).fetchone() is not None:
            raise KeycruxError("Outdated request")
        source = self._source(pcrs, params, now)
        self._compare(params, source)
        row = (
            _measured(pcrs), pcrs.hex(4), pcrs.is_debug, data, json.dumps(policy), asked_at, now + LIFE_S,
        )  # fmt: skip
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            # It may be another image's, on the same machine: it gives way, or that image would go on with it.
            self._db.execute("DELETE FROM held WHERE measured = ?", (source,))
            self._db.execute("INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return "ok"

    def _compare(self, params: Json, source: str | None) -> None:
        """Compare and set: who does not know what is held here was overtaken by somebody."""
        holds = held_digest(self._data(source)) if source is not None else ""
        if params.get("expected", holds) != holds:
            raise KeycruxError("Conflict")

    def get(self, pcrs: Pcrs, params: Json, now: int) -> str:
        source = self._source(pcrs, params, now)
        if source is None:
            raise KeycruxError(NOT_FOUND)
        return self._data(source)

    def _data(self, source: str) -> str:
        found = self._db.execute("SELECT data FROM held WHERE measured = ?", (source,))
        return str(found.fetchone()[0])

    def _source(self, pcrs: Pcrs, params: Json, now: int) -> str | None:
        """Whose value it is that this code may have: its own, or one of the same machine whose policy lets it."""
        self._db.execute("DELETE FROM held WHERE expires_at < ?", (now,))
        mine, given = _measured(pcrs), params.get("input")
        if self._db.execute("SELECT 1 FROM held WHERE measured = ?", (mine,)).fetchone():
            return mine
        same_machine = (
            "SELECT measured, policy FROM held WHERE pcr4 = ? AND debug = ? ORDER BY asked_at DESC"
        )
        for measured, policy in self._db.execute(same_machine, (pcrs.hex(4), pcrs.is_debug)):
            if isinstance(given, dict) and _fulfils(pcrs, json.loads(policy), given):
                return str(measured)
        return None

    def has(self, params: Json, now: int) -> Json:
        sql = "SELECT count(*) FILTER (WHERE NOT debug), count(*) FILTER (WHERE debug) FROM held WHERE pcr4 = ? AND expires_at >= ?"
        count, count_debug = self._db.execute(sql, (str(params.get("PCR4")), now)).fetchone()
        return {"count": count, "countDebug": count_debug}

    def status(self, started_at_ms: int) -> Json:
        sql = "SELECT count(DISTINCT pcr4), count(*) FILTER (WHERE NOT debug), count(*) FILTER (WHERE debug) FROM held"
        machines, count, count_debug = self._db.execute(sql).fetchone()
        told = {"countPCR4": machines, "count": count, "countDebug": count_debug}
        return told | {"startedAt": started_at_ms}

    def close(self) -> None:
        self._db.close()


def _measured(pcrs: Pcrs) -> str:
    return "_".join(str(pcrs.hex(index)) for index in (0, 1, 2, 4))


def _fulfils(pcrs: Pcrs, policy: Json, given: Json) -> bool:
    """Every maintainer of the policy signed these very measurements, for the policy's repository."""
    if policy["ref"] != given.get("ref"):
        return False
    signed = {
        maintainer
        for event in given.get("release_signatures") or []
        if (maintainer := _maintainer(event, pcrs, policy["ref"])) is not None
    }
    return set(policy.get("release_pubkeys") or []) <= signed


def _maintainer(event: object, pcrs: Pcrs, repo: str) -> str | None:
    try:
        release = verify_release_signature(parse_event_untrusted(event), pcrs)
    except BadInput:
        return None
    return release.maintainer if release.repo == repo else None
