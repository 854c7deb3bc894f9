"""Whether a program that was started answers yet."""

from pathlib import Path

import trio


async def socket_answers(path: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(path)
    except OSError:
        return False
    await stream.aclose()
    return True


async def docker_answers(path: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(
                b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"
            )
            return b" 200 " in await stream.receive_some(1_024)
    except (OSError, trio.BrokenResourceError):
        return False


async def tcp_answers(host: str, port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError:
        return False
    await stream.aclose()
    return True
