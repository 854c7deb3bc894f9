"""``enclaved payments``: the operator resolves what the wallet does not tell."""

import hashlib

import pytest

from bot.tools.cli import main
from handlers.domain.ledger import container_account
from handlers.ports import PayStatus
from handlers.records import OutgoingState

PREIMAGE = "11" * 32


@pytest.fixture
def config(world, tmp_path):
    path = tmp_path / "enclaved.toml"
    path.write_text(f'[server]\nstate_dir = "{world.path.parent}"\n')
    return path


async def unknown_payment(world):
    pubkey = await world.deployed(amount_sat=100)
    await world.call("stop", pubkey=pubkey, force=True)
    await world.turn()
    world.wallet.next_pay, world.wallet.shows = PayStatus.ABSENT, frozenset()
    invoice = world.wallet.mint("stranger", 50_000, None, 600)
    world.wallet.invoices.pop(invoice.payment_hash)
    await world.call("withdraw", pubkey=pubkey, invoice=invoice.bolt11)
    (outgoing,) = await world.store.read(lambda tx: tx.outgoing.list_unknown())
    return pubkey, outgoing


def run(monkeypatch, config, *arguments):
    import trio

    monkeypatch.setenv("ENCLAVED_WALLET_URI", WALLET_URI)
    return trio.to_thread.run_sync(main, ["payments", "--config", str(config), *arguments])


WALLET_URI = (
    "nostr+walletconnect://1b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f"
    "?relay=ws%3A%2F%2F127.0.0.1%3A1&secret=" + "01" * 32
)


async def test_failed_gives_the_money_back_once(world, config, monkeypatch, capsys):
    pubkey, outgoing = await unknown_payment(world)
    for code in (0, 0):
        assert code == await run(
            monkeypatch, config, "failed", outgoing.payment_id, "--because", "it never left"
        )

    assert 100_000 == await world.balance(container_account(pubkey))
    told = capsys.readouterr().out
    assert f"{outgoing.payment_id} is failed now\nnothing changes: it is failed\n" == told


async def test_settled_needs_the_preimage(world, config, monkeypatch, capsys):
    _, outgoing = await unknown_payment(world)
    wrong = await run(monkeypatch, config, "settled", outgoing.payment_id, "--preimage", PREIMAGE)

    assert 1 == wrong
    assert hashlib.sha256(bytes.fromhex(PREIMAGE)).hexdigest() != outgoing.payment_hash
    assert "its hash is another" in capsys.readouterr().err
    found = await world.store.read(lambda tx: tx.outgoing.find(outgoing.payment_id))
    assert OutgoingState.UNKNOWN is found.state


async def test_they_are_listed(world, config, monkeypatch, capsys):
    assert 0 == await run(monkeypatch, config, "list")
    _, outgoing = await unknown_payment(world)
    assert 0 == await run(monkeypatch, config, "list")

    first, second = capsys.readouterr().out.splitlines()
    assert "no payment is unknown" == first
    assert all(part in second for part in (outgoing.payment_id, "50 sat", outgoing.payment_hash))


async def test_one_that_does_not_exist_is_said(world, config, monkeypatch, capsys):
    await unknown_payment(world)
    assert 1 == await run(monkeypatch, config, "failed", "nonsense", "--because", "x")
    assert "there is no such payment" in capsys.readouterr().err
