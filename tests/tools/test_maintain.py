"""Maintainers: sign with a key, publish, check."""

import json
from dataclasses import replace

import pytest

from bot.tools.maintain import CannotRelease, Maintenance, read_measurements, sign_measurements
from bot.tools.signer import KeySigner
from handlers.domain.image import parse_image_ref
from nips.keys import SecretKey
from nips.tee.image_release import verify_image_release, verify_image_signature
from nips.tee.nec05 import verify_release_signature
from tests.evidence import NOW, measured
from tests.fakes import IMAGE_ID, FakeEvents, FakeRegistry

REPO, RELAY = "https://example.com/app", "wss://signers.example.com"


REF = parse_image_ref("example.com/app:1")


def desk(signers, **labels):
    named = ",".join(key.pubkey for key in signers)
    given = {"signers": named, "repo": REPO, "version": "1.0.0", "signer_relays": RELAY} | labels
    return Maintenance(FakeRegistry(labels=given), FakeEvents({RELAY: []}))


async def test_sign_then_publish_then_check():
    signers = [SecretKey.generate() for _ in range(2)]
    at = desk(signers)
    for key in signers:
        with pytest.raises(CannotRelease, match="not signed by"):
            await at.announce_image(REF, KeySigner(signers[0]), is_prod=True, now=NOW)
        event, relays = await at.sign_image(REF, KeySigner(key), is_prod=True, now=NOW)
        assert ((RELAY,), IMAGE_ID) == (relays, verify_image_signature(event).image.image_id)
        at.relays.relays[RELAY].append(event)
    announced, _ = await at.announce_image(REF, KeySigner(signers[0]), is_prod=True, now=NOW)
    assert {key.pubkey for key in signers} == {
        s.signer for s in verify_image_release(announced).signatures
    }
    assert (await at.check(REF)).verdict.is_signed_by_all
    with pytest.raises(CannotRelease, match="not signed by"):
        await at.announce_image(REF, KeySigner(signers[0]), is_prod=False, now=NOW)


async def test_a_relay_that_is_not_heard_is_not_a_missing_signature():
    """A check over a relay that was down said "not signed", as for an image that nobody vouches for."""
    key = SecretKey.generate()
    at = replace(desk([key]), relay_urls=("wss://down",))
    silent = "wss://down could not be reached, or did not answer in time"
    with pytest.raises(CannotRelease, match=f"unknown: {silent}"):
        await at.check(REF)
    with pytest.raises(CannotRelease, match=f"not signed by {key.pubkey}; {silent}"):
        await at.announce_image(REF, KeySigner(key), is_prod=True, now=NOW)
    event, _ = await at.sign_image(REF, KeySigner(key), is_prod=True, now=NOW)
    at.relays.relays[RELAY].append(event)
    assert (await at.check(REF)).verdict.is_signed_by_all, "who was heard is enough"
    assert not (await desk([key]).check(REF)).verdict.is_signed_by_all


async def test_what_cannot_be_signed():
    key = SecretKey.generate()
    cases = {
        "does not name you": desk([SecretKey.generate()]),
        "labels `repo` and `version`": desk([key], version=""),
    }
    for why, at in cases.items():
        with pytest.raises(CannotRelease, match=why):
            await at.sign_image(REF, KeySigner(key), is_prod=True, now=NOW)
    with pytest.raises(CannotRelease, match="names no signers"):
        await desk([]).announce_image(REF, KeySigner(key), is_prod=True, now=NOW)


async def test_measurements_are_signed_from_a_file(tmp_path):
    key = SecretKey.generate()
    measurements = {f"PCR{i}": measured(str(i)).hex() for i in range(3)}
    for value in (
        measurements,
        {"Measurements": {"HashAlgorithm": "Sha384 { ... }", **measurements}},
    ):
        (tmp_path / "pcrs.json").write_text(json.dumps(value))
        event = await sign_measurements(
            read_measurements(tmp_path / "pcrs.json"),
            KeySigner(key),
            repo=REPO,
            version="1.0.0",
            is_prod=True,
            now=NOW,
        )
        release = verify_release_signature(event, read_measurements(tmp_path / "pcrs.json"))
        assert (key.pubkey, REPO) == (release.maintainer, release.repo)
    release_pcrs = read_measurements(tmp_path / "pcrs.json")
    with pytest.raises(CannotRelease, match="--repo and --version"):
        await sign_measurements(
            release_pcrs, KeySigner(key), repo="", version="", is_prod=True, now=NOW
        )


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"PCR0": "00"}', '{"PCR0": 1}', json.dumps({f"PCR{i}": "00" * 48 for i in range(3)}),
     json.dumps({f"PCR{i}": "zz" * 48 for i in range(3)})],
)  # fmt: skip
def test_measurements_that_are_none(tmp_path, text):
    (tmp_path / "pcrs.json").write_text(text)
    with pytest.raises(CannotRelease, match=r"pcrs\.json"):
        read_measurements(tmp_path / "pcrs.json")
    with pytest.raises(CannotRelease, match="No such file"):
        read_measurements(tmp_path / "none")
