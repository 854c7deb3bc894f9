"""The checks at the end: our ledger, the wallet's own book, what Docker saw run, what is left. Violations are words."""

import json
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from bench.soak.plan import INTERVAL_S, PRICE_MSAT
from bench.soak.watch import LABEL
from nips.nip47 import parse_uri

# A container's first process, by which it is charged, exists before Docker says that it started: at most so long,
# and so long on average, on a busy machine.
START_S, START_ON_AVERAGE_S = 5.0, 1.0
_UNFINISHED = {
    # A sweep whose request died with the relay stays unknown as long as the wallet's invoice lives: an hour.
    "payments that are unknown": (
        "SELECT count(*) FROM outgoing WHERE state = 'unknown' AND to_wallet IS NULL"
    ),
    "invoices that are open": "SELECT count(*) FROM invoice WHERE state = 'open'",
    "things to be published": "SELECT count(*) FROM outbox WHERE attempts = 0",
}


class Books:
    """Both books, as files in the folder of the stack; each question reads them anew."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self._ours, self._theirs = (
            folder / "state/enclaved.sqlite",
            folder / "wallet/wallet.sqlite",
        )
        self._socket = socket
        self._main = parse_uri((folder / "wallet.uri").read_text()).key.pubkey

    def unfinished(self) -> list[str]:
        """What the server has not concluded yet."""
        with closing(sqlite3.connect(self._ours)) as db:
            counts = {what: db.execute(sql).fetchone()[0] for what, sql in _UNFINISHED.items()}
        return [f"{count} {what}" for what, count in counts.items() if count]

    def differences(self, payer: str) -> list[str]:
        """Ledger against wallet, account by account and payment by payment; and what runs without being wanted."""
        with (
            closing(sqlite3.connect(self._ours)) as ours,
            closing(sqlite3.connect(self._theirs)) as theirs,
        ):
            return [
                *unsound(ours),
                *self._mirror(ours, theirs, payer),
                *self._credits(ours, theirs, payer),
                *self._withdrawals(ours, theirs),
                *self._strays(ours),
            ]

    def _mirror(
        self, ours: sqlite3.Connection, theirs: sqlite3.Connection, payer: str
    ) -> Iterable[str]:
        sql = "SELECT name, -balance_msat FROM account WHERE name LIKE 'wallet:%'"
        mirror = {
            self._main if name == "wallet:main" else name.removeprefix("wallet:"): msat
            for name, msat in ours.execute(sql)
        }
        held = dict(theirs.execute("SELECT pubkey, balance_msat FROM account"))
        held.pop(payer, None)
        for pubkey in sorted(mirror.keys() | held.keys()):
            if mirror.get(pubkey, 0) != held.get(pubkey, 0):
                yield f"wallet {pubkey[:12]}: we book {mirror.get(pubkey, 0)} msat, it holds {held.get(pubkey, 0)}"

    def _credits(
        self, ours: sqlite3.Connection, theirs: sqlite3.Connection, payer: str
    ) -> Iterable[str]:
        """Every payment to a container is one entry over its amount; sweeps to our own wallet are transfers."""
        sql = (
            "SELECT payment_hash, amount_msat FROM invoice WHERE settled_at IS NOT NULL "
            "AND payee NOT IN (?, ?)"
        )
        paid = dict(theirs.execute(sql, (payer, self._main)).fetchall())
        sql = (
            "SELECT substr(key, 9), amount_msat FROM entry JOIN posting USING (entry_id) "
            "WHERE key LIKE 'payment:%' AND account LIKE 'container:%'"
        )
        credited = ours.execute(sql).fetchall()
        for payment_hash, count in Counter(h for h, _ in credited).items():
            if count != 1:
                yield f"payment {payment_hash[:12]} is credited {count} times"
        for payment_hash in sorted(paid.keys() | dict(credited).keys()):
            ours_msat, theirs_msat = dict(credited).get(payment_hash), paid.get(payment_hash)
            if ours_msat != theirs_msat:
                yield f"payment {payment_hash[:12]}: credited {ours_msat} msat, paid {theirs_msat}"

    def _withdrawals(self, ours: sqlite3.Connection, theirs: sqlite3.Connection) -> Iterable[str]:
        """What we call settled was paid, and what we gave back was not."""
        settled = {
            row[0]
            for row in theirs.execute(
                "SELECT payment_hash FROM invoice WHERE settled_at IS NOT NULL"
            )
        }
        for payment_hash, state in ours.execute("SELECT payment_hash, state FROM outgoing"):
            if (state == "settled") != (payment_hash in settled):
                yield f"outgoing {payment_hash[:12]} is {state}, the wallet paid it: {payment_hash in settled}"

    def _strays(self, ours: sqlite3.Connection) -> Iterable[str]:
        wanted = {
            row[0] for row in ours.execute("SELECT pubkey FROM container WHERE state = 'deployed'")
        }
        for pubkey in sorted(self._running() - wanted):
            yield f"container {pubkey[:12]} runs, and is not wanted"
        kept = {
            row[0]
            for row in ours.execute(
                "SELECT pubkey FROM container WHERE state NOT IN ('stopped', 'expired')"
            )
        }
        for what in ("ps -a", "network ls", "volume ls"):
            for pubkey in sorted(self._labelled(what) - kept):
                yield f"left behind of {pubkey[:12]}: `docker {what}`"

    def _running(self) -> set[str]:
        return self._labelled("ps")

    def _labelled(self, what: str) -> set[str]:
        command = [
            "docker",
            "-H",
            f"unix://{self._socket}",
            *what.split(),
            "--filter",
            f"label={LABEL}",
        ]
        form = ["--format", f'{{{{.Label "{LABEL}"}}}}']
        return set(subprocess.check_output([*command, *form], text=True).split())

    def overcharged(self, ran: Mapping[str, Sequence[float]]) -> list[str]:
        """Containers that were charged for more time than they ran."""
        charged = self.charged_s()
        all_s, runs_s = sum(charged.values()), [run_s for runs in ran.values() for run_s in runs]
        if all_s > sum(runs_s) + START_ON_AVERAGE_S * len(runs_s):
            return [f"{all_s:.0f} s are charged, {sum(runs_s):.0f} s ran in {len(runs_s)} runs"]
        return [
            f"container {pubkey[:12]} is charged for {charged_s:.1f} s, and ran {sum(runs):.1f} s in {len(runs)} runs"
            for pubkey, charged_s in charged.items()
            for runs in [ran.get(pubkey, ())]
            if charged_s > sum(runs) + START_S * len(runs)
        ]

    def charged_s(self) -> dict[str, float]:
        """Seconds that each container was charged for."""
        sql = (
            "SELECT substr(account, 11), -sum(amount_msat) FROM entry JOIN posting USING (entry_id) "
            "WHERE key LIKE 'charge:%' AND account LIKE 'container:%' GROUP BY account"
        )
        with closing(sqlite3.connect(self._ours)) as db:
            units = dict(
                db.execute(
                    "SELECT pubkey, units FROM container UNION SELECT pubkey, units FROM archive"
                )
            )
            charged = db.execute(sql).fetchall()
        return {pubkey: msat * INTERVAL_S / PRICE_MSAT / units[pubkey] for pubkey, msat in charged}

    def figures(self) -> dict[str, int]:
        """How much there is in the books."""
        asked = {
            "ledger entries": "SELECT count(*) FROM entry",
            "containers now": "SELECT count(*) FROM container",
            "containers archived": "SELECT count(*) FROM archive",
            "payments credited": "SELECT count(*) FROM entry WHERE key LIKE 'payment:%'",
            "payments out, settled": "SELECT count(*) FROM outgoing WHERE state = 'settled'",
            "sweeps unknown": "SELECT count(*) FROM outgoing WHERE state = 'unknown'",
            "payments out, failed": "SELECT count(*) FROM outgoing WHERE state = 'failed'",
            "invoices kept": "SELECT count(*) FROM invoice",
        }
        with closing(sqlite3.connect(self._ours)) as db:
            return {what: db.execute(sql).fetchone()[0] for what, sql in asked.items()}


def unsound(db: sqlite3.Connection) -> list[str]:
    """What is wrong with a ledger by its own tables: entries sum to zero, balances are sums, tenants owe nothing."""
    found = [
        f"entry {entry} sums to {msat} msat"
        for entry, msat in db.execute(
            "SELECT entry_id, sum(amount_msat) FROM posting GROUP BY entry_id HAVING sum(amount_msat) <> 0"
        )
    ]
    accounts = dict(db.execute("SELECT name, balance_msat FROM account"))
    sums = dict(db.execute("SELECT account, sum(amount_msat) FROM posting GROUP BY account"))
    found += [
        f"account {name} says {accounts.get(name, 0)} msat, its postings {sums.get(name, 0)}"
        for name in sorted(accounts.keys() | sums.keys())
        if accounts.get(name, 0) != sums.get(name, 0)
    ]
    found += [
        f"account {name} is below zero: {msat} msat"
        for name, msat in accounts.items()
        if msat < 0 and not name.startswith("wallet:") and name != "revenue"
    ]
    return found


def surprises(log: Path) -> Counter[str]:
    """Exceptions in the server's log, by what was done and their last line."""
    found: Counter[str] = Counter()
    with log.open(errors="replace") as lines:
        for line in lines:
            if not (
                line.startswith("{") and ('"exception"' in line or '"level": "error"' in line)
            ):
                if line.startswith("Traceback"):
                    found["a traceback outside of the log"] += 1
                continue
            record = json.loads(line)
            what = record.get("loop") or record.get("what") or record.get("method") or ""
            last = (
                (record.get("exception") or record.get("reason") or "").strip().splitlines()[-1:]
            )
            found[f"{record['event']} {what} {' '.join(last)[:160]}"] += 1
    return found
