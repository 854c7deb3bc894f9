"""The dispatcher: one line per request."""

import structlog


async def test_one_line_per_request(world):
    from bot.server.dispatch import Request, dispatch
    from handlers.context import Caller

    with structlog.testing.capture_logs() as lines:
        await dispatch(
            world.ctx, Request(Caller("c" * 64, False), "quote", {"docker": "x y"}, "rpc")
        )

    assert 1 == len(lines)
    assert {"request_id", "caller", "method", "outcome", "ms", "door"} <= lines[0].keys()
