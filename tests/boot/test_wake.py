"""The first minute, with a module on a real socket: who we are comes from escrow, or is new; never from the parent."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from trio.testing import wait_all_tasks_blocked

import bot.boot.wake
from bot.adapters.nsm import NsmUnusable
from bot.adapters.relay_events import Searched
from bot.boot.standing import EscrowTrust, ReleasePolicy
from bot.boot.steps import Steps
from bot.boot.unlock import Halted
from bot.boot.wake import wake
from bot.config import ConfigError, load
from bot.devstack.nsm import DevNsm, serve
from bot.server.loops import run_escrow
from handlers.duties.announce import instance_events
from handlers.errors import Refusal
from keycrux_client.refresh import Refreshed
from nips.keys import SecretKey
from nips.nip47 import format_uri
from nips.tee.env import Env
from tests.evidence import HARDWARE, NOW, REPO, Enclave, Hardware, measured
from tests.fakes import FakeClock

PCRS = {0: measured("0"), 1: measured("1"), 2: measured("2"), 4: measured("i-1")}


@dataclass
class Nowhere:
    """Relays that know nothing, and say so."""

    async def search(self, filters, relay_urls):
        return Searched((), ())

    async def believe(self, services):
        pass


async def answers(socket):
    try:
        await (await trio.open_unix_socket(socket)).aclose()
    except OSError:
        return False
    return True


@pytest.fixture
async def place(tmp_path, nursery):
    """A configuration with a development module, served on its socket."""
    state = tmp_path / "state"
    state.mkdir()
    socket, root = tmp_path / "nsm.sock", tmp_path / "root.pem"
    root.write_bytes(HARDWARE.authority.root.certificate.public_bytes(Encoding.PEM))
    nursery.start_soon(serve, DevNsm(HARDWARE.authority, PCRS, lambda: NOW), socket)
    with trio.fail_after(5):
        # It is there before it listens.
        while not await answers(socket):
            await trio.sleep(0.01)
    told = {
        "server": {"state_dir": str(state)},
        "attestation": {"nsm": str(socket), "development_root": str(root), "meta_file": str(tmp_path / "meta.json")},
        "escrow": {"halt_after_s": 1},
    }  # fmt: skip
    lines = [
        f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in t.items())
        for name, t in told.items()
    ]
    (tmp_path / "enclaved.toml").write_text("\n".join(lines))
    uri = format_uri(SecretKey.generate().pubkey, "ws://127.0.0.1:1", SecretKey.generate())
    return load(tmp_path / "enclaved.toml", {"ENCLAVED_WALLET_URI": uri})


async def woken(config, **options):
    return await wake(
        config,
        Nowhere(),
        ("ws://127.0.0.1:1",),
        FakeClock(NOW),
        Steps(lambda: 0.0),
        **options,
    )


async def test_outside_of_an_enclave_the_key_is_in_a_file(place):
    bare = replace(place, attestation=replace(place.attestation, nsm=None))
    first, second = await woken(bare), await woken(bare)
    assert first.key == second.key
    assert first.proof is None


async def test_an_identity_in_an_enclave_is_never_what_the_parent_wrote(place):
    state = place.server.state_dir
    theirs = SecretKey.generate()
    (state / "instance.key").write_text(theirs.reveal_secret().hex())
    first, second = await woken(place), await woken(place)
    assert 3 == len({theirs.pubkey, first.key.pubkey, second.key.pubkey})
    assert (Env.DEBUG, None) == (first.proof.env, first.keeper)
    assert ["instance.key"] == [path.name for path in state.iterdir()]


@pytest.mark.parametrize("meta", ["", "garbage", "[]", '{"releases": 7}', '{"build": {}}'])
async def test_what_the_parent_hands_over_may_be_worth_nothing(place, meta):
    place.attestation.meta_file.write_text(meta)
    assert (await woken(place)).proof.signatures.builder is None


async def test_prod_claimed_by_the_parent_halts_it(place):
    place.attestation.meta_file.write_text('{"prod": true}')
    with pytest.raises(Halted, match="claims prod"):
        await woken(place)


async def test_only_what_holds_is_shown(place):
    enclave = Enclave(hardware=Hardware(HARDWARE.authority, is_development=True), env=Env.DEBUG)
    signed = enclave.signatures()
    place.attestation.meta_file.write_text(
        json.dumps(
            {"build": signed.builder.as_dict(), "releases": [e.as_dict() for e in signed.releases]}
        )
    )
    shown = (await woken(place)).proof.signatures
    assert (None, ()) == (shown.builder, shown.releases)


async def test_escrow_that_is_measured_but_not_there_halts_it(place, monkeypatch):
    policy = ReleasePolicy(
        REPO, (SecretKey.generate().pubkey,), EscrowTrust("e", (SecretKey.generate().pubkey,), 1)
    )
    monkeypatch.setattr(bot.boot.wake, "load_release_policy", lambda: policy)
    with pytest.raises(Halted, match="no escrow service"):
        await woken(place)
    assert [] == [p for p in place.server.state_dir.rglob("*") if p.is_file()]
    with pytest.raises(Halted, match="no escrow service"):
        await woken(place, forget_state=True)


@pytest.mark.parametrize(("repo", "maintainers"), [("", ("11" * 32,)), (REPO, ())])
async def test_escrow_without_anybody_who_could_sign_the_next_version(
    place, monkeypatch, repo, maintainers
):
    policy = ReleasePolicy(repo, maintainers, EscrowTrust("e", ("22" * 32,), 1))
    monkeypatch.setattr(bot.boot.wake, "load_release_policy", lambda: policy)
    with pytest.raises(ConfigError, match="nobody could get the key back"):
        await woken(place)


async def test_without_the_named_root_nothing_is_believed(place):
    by_aws = replace(place, attestation=replace(place.attestation, development_root=None))
    with pytest.raises(Halted, match="module_id"):
        await woken(by_aws)
    place.attestation.nsm.chmod(0o666)
    with pytest.raises(NsmUnusable, match="other users"):
        await woken(place)


async def test_no_new_containers_while_our_key_is_not_safe_in_escrow(world, mock_clock, nursery):
    """An hour without escrow closes the door; the first refresh that succeeds opens it again."""
    outcomes = []

    class Keeper:
        async def refresh(self):
            if outcomes[0] is None:
                raise RuntimeError("the module is gone")
            return Refreshed((), (), (), (), members=outcomes[0], needed=2, is_outdated=False)

    outcomes.append(3)
    nursery.start_soon(run_escrow, SimpleNamespace(keeper=Keeper(), ctx=world.ctx))
    await wait_all_tasks_blocked()

    async def deploy():
        return await world.call("deploy", docker="example.com/app:1", units=1)

    for outcome, seconds, closed in (
        (3, 60, False),
        (1, 3_000, False),
        (1, 1_200, True),
        (3, 120, False),
        (None, 4_300, True),
    ):
        outcomes[:] = [outcome]
        for _ in range(seconds // 60):
            mock_clock.jump(60)
            await wait_all_tasks_blocked()
        result = await deploy()
        assert closed is isinstance(result, Refusal), (outcome, seconds)
        assert closed is (world.ctx.alarms.no_containers_because is not None)
        (announcement, *_), _ = await instance_events(world.ctx)
        assert ("false" if closed else "true") == announcement.tag("o")
    assert "our key is not safe in escrow" in str(result)
