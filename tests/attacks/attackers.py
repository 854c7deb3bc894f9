"""What attackers do, each in a process of its own: ``python -m tests.attacks.attackers NAME PORT SOURCE``."""

import sys

import trio

from tests.attacks.wire import PING, drain, frame, message, websocket

AUTHORS = [f"{n:064x}" for n in range(2, 620)]
# The dearest that can be asked: everybody's events are looked through for a tag that none has.
DEAR = {"authors": AUTHORS, "#x": ["none"]}


async def many_filters(port, source):
    """Three dear filters at a time through one connection, again and again: they stay below all bounds."""
    async with websocket(port, source) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(drain, stream)
        while True:
            await stream.send_all(
                message("REQ", "s", *[{"#x": [str(n)]} | DEAR for n in range(3)])
            )


async def too_many_values(port, source):
    """What is refused, but must be read first: frames of a quarter of a megabyte, through many connections."""
    refused = message("REQ", "s", *[{"#p": [f"{n:064x}" for n in range(900)]} for _ in range(4)])

    async def one():
        async with websocket(port, source) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await stream.send_all(refused)

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(one)


async def broad_queries(port, source):
    """Ten requests a second for the newest five hundred of everything, read to the end."""
    async with websocket(port, source) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(drain, stream)
        for number in range(10**9):
            await stream.send_all(message("REQ", f"s{number % 10}", {}, {"kinds": [1_000, 1_001]}))
            await trio.sleep(0.1)


async def crowd(port, source):
    """Every connection that one address is given, all asking what is dear."""
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(many_filters, port, source)


async def tiny_frames(port, source):
    """Nothing but frames that mean nothing, as fast as they go, through some connections."""

    async def one():
        async with websocket(port, source) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(drain, stream)
            while True:
                await stream.send_all(frame(b"[]") * 1_000)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)


async def pings(port, source):
    """Pings without end, no pong is read; and back again after being cut off."""
    while True:
        try:
            async with websocket(port, source) as stream:
                while True:
                    await stream.send_all(frame(bytes(125), PING) * 500)
        except trio.BrokenResourceError:
            await trio.sleep(0.01)


ALL = {
    work.__name__: work
    for work in (many_filters, too_many_values, broad_queries, crowd, tiny_frames, pings)
}


async def again(work, port, source):
    while True:
        try:
            await work(port, source)
        except* (trio.BrokenResourceError, OSError):
            await trio.sleep(0.05)


if __name__ == "__main__":
    trio.run(again, ALL[sys.argv[1]], int(sys.argv[2]), sys.argv[3])
