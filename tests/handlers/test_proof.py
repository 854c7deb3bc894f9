"""What the instance shows for itself, and what it says of images: attest, announcements, releases."""

import httpcore
import orjson
import pytest

from bot.devstack.engine import free_port
from bot.server.http.server import serve
from handlers.commands.release import read_labels
from handlers.domain.release import (
    Claim,
    Signed,
    Version,
    is_newer,
    judge,
    newest_by_all,
    parse_version,
)
from handlers.duties.announce import announce_containers, instance_events
from handlers.errors import Code, Refusal
from handlers.proof import KEEP_S
from nips import kinds
from nips.event import parse_event_json_untrusted, parse_event_untrusted, sign_event
from nips.keys import SecretKey
from nips.tee.env import Env
from nips.tee.image_release import (
    ImageIdentity,
    release_announcement_tags,
    verify_image_release,
    verify_image_signature,
)
from nips.tee.nec01 import verify_root
from nips.tee.policies import DebugPolicy
from nips.tee.verification import verify_announcement, verify_container
from tests.evidence import HARDWARE, NOW, build_image_signature
from tests.fakes import IMAGE_ID, altered
from tests.tools.instance import HomeAttester, proved

NONCE = "ab" * 32
REPO, RELAY = "https://example.com/app", "wss://signers.example.com"


# -- attest --------------------------------------------------------------------------------------------


async def test_attest_answers_the_nonce_with_a_fresh_document(world):
    proved(world)
    result = await world.call("attest", nonce=NONCE)
    event = parse_event_untrusted(orjson.loads(orjson.dumps(result["tee_root"])))
    root = verify_root(event.json.decode(), HARDWARE.verifier, NOW, nonce=bytes.fromhex(NONCE))
    assert (world.ctx.key.pubkey, root.attested.not_after) == (root.pubkey, result["not_after"])


@pytest.mark.parametrize("nonce", ["", "ab", "zz" * 32, "AB" * 32, "ab" * 65, 7, None, "abc" * 11])
async def test_a_nonce_that_is_none(world, nonce):
    proved(world)
    refusal = await world.call("attest", nonce=nonce)
    assert isinstance(refusal, Refusal)
    assert Code.INVALID is refusal.code


async def test_outside_of_an_enclave_there_is_nothing_to_show(world):
    refusal = await world.call("attest", nonce=NONCE)
    assert Code.UNAVAILABLE is refusal.code
    assert Env.DEBUG is world.ctx.env


async def test_attest_over_http(world, nursery):
    proved(world)
    port = free_port()
    await nursery.start(serve, world.ctx, "127.0.0.1", port)

    async def get(query):
        async with httpcore.AsyncConnectionPool() as pool:
            response = await pool.request("GET", f"http://127.0.0.1:{port}/attest{query}")
            return response.status, orjson.loads(response.content)

    status, body = await get(f"?nonce={NONCE}")
    event = parse_event_untrusted(body["tee_root"])
    assert verify_root(event.json.decode(), HARDWARE.verifier, NOW, nonce=bytes.fromhex(NONCE))
    assert 200 == status
    for query in ("", "?nonce=x", f"?nonce={NONCE}{NONCE}{NONCE}"):
        status, body = await get(query)
        assert (400, True) == (status, body["error"].startswith("invalid:"))

    async def broken(**_):
        raise RuntimeError("no module")

    world.ctx.proof._attester.document = broken
    status, body = await get(f"?nonce={NONCE}")
    assert (500, "internal: that failed here; it is logged") == (status, body["error"])


# -- announcements ---------------------------------------------------------------------------------------


async def test_what_we_announce_is_what_strangers_can_verify(world):
    proved(world)
    announcement = (await instance_events(world.ctx))[0][0]
    verdict, evidence = verify_announcement(announcement, HARDWARE.verifier, NOW, [DebugPolicy()])
    assert verdict.is_valid, verdict.reason
    assert Env.PROD is evidence.env
    assert str(evidence.not_after) == announcement.tag("expiration")


async def test_what_we_say_of_containers_is_what_strangers_can_verify(world):
    proved(world)
    pubkey = await world.deployed()
    await announce_containers(world.ctx)
    items = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now(), 100))
    events = [parse_event_json_untrusted(item.body) for item in items]
    (event,) = [e for e in events if e.kind == kinds.CONTAINER]
    verdict, certified = verify_container(event, HARDWARE.verifier, NOW)
    assert verdict.is_valid, verdict.reason
    row = await world.row(pubkey)
    assert (f"docker://{row.image}", world.ctx.key.pubkey) == (
        certified.image,
        certified.root.pubkey,
    )
    assert "prod" == world.engine.containers[pubkey]["spec"].env["ENCLAVED"]


async def test_an_attestation_is_refreshed_before_it_ends(world):
    proved(world)
    first = await world.ctx.proof.current(NOW)
    assert first is await world.ctx.proof.current(NOW + KEEP_S - 1)
    assert first is not await world.ctx.proof.current(NOW + KEEP_S)
    assert 3_600 == (await instance_events(world.ctx))[1]
    world.clock.unix = NOW + 3 * 3600 - 1_800
    _, again = await instance_events(world.ctx)
    assert 900 == again, "before what was announced ends"
    world.clock.unix = NOW + 3 * 3600 - 30
    assert 60 == (await instance_events(world.ctx))[1]


async def test_a_document_of_ours_that_does_not_verify_is_shown_to_nobody(world):
    enclave = proved(world)

    class Other(HomeAttester):
        async def document(self, *, public_key, nonce=None, user_data=None):
            return HARDWARE.document(b"x" * 32, enclave.pcrs, nonce=nonce)

    world.ctx.proof._attester = Other(enclave)
    with pytest.raises(ValueError, match="another public key"):
        await instance_events(world.ctx)


# -- releases of images ------------------------------------------------------------------------------------


def identity(version="1.0.0", image_id=IMAGE_ID, repo=REPO):
    return ImageIdentity(
        repo, image_id, version, "example.com/app@sha256:" + "ab" * 32, is_prod=True
    )


def released(world, signers, version="1.0.0"):
    world.registry.labels = {
        "signers": ",".join(key.pubkey for key in signers), "repo": REPO, "version": version, "signer_relays": RELAY,
    }  # fmt: skip


async def says(world, docker="example.com/app:1"):
    result = await world.call("release", docker=docker)
    return result, [signer["says"] for signer in result["signers"]]


async def test_who_signed_an_image(world):
    signers = [SecretKey.generate() for _ in range(2)]
    released(world, signers)
    held = world.ctx.events.relays[RELAY] = []
    assert ["no signature found"] * 2 == (await says(world))[1]
    held.append(build_image_signature(signers[0], identity(), NOW))
    result, said = await says(world)
    assert (["signed", "no signature found"], False) == (said, result["signed_by_all"])
    held.append(build_image_signature(signers[1], identity(), NOW))
    result, said = await says(world)
    assert (["signed"] * 2, True, IMAGE_ID) == (said, result["signed_by_all"], result["image_id"])
    quoted = await world.call("quote", docker="example.com/app:1")
    assert quoted["release"]["signed_by_all"]
    held.append(build_image_signature(signers[1], identity(image_id="ef" * 32), NOW))
    result, said = await says(world)
    assert (["signed", "signed another image as this version"], False) == (
        said,
        result["signed_by_all"],
    )


async def test_signatures_that_count_for_nothing(world):
    signer, stranger = SecretKey.generate(), SecretKey.generate()
    released(world, [signer])
    forged = altered(build_image_signature(stranger, identity(), NOW), pubkey=signer.pubkey)
    builder_like = sign_event(
        signer, kinds.IMAGE_SIGNATURE, "", [("cert", "x"), ("PCR8", "x"), ("r", REPO)], NOW
    )
    world.ctx.events.relays[RELAY] = [
        build_image_signature(stranger, identity(), NOW),
        build_image_signature(signer, identity(repo="https://example.com/fork"), NOW),
        build_image_signature(signer, identity(version="0.9.0"), NOW),
        forged,
        builder_like,
    ]
    assert ["no signature found"] == (await says(world))[1]


async def test_a_release_announcement_carries_signatures(world):
    signers = [SecretKey.generate() for _ in range(2)]
    released(world, signers)
    signatures = [build_image_signature(key, identity(), NOW) for key in signers]
    other = build_image_signature(signers[1], identity(image_id="ef" * 32), NOW)
    tags = release_announcement_tags(identity(), [*signatures, other])
    event = sign_event(signers[0], kinds.IMAGE_RELEASE, "", tags, NOW)
    world.ctx.events.relays[RELAY] = [event]
    assert (await says(world))[0]["signed_by_all"]
    assert 2 == len(verify_image_release(event).signatures)
    with pytest.raises(ValueError, match="no signature over an image"):
        verify_image_signature(event)
    with pytest.raises(ValueError, match="no release of an image"):
        verify_image_release(signatures[0])


async def test_a_newer_release_by_all_signers_is_told(world):
    signers = [SecretKey.generate() for _ in range(2)]
    released(world, signers)
    held = world.ctx.events.relays[RELAY] = [
        build_image_signature(k, identity(), NOW) for k in signers
    ]
    held += [build_image_signature(k, identity("1.10.0", "11" * 32), NOW) for k in signers]
    held += [build_image_signature(signers[0], identity("2.0.0", "22" * 32), NOW)]
    assert "1.10.0" == (await says(world))[0]["newer"]


async def test_an_image_that_names_nobody_asks_nobody(world):
    result, said = await says(world)
    assert ([], False, None) == (said, result["signed_by_all"], result["newer"])
    assert [] == world.ctx.events.asked
    quoted = await world.call("quote", docker="example.com/app:1")
    assert [] == quoted["release"]["signers"]


def test_labels_of_strangers():
    key = SecretKey.generate().pubkey
    labels = read_labels({
        "signers": f"{key}, {key},zz,{'f' * 64}," + ",".join(["x"] * 100), "repo": "r" * 999, "version": "v" * 99,
        "signer_relays": "wss://a,http://b,,ws://c d," + ",".join(f"wss://r{n}" for n in range(50)),
    })  # fmt: skip
    assert ((key,), 256, 64, ("wss://a", "wss://r0")) == (
        labels.signers, len(labels.repo), len(labels.version), labels.relay_urls,
    )  # fmt: skip


# -- the rules -----------------------------------------------------------------------------------------------

ORDER = ["0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
         "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0"]  # fmt: skip


def test_semantic_versions_in_their_order():
    parsed = [parse_version(text) for text in ORDER]
    assert sorted(parsed) == parsed
    for index, version in enumerate(ORDER):
        for other in ORDER[index + 1 :]:
            assert is_newer(other, version)
            assert not is_newer(version, other)
    assert Version((1, 0, 0)) == parse_version("v1.0.0+build.5")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "01.0.0",
        "1.0.0-",
        "latest",
        "1.0.0 ",
        "9" * 80,
        "1.0.-1",
        "١.0.0",
    ],
)
def test_what_is_no_version_is_never_newer(text):
    assert parse_version(text) is None
    assert not is_newer(text, "0.0.1")
    assert not is_newer("1.0.0", text)


def test_the_newest_needs_one_image_signed_by_all():
    claims = [Claim("a", "r", "x", "1.0.0"), Claim("b", "r", "x", "1.0.0"), Claim("a", "r", "y", "1.1.0"),
              Claim("b", "r", "z", "1.1.0"), Claim("a", "other", "q", "3.0.0"), Claim("b", "other", "q", "3.0.0")]  # fmt: skip
    assert "1.0.0" == newest_by_all("r", ["a", "b"], claims)
    assert newest_by_all("r", [], claims) is None
    assert newest_by_all("r", ["c"], claims) is None
    verdict = judge(Claim("", "r", "y", "1.1.0"), ["a", "b"], claims)
    assert [Signed.SIGNED, Signed.CONTRADICTS] == [s.signed for s in verdict.signers]
    assert not judge(Claim("", "r", "y", "1.1.0"), [], claims).is_signed_by_all


def test_many_claims_cost_little():
    """A signer may publish without end: the work grows with their number, not with its square."""
    signers = [f"{n:064x}" for n in range(16)]
    claims = [Claim(signers[0], "r", f"{n:064x}", f"1.0.{n % 50}") for n in range(20_000)]
    assert newest_by_all("r", signers, claims) is None
    assert (
        Signed.CONTRADICTS
        is judge(Claim("", "r", "x", "1.0.1"), signers, claims).signers[0].signed
    )


async def test_a_release_stuffed_with_signatures_is_refused(world):
    signer = SecretKey.generate()
    signatures = [build_image_signature(signer, identity(), NOW)] * 17
    event = sign_event(
        signer, kinds.IMAGE_RELEASE, "", release_announcement_tags(identity(), signatures), NOW
    )
    with pytest.raises(ValueError, match="more than 16"):
        verify_image_release(event)
