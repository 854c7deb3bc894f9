"""Fetches one image's layers into a folder, every bound enforced while they stream.

What is there already is read again and continued, so a registry that breaks off, and a crash of ours, cost
only what was not written yet. A registry must keep up a minimum rate: one that drips is dropped, and told so.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import trio

from bot.adapters.layer import BadLayer, Kind, Layer, LayerCheck, TooLarge
from bot.adapters.oci_registry import Manifest, OciRegistry
from bot.adapters.registry_client import Blob, Broken, Refused, TooSlow

T = TypeVar("T")
# What is written and checked in one turn of a worker thread, and how much that may unpack to.
TURN_BYTES, TURN_STEPS = 256 << 10, 64
LAYERS_AT_ONCE = 2
MAX_BREAKS, PAUSE_S = 4, 0.2


@dataclass(frozen=True)
class Pace:
    """The slowest that a registry may be: so much in every window, and all of it by a deadline."""

    min_bytes_s: int = 16_384
    window_s: float = 20
    deadline_s: float = 600


@dataclass(frozen=True)
class Unpacked:
    """A layer that lies in the folder, unpacked, and is what it should be."""

    path: Path
    kind: Kind
    unpacked_bytes: int


class _Files:
    """Of a layer: what came, to go on at its end after a break, and what it unpacks to, for the engine."""

    def __init__(self, packed: BinaryIO, tar: BinaryIO) -> None:
        self.packed, self._tar = packed, tar

    def keep(self, data: bytes) -> None:
        self.packed.write(data)
        self.packed.flush()

    def restart(self) -> None:
        for file in (self.packed, self._tar):
            file.seek(0)
            file.truncate()

    def unpack_some(self, steps: Iterator[bytes]) -> bool:
        """Some steps; whether there may be more."""
        count = 0
        for piece in itertools.islice(steps, TURN_STEPS):
            self._tar.write(piece)
            count += 1
        return count == TURN_STEPS


class Fetch:
    """One image on its way: ``got_bytes`` of ``total_bytes`` are there, packed."""

    def __init__(
        self,
        registry: OciRegistry,
        manifest: Manifest,
        folder: Path,
        room_bytes: int,
        pace: Pace,
        workers: trio.CapacityLimiter,
    ) -> None:
        """``room_bytes``: what the image may unpack to. ``workers``: those threads that check what comes."""
        self._registry, self._manifest, self._folder = registry, manifest, folder
        self._room_bytes, self._pace, self._workers = room_bytes, pace, workers
        self._rate = _Rate(pace, trio.current_time())
        self._checks: dict[str, LayerCheck] = {}
        self._continued: set[str] = set()
        self._done: dict[str, Unpacked] = {}
        self._refused: Refused | None = None
        # An image may name a layer more than once; the engine unpacks it each time.
        self._times = Counter(layer.digest for layer in manifest.layers)
        self._distinct = {layer.digest: layer for layer in manifest.layers}
        self.total_bytes = sum(layer.size_bytes for layer in self._distinct.values())

    @property
    def got_bytes(self) -> int:
        return sum(check.packed_bytes for check in self._checks.values())

    async def run(self) -> dict[str, Unpacked]:
        """All layers by their digests, in the manifest's order. Raises `Refused`."""
        at_once = trio.CapacityLimiter(LAYERS_AT_ONCE)
        with trio.move_on_after(self._pace.deadline_s):
            async with trio.open_nursery() as nursery:
                for layer in self._distinct.values():
                    nursery.start_soon(self._one, layer, at_once, nursery.cancel_scope)
            if self._refused is not None:
                raise self._refused
            return {digest: self._done[digest] for digest in self._distinct}
        got = f"{megabytes(self.got_bytes)} of {megabytes(self.total_bytes)} MB"
        raise TooSlow(f"{got} in {self._pace.deadline_s:g} s")

    async def _one(
        self, layer: Layer, at_once: trio.CapacityLimiter, all_of_them: trio.CancelScope
    ) -> None:
        """The first refusal is the image's."""
        async with at_once:
            try:
                self._done[layer.digest] = await self._layer(layer)
                return
            except Refused as refused:
                self._refused = self._refused or refused
            except OSError as error:
                words = f"the image cannot be kept here now: {error.strerror}"
                self._refused = self._refused or Refused(words, permanent=False)
            all_of_them.cancel()

    async def _layer(self, layer: Layer) -> Unpacked:
        path = self._folder / layer.digest.removeprefix("sha256:")
        try:
            check = await self._fetched_again(layer, path)
        except BadLayer as bad:
            raise Refused(self._told(bad)) from bad
        return Unpacked(_tar_of(path), check.kind, check.unpacked_bytes)

    async def _fetched_again(self, layer: Layer, path: Path) -> LayerCheck:
        """What was put together out of parts and is wrong gets one more try in one piece."""
        try:
            return await self._fetched(layer, path)
        except TooLarge:
            raise
        except BadLayer:
            if layer.digest not in self._continued:
                raise
        await self._in_thread(path.unlink)
        return await self._fetched(layer, path)

    async def _fetched(self, layer: Layer, path: Path) -> LayerCheck:
        with (
            await self._in_thread(partial(_open, path, "a+b")) as packed,
            await self._in_thread(partial(_open, _tar_of(path), "wb")) as tar,
        ):
            files = _Files(packed, tar)
            check = await self._read_again(layer, files)
            self._rate.restart(trio.current_time())
            breaks = 0
            while check.packed_bytes < layer.size_bytes:
                before = check.packed_bytes
                broken: Refused = Refused("the registry breaks off", permanent=False)
                try:
                    check = await self._receive(layer, files, check)
                except Broken as error:
                    broken = error
                breaks = 0 if check.packed_bytes > before else breaks + 1
                if breaks > MAX_BREAKS:
                    raise broken
                if breaks:
                    await trio.sleep(PAUSE_S * 2**breaks)
                else:
                    # A new connection does not begin a new window.
                    self._rate.came(0, trio.current_time())
        check.end()
        return check

    async def _read_again(self, layer: Layer, files: _Files) -> LayerCheck:
        """What an earlier try left is checked like what comes now."""
        check = self._begin(layer)
        files.packed.seek(0)
        while data := await self._in_thread(partial(files.packed.read, TURN_BYTES)):
            self._continued.add(layer.digest)
            await self._take(files, check, data)
        return check

    async def _receive(self, layer: Layer, files: _Files, check: LayerCheck) -> LayerCheck:
        """Until the registry ends; the check of what is there then."""
        ref, have = self._manifest.resolved.ref, check.packed_bytes
        async with self._registry.blob(ref, layer.digest, have) as blob:
            if blob.offset > 0:
                self._continued.add(layer.digest)
            if blob.offset not in (0, have):
                raise Refused("the registry sends another part than was asked for")
            if blob.offset != have:  # it cannot send parts, so it sends all
                await self._in_thread(files.restart)
                check = self._begin(layer)
            await self._stream(blob, files, check)
        return check

    async def _stream(self, blob: Blob, files: _Files, check: LayerCheck) -> None:
        held = bytearray()
        try:
            async for chunk in blob.chunks:
                self._rate.came(len(chunk), trio.current_time())
                held += chunk
                if len(held) >= TURN_BYTES:
                    data, held = bytes(held), bytearray()
                    await self._keep(files, check, data)
                    # A good stretch; and the time that we took ourselves is not the registry's.
                    self._rate.restart(trio.current_time())
        finally:
            # What came is kept, whatever ended it: the next try goes on from there.
            with trio.CancelScope(shield=True):
                await self._keep(files, check, bytes(held))

    async def _keep(self, files: _Files, check: LayerCheck, data: bytes) -> None:
        await self._in_thread(partial(files.keep, data))
        await self._take(files, check, data)

    async def _take(self, files: _Files, check: LayerCheck, data: bytes) -> None:
        """In turns, so that what unpacks to a lot holds no thread for long."""
        steps = check.feed(data)
        more = True
        while more:
            more = await self._in_thread(partial(files.unpack_some, steps))
            if self._unpacked_bytes() > self._room_bytes:
                raise TooLarge

    def _begin(self, layer: Layer) -> LayerCheck:
        check = LayerCheck(layer, self._room_bytes)
        self._checks[layer.digest] = check
        return check

    def _unpacked_bytes(self) -> int:
        """Of all layers, as far as they came."""
        return sum(check.disk_bytes * self._times[d] for d, check in self._checks.items())

    def _told(self, bad: BadLayer) -> str:
        if not isinstance(bad, TooLarge):
            return str(bad)
        packed, room = megabytes(self.total_bytes), megabytes(self._room_bytes)
        return (
            f"the image is too large for its disk: its {packed} MB unpack to more than {room} MB;"
            " take more units"
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._workers)


class _Rate:
    """Bytes in a window of time; raises `TooSlow` when they are too few."""

    def __init__(self, pace: Pace, now: float) -> None:
        self._pace, self._since, self._bytes = pace, now, 0

    def restart(self, now: float) -> None:
        """A new window."""
        self._since, self._bytes = now, 0

    def came(self, count: int, now: float) -> None:
        self._bytes += count
        took_s = now - self._since
        if took_s >= self._pace.window_s:
            if self._bytes < self._pace.min_bytes_s * took_s:
                raise TooSlow(f"{self._bytes} bytes in {took_s:.0f} s")
            self.restart(now)


def megabytes(count: int) -> str:
    """For people: ``12`` or ``0.3``."""
    return f"{count / 1e6:.0f}" if count >= 10_000_000 else f"{count / 1e6:.1f}"


def _tar_of(path: Path) -> Path:
    return path.with_suffix(".tar")


def _open(path: Path, mode: Literal["a+b", "wb"]) -> BinaryIO:
    return path.open(mode)
