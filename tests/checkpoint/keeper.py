"""A keeper in memory that does as it is told, dies when it is told, and shows all that it ever saw."""

from dataclasses import dataclass, field

import trio

from bot.checkpoint.blobs import BlobsFailed


class Killed(BaseException):
    """kill -9, at the other end or at this one."""


@dataclass
class MemoryBlobs:
    """``fails_at``: which put it is (from 1) that is not acknowledged; whether it is kept all the same."""

    kept: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)
    fails_at: int = 0
    keeps_what_fails: bool = False
    puts: int = 0
    deleted: list = field(default_factory=list)
    error: type = BlobsFailed

    async def put(self, name, parts):
        await trio.lowlevel.checkpoint()
        self.puts += 1
        raw = b"".join(parts)
        self.seen.append((name, raw))
        fails = self.puts == self.fails_at
        if not fails or self.keeps_what_fails:
            self.kept[name] = raw
        if fails:
            raise self.error("no answer")

    async def get(self, name, most_bytes):
        await trio.lowlevel.checkpoint()
        raw = self.kept.get(name)
        if raw is not None and len(raw) > most_bytes:
            raise BlobsFailed("too much")
        return raw

    async def names(self):
        await trio.lowlevel.checkpoint()
        return list(self.kept)

    async def delete(self, names):
        await trio.lowlevel.checkpoint()
        self.deleted += names
        for name in names:
            self.kept.pop(name, None)
