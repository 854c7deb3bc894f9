"""The channel for containers: only the container itself is heard, and only proven keys are vouched for."""

import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import orjson
import pytest
import trio
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from bot.server.doors.container import ContainerDoor
from handlers.certify import CHALLENGE_S, container_token
from handlers.duties.announce import announce_containers
from nips import kinds
from nips.event import parse_event_json_untrusted, parse_event_untrusted, sign_event
from nips.keys import SecretKey
from nips.tee.certificates import Role, verify_certified
from tests.evidence import HARDWARE, NOW
from tests.tools.instance import proved

ENDPOINT = "ws://enclaved:7070"


@pytest.fixture
async def inside(world):
    """A server in an enclave, a container that runs, and the door."""
    proved(world)
    world.ctx = replace(
        world.ctx, presence=replace(world.ctx.presence, container_endpoint=ENDPOINT)
    )
    pubkey = await world.deployed()
    world.engine.at = {"127.0.0.1": pubkey}
    return ContainerDoor(world.ctx), pubkey


async def call(door, container, method, **params):
    frame = orjson.dumps({"id": "1", "method": method, "params": params})
    answer = orjson.loads(await door.answer(container, frame))
    assert "1" == answer["id"]
    return answer.get("error") or answer["result"]


async def proof_of(door, container, app, *, at=NOW, **changes):
    asked = await call(door, container, "get_challenge", pubkey=app.pubkey)
    tags = {tag[0]: tag[1] for tag in asked["tags"]} | changes
    return sign_event(app, kinds.CLIENT_AUTH, "", list(tags.items()), at).as_dict()


async def test_an_app_that_proves_its_key_gets_certificates_that_verify(world, inside):
    door, container = inside
    app = SecretKey.generate()
    proof = await proof_of(door, container, app)
    result = await call(door, container, "create_certificate", pubkey=app.pubkey, proof=proof)
    events = [parse_event_untrusted(e) for e in (result["root"], *result["certs"])]
    tags = [
        ("tee_root", events[0].json.decode()),
        *(("tee_cert", e.json.decode()) for e in events[1:]),
    ]
    note = sign_event(app, kinds.NOTE, "from inside", tags, NOW)
    certified = verify_certified(note, HARDWARE.verifier, NOW)
    row = await world.row(container)
    assert ([Role.CONTAINER, Role.APP], f"docker://{row.image}", app.pubkey) == (
        [c.role for c in certified.certificates], certified.image, row.app,
    )  # fmt: skip
    await announce_containers(world.ctx)
    items = await world.store.read(lambda tx: tx.outbox.list_due(world.clock.now(), 100))
    told = [
        e for e in (parse_event_json_untrusted(i.body) for i in items) if e.kind == kinds.CONTAINER
    ]
    assert ("p", app.pubkey, "app") in told[-1].tags


async def test_without_a_proof_nothing_is_signed(world, inside):
    door, container = inside
    app = SecretKey.generate()
    assert "restricted: prove the key" in await call(
        door, container, "create_certificate", pubkey=app.pubkey
    )
    proof = await proof_of(door, container, app)
    good = await call(door, container, "create_certificate", pubkey=app.pubkey, proof=proof)
    assert "certs" in good
    assert "no open challenge" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=proof
    )


@pytest.mark.parametrize(
    "change", [{"challenge": "00" * 32}, {"relay": "ws://elsewhere:1"}, {"p": "00" * 32}]
)
async def test_a_proof_for_something_else(world, inside, change):
    door, container = inside
    app = SecretKey.generate()
    proof = await proof_of(door, container, app, **change)
    error = await call(door, container, "create_certificate", pubkey=app.pubkey, proof=proof)
    assert error.startswith("invalid: the proof")
    assert (await world.row(container)).app is None


async def test_proofs_that_prove_nothing(world, inside):
    door, container = inside
    app, thief = SecretKey.generate(), SecretKey.generate()
    by_thief = await proof_of(door, container, app)
    forged = sign_event(
        thief, kinds.CLIENT_AUTH, "", [tuple(t) for t in by_thief["tags"]], NOW
    ).as_dict()
    assert "another key" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=forged
    )
    changed = (await proof_of(door, container, app)) | {"content": "changed"}
    assert "does not hold" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=changed
    )
    old = await proof_of(door, container, app, at=NOW - 700)
    assert "does not hold" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=old
    )
    note = await proof_of(door, container, app)
    note = sign_event(app, kinds.NOTE, "", [tuple(t) for t in note["tags"]], NOW).as_dict()
    assert "does not hold" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=note
    )
    late = await proof_of(door, container, app)
    world.clock.advance(CHALLENGE_S + 1)
    assert "no open challenge" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=late
    )
    other = await world.deployed(name="other")
    for_other = await proof_of(door, other, app)
    assert "no open challenge" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=for_other
    )


async def test_one_tenants_challenges_crowd_out_nobody_elses(world, inside):
    door, container = inside
    other, app = await world.deployed(name="other"), SecretKey.generate()
    proof = await proof_of(door, other, app)
    keys = [SecretKey.generate().pubkey for _ in range(40)]
    for key in keys:
        assert "tags" in await call(door, container, "get_challenge", pubkey=key)
    assert "certs" in await call(door, other, "create_certificate", pubkey=app.pubkey, proof=proof)
    late = await call(door, container, "create_certificate", pubkey=keys[0], proof=proof)
    assert "no open challenge" in late, "its own oldest is forgotten"


async def test_a_containers_own_key_is_no_apps(world, inside):
    door, container = inside
    row = await world.row(container)
    proof = await proof_of(door, container, row.key)
    assert "not-found" in await call(
        door, container, "create_certificate", pubkey=container, proof=proof
    )


async def test_outside_of_an_enclave_or_stopped_nothing_is_signed(world, inside):
    door, container = inside
    app = SecretKey.generate()
    await world.call("stop", pubkey=container, force=True)
    proof = await proof_of(door, container, app)
    assert "does not run" in await call(
        door, container, "create_certificate", pubkey=app.pubkey, proof=proof
    )
    bare = ContainerDoor(replace(world.ctx, proof=None))
    assert "unavailable" in await call(bare, container, "create_certificate", pubkey=app.pubkey)
    closed = ContainerDoor(
        replace(world.ctx, presence=replace(world.ctx.presence, container_endpoint=None))
    )
    assert "unavailable" in await call(closed, container, "get_challenge", pubkey=app.pubkey)


@pytest.mark.parametrize(
    ("frame", "error"),
    [(b"", "is JSON"), (b"[]", "a request is"), (b'{"id":1}', "a request is"), (b'{"id":1,"method":"x","params":{}}', "no such method"),
     (b'{"id":1,"method":"get_challenge","params":{}}', "pubkey is missing"), (b'{"id":1,"method":"get_challenge","params":{"pubkey":"zz"}}', "pubkey must be"),
     (b'{"id":1,"method":"get_challenge","params":{"pubkey":"x","y":1}}', "unknown parameter"),
     (b'{"id":1,"method":"create_certificate","params":{"pubkey":"' + b"11" * 32 + b'","proof":"x"}}', "must be"),
     (b'{"id":{},"method":"x","params":{}}', "a request is"), (b"\xff", "is JSON"), (b"[" * 5_000, "is JSON")],
)  # fmt: skip
async def test_requests_that_are_none(inside, frame, error):
    door, container = inside
    assert error in orjson.loads(await door.answer(container, frame))["error"]


# -- over a real socket ------------------------------------------------------------------------------------


@asynccontextmanager
async def served(door):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(door.serve, "127.0.0.1", 0)
        yield port
        nursery.cancel_scope.cancel()


async def knock(port, token):
    """The status of the handshake, and the stream and protocol to go on with."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    protocol = ClientProtocol(parse_uri(f"ws://enclaved:{port}"))
    request = protocol.connect()
    if token is not None:
        request.headers["token"] = token
    protocol.send_request(request)
    try:
        await stream.send_all(b"".join(protocol.data_to_send()))
        data = await stream.receive_some(65_536)
        if not data:
            raise ValueError("hung up")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    protocol.receive_data(data)
    (response,) = protocol.events_received()
    return response.status_code, stream, protocol


async def status(port, token):
    code, stream, _ = await knock(port, token)
    await stream.aclose()
    return code


async def test_only_the_container_itself_is_let_in(world, inside):
    door, container = inside
    row = await world.row(container)
    token = container_token(world.ctx, container, row.generation)
    other = await world.deployed(name="other")
    async with served(door) as port:
        code, stream, protocol = await knock(port, token)
        assert 101 == code
        protocol.send_text(
            b'{"id":"a","method":"get_challenge","params":{"pubkey":"'
            + container.encode()
            + b'"}}'
        )
        await stream.send_all(b"".join(protocol.data_to_send()))
        protocol.receive_data(await stream.receive_some(65_536))
        (frame,) = protocol.events_received()
        assert "challenge" in frame.data.decode()
        await stream.aclose()
        assert 403 == await status(port, None)
        assert 403 == await status(port, "")
        assert 403 == await status(port, token[:-1])
        assert 403 == await status(port, container_token(world.ctx, other, 1)), (
            "a neighbour's token"
        )
        assert 403 == await status(port, container_token(world.ctx, container, row.generation + 1))
        world.engine.at = {"127.0.0.2": container}
        assert 403 == await status(port, token), "its token, from elsewhere"
        world.engine.at = {"127.0.0.1": container}
        assert 101 == await status(port, token)


async def test_a_container_cannot_take_all_the_places(world, inside):
    door, container = inside
    token = container_token(world.ctx, container, 1)
    async with served(door) as port:
        # Two that say nothing, and a crowd that comes at once: four places in all.
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        await trio.sleep(0.05)
        opened, refused = [], []

        async def come():
            try:
                opened.append(await knock(port, token))
            except (trio.BrokenResourceError, ValueError):
                refused.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(come)
        assert (2, 18) == (len(opened), len(refused))
        for stream in [*silent, *(stream for _, stream, _ in opened)]:
            await stream.aclose()
        with trio.fail_after(5):
            while True:
                with suppress(ValueError, trio.BrokenResourceError):
                    if 101 == await status(port, token):
                        break
                await trio.sleep(0.05)


async def test_garbage_ends_one_connection_and_no_other(world, inside):
    door, container = inside
    token = container_token(world.ctx, container, 1)
    async with served(door) as port:
        for garbage in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"x" * 100_000):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                try:
                    await stream.send_all(garbage)
                    await stream.receive_some(100)
                except trio.BrokenResourceError:
                    pass
        assert 101 == await status(port, token)


async def test_a_connection_that_is_reset_at_once_ends_nothing_else(world, inside):
    door, container = inside
    token = container_token(world.ctx, container, 1)
    async with served(door) as port:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port)) as hasty:
                # Close without goodbye: whoever accepts it finds no peer to name.
                hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert 101 == await status(port, token)


async def test_a_container_is_told_how_to_reach_us(world, inside):
    _, container = inside
    env = world.engine.containers[container]["spec"].env
    assert (ENDPOINT, "prod", container_token(world.ctx, container, 1)) == (
        env["ENCLAVED_ENDPOINT"], env["ENCLAVED"], env["ENCLAVED_TOKEN"],
    )  # fmt: skip
    assert container_token(world.ctx, container, 1) != container_token(world.ctx, container, 2)
