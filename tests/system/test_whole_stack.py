"""Everything real at once: processes, dockerd, registry, relay, wallet. The demo, and kill -9."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from bot.adapters.nwc_client import known
from bot.adapters.nwc_wallet import NwcWallet
from bot.clock import SystemClock
from bot.devstack.sample import build_image
from bot.devstack.stack import stack
from bot.devstack.wallet import PATIENCE
from bot.tools.client import CallRefused, NoAnswer, open_client
from handlers.domain.ledger import MAIN_WALLET
from handlers.ports import InvoiceWanted, Minted, PayStatus
from nips.keys import SecretKey
from nips.nip47 import parse_uri
from tests.conftest import REPO, audit_books

pytestmark = [
    pytest.mark.dockerd,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
INVOICE_LIVES_S = 25
POLICY = {
    "resume_ms": 2_000,
    "pay_valid_s": 5,
    "htlc_s": 1,  # the dev wallet holds no payments
    "fee_reserve_min_msat": 2_000,
    "tariff": {"price_msat": 1_000, "interval_s": 1},
    "rhythm": {"charge_every_ms": 1_000, "low_balance_ms": 2_000, "stays_up_ms": 500},
}


def needs_root():
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces and a private dockerd")


def test_the_demo_does_the_main_job_and_leaves_nothing_behind():
    needs_root()
    done = subprocess.run(
        [sys.executable, "-m", "bot.devstack", "demo", "--once"],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=180,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert [str(n) for n in range(1, 15)] == re.findall(r"\[(\d+)\]", done.stdout)
    assert 14 == len(re.findall(r"✓ .*\(\d+ ms\)", done.stdout))
    assert 2 == done.stdout.count("VALID FOR DEVELOPMENT ONLY: npub1")
    assert "halted: the escrow services that answer hold none for this code" in done.stdout
    assert "prod" not in "".join(re.findall(r"t=\w+", done.stdout))
    assert "cleaned up" in done.stdout
    assert "nsec1" not in done.stdout


def test_ctrl_c_cleans_up():
    needs_root()
    process = subprocess.Popen(
        [sys.executable, "-m", "bot.devstack", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPO,
    )
    for line in process.stdout:
        if "[3]" in line:
            break
    folder = next(
        f
        for f in Path("/var/tmp/enclaved-dev").iterdir()
        if (f / "owner").read_text() == str(process.pid)
    )
    os.kill(process.pid, signal.SIGINT)
    process.stdout.read()
    process.wait(60)
    process.stdout.close()

    assert not folder.exists()
    running = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout
    assert "" == running


async def test_kill_9_of_the_real_server_again_and_again(record_property):
    """Twelve kills spread over deploy, payment, start, charging, withdrawal; then the books are compared."""
    needs_root()
    kills = 0
    async with stack(lambda _: None, POLICY) as on:
        image = await on.ground.push("sample/hello", "1", build_image(volumes=()))
        folder = on.ground.place.folder

        async def kill():
            """kill -9 of the server; when it is not up this moment, as soon as it is."""
            nonlocal kills
            with trio.move_on_after(20):
                while not (found := _server_pids(folder)):
                    await trio.sleep(0.02)
                for pid in found:
                    os.kill(pid, signal.SIGKILL)
                kills += 1

        wallet = NwcWallet(
            known(parse_uri(on.payer_uri())), SystemClock(), answer_s=5, relay_policy=PATIENCE
        )
        async with (
            open_client(SecretKey.generate(), [on.relay_url]) as me,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(wallet.run)
            await wallet.wait_ready()

            async def call(method, **params):
                """As a client does: again, when nobody answered."""
                with trio.fail_after(90):
                    while True:
                        try:
                            with trio.move_on_after(8):
                                return await me.call(on.instance, method, **params)
                        except (NoAnswer, CallRefused) as error:
                            if "unavailable" not in str(error) and isinstance(error, CallRefused):
                                raise
                        await trio.sleep(0.3)

            async def kill_after(seconds):
                await trio.sleep(seconds)
                await kill()

            async def pay(invoice):
                """The payer's wallet hears nothing while the relay is down: its own book tells."""
                with trio.fail_after(90):
                    while True:
                        paid = await wallet.pay(invoice["invoice"], 0, None)
                        if paid.status is PayStatus.SETTLED:
                            return
                        found = await wallet.look_up_payment(invoice["payment_hash"], None, 0)
                        if found.status is PayStatus.SETTLED:
                            return
                        await trio.sleep(0.3)

            pubkeys = []
            for delay in (0.02, 0.1, 0.3):
                nursery.start_soon(kill_after, delay)
                result = await call("deploy", docker=image, units=1, amount_sat=60)
                pubkeys.append(result["pubkey"])
                nursery.start_soon(kill_after, delay)
                await pay(result["invoice"])
                await trio.sleep(delay)
                await kill()
            for pubkey in pubkeys:
                with trio.fail_after(90):
                    while (await call("info", pubkey=pubkey))["detail"] != "deployed":
                        await trio.sleep(0.5)
            for pubkey in pubkeys:
                await call("stop", pubkey=pubkey, force=True)
                left = (await call("balance", pubkey=pubkey))["withdrawable_sat"]
                rest = InvoiceWanted("", MAIN_WALLET, left * 1_000, "rest", None, INVOICE_LIVES_S)
                while not isinstance(invoice := await wallet.make_invoice(rest), Minted):
                    await trio.sleep(0.3)
                nursery.start_soon(kill_after, 0.02)
                # Asked again after a crash, it is refused: the first try is on its way, or done.
                with suppress(CallRefused):
                    await call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)
            # A request that died with the relay is unknown until its invoice has expired, and a margin.
            with trio.fail_after(INVOICE_LIVES_S + 60 + 60):
                while unsettled(folder):
                    await trio.sleep(0.5)
            # The last kill fell right after the last stop: the next server removes what it finds.
            with trio.fail_after(60):
                while running_containers(on.ground.place.socket):
                    await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        compare_books(folder)
    assert kills >= 10
    record_property("figure", f"kill -9 of the running server: {kills} times")


def _server_pids(folder):
    pattern = f"bot run --config {folder}/enclaved.toml"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def running_containers(socket):
    listed = subprocess.run(
        ["docker", "-H", f"unix://{socket}", "ps", "-q"], capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    return listed.stdout.split()


def unsettled(folder):
    db = sqlite3.connect(folder / "state/enclaved.sqlite")
    count = db.execute("SELECT count(*) FROM outgoing WHERE state = 'unknown'").fetchone()[0]
    db.close()
    return count


def compare_books(folder):
    """Our ledger against the Lightning wallet's own, account by account."""
    ours, theirs = (
        sqlite3.connect(folder / "state/enclaved.sqlite"),
        sqlite3.connect(folder / "wallet/wallet.sqlite"),
    )

    audit_books(ours)
    mirror = dict(
        ours.execute(
            "SELECT name, -balance_msat FROM account WHERE name LIKE 'wallet:%'"
        ).fetchall()
    )
    held = dict(theirs.execute("SELECT pubkey, balance_msat FROM account").fetchall())
    for name, balance in mirror.items():
        container = name.removeprefix("wallet:")
        if container != "main":
            assert balance == held.get(container, 0), name
    containers = [
        row[0]
        for row in ours.execute("SELECT pubkey FROM container UNION SELECT pubkey FROM archive")
    ]
    credited = ours.execute("SELECT count(*) FROM entry WHERE key LIKE 'payment:%'").fetchone()[0]
    paid = theirs.execute(
        f"SELECT count(*) FROM invoice WHERE settled_at IS NOT NULL AND payee IN ({','.join('?' * len(containers))})",
        containers,
    ).fetchone()[0]
    assert credited == paid
    ours.close()
    theirs.close()
