"""The enclave's end of the channel to its parent. What the parent says is a claim; each call has a connection of its own."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from bot.checkpoint.blobs import BlobsFailed
from bot.parent.conversation import Conversation, collected
from bot.parent.wire import (
    MAX_DELETED_NAMES,
    MAX_META_BYTES,
    BadMessage,
    Reply,
    Request,
    decode_event_untrusted,
    decode_reply_untrusted,
    encode_line,
    size_in,
)
from netstack import vsock

MOST_NAMES_BYTES = 16 << 20
MOST_LOG_CHARACTERS = 4_000
RETRY_S = 2.0


class ParentSilent(Exception):
    """The parent does not answer, or not as it should; the message says how."""


class ParentChannel:
    """Everything raises `ParentSilent`, but for what is said to raise nothing."""

    def __init__(self, address: vsock.Address) -> None:
        self._address = address

    async def ask(self, method: str, **params: object) -> object:
        """A question with a short answer."""
        async with self._conversation() as talk:
            return (await _asked(talk, method, params)).result

    async def ask_blob(self, method: str, most_bytes: int, **params: object) -> bytes | None:
        """A question that is answered by bytes, or by the word that there are none."""
        async with self._conversation() as talk:
            reply = await _asked(talk, method, params)
            if reply.result is None:
                return None
            if not isinstance(reply.result, dict):
                raise BadMessage("a blob is announced by its size")
            return await collected(talk.blob(size_in(reply.result, most_bytes)))

    async def put(self, name: str, parts: Sequence[bytes]) -> None:
        """Return when the parent says that all of it is on its disk."""
        async with self._conversation() as talk:
            params = {"name": name, "size": sum(map(len, parts))}
            await talk.send(encode_line(Request(1, "put", params)), *parts)
            reply = await _reply(talk)
            if reply.error is not None or reply.result != "ok":
                raise ParentSilent(f"the parent does not keep it: {reply.error or reply.result}")

    async def get_meta(self) -> bytes | None:
        """Signatures over this enclave, as JSON; to be believed only as far as they hold."""
        return await self.ask_blob("get_meta", MAX_META_BYTES)

    async def log(self, text: str) -> None:
        """A line for the operator. Raises nothing: nobody has to listen."""
        try:
            await self.ask("log", text=text[:MOST_LOG_CHARACTERS] or " ")
        except ParentSilent:
            pass

    async def run_events(self, take: Callable[[str], object]) -> None:
        """Tell what the parent says by itself, for ever."""
        while True:
            try:
                async with self._conversation() as talk:
                    await _asked(talk, "events", {})
                    while (line := await talk.line(float("inf"))) is not None:
                        take(decode_event_untrusted(line))
            except ParentSilent:
                pass
            await trio.sleep(RETRY_S)

    @asynccontextmanager
    async def _conversation(self) -> AsyncIterator[Conversation]:
        try:
            with await vsock.connect(self._address) as sock:
                yield Conversation(sock)
        except (OSError, trio.TooSlowError, BadMessage) as error:
            raise ParentSilent(f"the parent: {str(error) or type(error).__name__}") from error


async def _asked(talk: Conversation, method: str, params: dict[str, object]) -> Reply:
    await talk.send(encode_line(Request(1, method, params)))
    reply = await _reply(talk)
    if reply.error is not None:
        raise ParentSilent(f"the parent refuses {method}: {reply.error}")
    return reply


async def _reply(talk: Conversation) -> Reply:
    line = await talk.line()
    if line is None:
        raise BadMessage("it ended the conversation")
    return decode_reply_untrusted(line, 1)


class ParentBlobs:
    """`bot.checkpoint.blobs.Blobs`, at the parent."""

    def __init__(self, channel: ParentChannel) -> None:
        self._channel = channel

    async def put(self, name: str, parts: Sequence[bytes]) -> None:
        with _as_failed():
            await self._channel.put(name, parts)

    async def get(self, name: str, most_bytes: int) -> bytes | None:
        with _as_failed():
            return await self._channel.ask_blob("get", most_bytes, name=name)

    async def names(self) -> list[str]:
        with _as_failed():
            raw = await self._channel.ask_blob("list", MOST_NAMES_BYTES)
        return (raw or b"").decode(errors="replace").split()

    async def delete(self, names: Sequence[str]) -> None:
        for at in range(0, len(names), MAX_DELETED_NAMES):
            with _as_failed():
                await self._channel.ask("delete", names=list(names[at : at + MAX_DELETED_NAMES]))


class _as_failed:  # noqa: N801 - reads as a word in a with statement
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ParentSilent):
            raise BlobsFailed(str(error)) from error
