"""Images: fetched by us, checked while they come, loaded into the engine, and removed when nobody needs them.

The engine itself is the index: an image of ours has the tag ``enclaved-<instance>:<manifest digest>``, set
once the loaded id was compared with the config's digest. So a crash at any line leaves either a tag that may be
relied on, or something under the tag ``loading-…`` or in the folder, which the next start takes away.
Without a container, the image that was used longest ago leaves when there is no room for another.
"""

import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import trio
import urllib3
from docker.errors import APIError, DockerException, ImageLoadError, ImageNotFound

from bot.adapters.image_archive import docker_archive
from bot.adapters.image_fetch import Fetch, Pace, Unpacked, megabytes
from bot.adapters.oci_registry import Manifest, OciRegistry
from bot.adapters.places import Bounds, Busy, Places
from bot.adapters.registry_client import Broken, Refused, TooSlow
from handlers.domain.image import parse_image_ref
from handlers.domain.limits import image_fits, image_room
from handlers.ports import CannotStart, Clock, ContainerSpec

T = TypeVar("T")
# Each may hold some megabytes (zstd's window, for two layers). A place in line belongs to a container that holds units, so their number bounds the line.
FETCHES = Bounds(in_all=16, by_host=4, by_caller=2, waiting=1_000, waiting_by_caller=1_000)
PACE = Pace()
LOADS_AT_ONCE, WORKERS = 2, 2
# Fetched parts of an image that nobody came back for.
PARTIAL_S = 3_600
# Where images share a disk with everybody else.
FREE_BYTES = 500_000_000
TYPICAL_RATIO = 4
LOAD_S = 900
MAX_PAUSE_S, MAX_PUT_OFF = 60, 1_024
_LOADING = "loading-"
ENGINE_FAULTS = (
    DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
)


@dataclass(frozen=True)
class StoreConfig:
    """``owner`` tells our images from another instance's on the same engine."""

    folder: Path
    socket: str
    owner: str
    store_bytes: int
    pace: Pace = PACE
    places: Bounds = FETCHES
    # What stays free where images are, for whoever else writes there.
    free_bytes: int = FREE_BYTES


@dataclass(frozen=True)
class Kept:
    """An image that the engine holds for us."""

    tag: str
    image_id: str
    size_bytes: int
    volumes: frozenset[str]
    # How long it took until it was our turn to fetch it.
    waited_s: int = 0


class ImageStore:
    """`get` an image for a container; `used` and `drop` say what became of it."""

    def __init__(self, config: StoreConfig, registry: OciRegistry, clock: Clock) -> None:
        self._config, self._registry, self._clock = config, registry, clock
        self._repository = f"enclaved-{config.owner[:24]}"
        self._places = Places(config.places)
        self._workers = trio.CapacityLimiter(WORKERS)
        self._loads = trio.CapacityLimiter(LOADS_AT_ONCE)
        self._calls = trio.CapacityLimiter(4)
        self._locks: dict[str, list[Any]] = {}
        self._reserved: dict[str, int] = {}
        self._again: dict[str, tuple[float, int]] = {}
        self._doing: dict[str, Fetch | str] = {}

    @cached_property
    def _client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=f"unix://{self._config.socket}", timeout=LOAD_S)

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.close()

    def progress(self, pubkey: str) -> str | None:
        """How far a container's image has come, in words."""
        doing = self._doing.get(pubkey)
        if not isinstance(doing, Fetch):
            return doing
        return f"fetching {megabytes(doing.got_bytes)} of {megabytes(doing.total_bytes)} MB"

    async def get(self, spec: ContainerSpec) -> Kept | CannotStart:
        """The image, fetched and loaded if it is missing. Asks no registry when it is there."""
        try:
            kept = await self._get(spec)
        except ENGINE_FAULTS as error:
            return CannotStart(_said(error), permanent=False)
        reason = _unfit(kept, spec) if isinstance(kept, Kept) else None
        return kept if reason is None else CannotStart(reason, permanent=True)

    async def used(self, image: str) -> None:
        """A container of it has gone: it was needed until now."""
        await self._call(partial(self._touch, _digest_of(image)))

    async def drop(self, image: str) -> None:
        """No container can be made of it: it leaves, unless others run it."""
        await self._call(partial(self._drop, self._tag(_digest_of(image))))

    async def tidy(self) -> None:
        """After a crash, and now and then: what is neither whole nor being fetched leaves."""
        await self._call(partial(self._tidy, frozenset(self._locks)))

    # -- fetching -----------------------------------------------------------------------------------

    async def _get(self, spec: ContainerSpec) -> Kept | CannotStart:
        kept = await self._call(partial(self._find, _digest_of(spec.image)))
        if kept is not None:
            return kept
        with self._told(spec.pubkey):
            return await self._get_missing(spec)

    async def _get_missing(self, spec: ContainerSpec) -> Kept | CannotStart:
        ref, digest = parse_image_ref(spec.image), _digest_of(spec.image)
        await trio.sleep_until(self._again.get(digest, (0.0, 0))[0])
        since = trio.current_time()
        waited_s = 0
        try:
            async with self._places.take(ref.host, spec.admin), self._only_one(digest):
                waited_s = int(trio.current_time() - since)
                # Whoever had the image fetched before us did it for us as well.
                kept = await self._call(partial(self._find, digest))
                if kept is None:
                    kept = await self._fetch_and_load(spec)
                    self._places.answered(ref.host)
                    self._again.pop(digest, None)
                return replace(kept, waited_s=waited_s)
        except Busy as busy:
            return CannotStart(str(busy), permanent=False)
        except Refused as refused:
            if isinstance(refused, Broken | TooSlow):
                self._places.failed(ref.host)
            if not refused.permanent:
                self._put_off(digest)
            return CannotStart(str(refused), refused.permanent, waited_s)
        except ENGINE_FAULTS as error:
            return CannotStart(_said(error), permanent=False, waited_s=waited_s)

    def _put_off(self, digest: str) -> None:
        """A registry that has no answer now is not asked every other second."""
        _, failures = self._again.pop(digest, (0.0, 0))
        pause_s = min(MAX_PAUSE_S, 2**failures)
        self._again[digest] = (trio.current_time() + pause_s, min(failures + 1, 10))
        if len(self._again) > MAX_PUT_OFF:
            self._again.pop(next(iter(self._again)))

    async def _fetch_and_load(self, spec: ContainerSpec) -> Kept:
        await self.tidy()
        manifest = await self._manifest(spec)
        folder = self._config.folder / _digest_of(spec.image)
        fetch = Fetch(
            self._registry, manifest, folder, image_room(spec.limits), self._config.pace,
            self._workers,
        )  # fmt: skip
        try:
            # What it unpacks to is not known yet; a disk that fills all the same is a refusal, too.
            guess = min(image_room(spec.limits), TYPICAL_RATIO * fetch.total_bytes)
            await self._reserve(folder, fetch.total_bytes, guess)
            self._doing[spec.pubkey] = fetch
            layers = await fetch.run()
            self._doing[spec.pubkey] = "unpacking its image"
            return await self._load(manifest, layers, folder)
        except Refused as refused:
            if refused.permanent:
                await self._call(partial(_remove_folder, folder))
            raise
        finally:
            self._reserved.pop(folder.name, None)

    async def _manifest(self, spec: ContainerSpec) -> Manifest:
        """Of the pinned reference: all that follows is bound to its digest."""
        with trio.move_on_after(self._config.pace.deadline_s):
            manifest = await self._registry.manifest(parse_image_ref(spec.image))
            if not image_fits(manifest.resolved.compressed_bytes, spec.limits):
                raise Refused("the image is too large for its disk; take more units")
            return manifest
        raise TooSlow("no manifest in time")

    async def _load(self, manifest: Manifest, layers: dict[str, Unpacked], folder: Path) -> Kept:
        digest = folder.name
        unpacked = sum(layers[layer.digest].unpacked_bytes for layer in manifest.layers)
        # The engine copies the archive before it unpacks it.
        await self._reserve(folder, unpacked, unpacked)
        load = partial(self._load_now, manifest, layers, digest)
        await trio.to_thread.run_sync(load, limiter=self._loads, abandon_on_cancel=True)
        await self._call(partial(_remove_folder, folder))
        kept = await self._call(partial(self._find, digest))
        if kept is None:
            raise Refused("the engine lost the image that it loaded", permanent=False)
        return kept

    @asynccontextmanager
    async def _only_one(self, digest: str) -> AsyncIterator[None]:
        """One at a time for an image; locks that nobody holds or waits for leave."""
        entry = self._locks.setdefault(digest, [trio.Lock(), 0])
        entry[1] += 1
        try:
            async with entry[0]:
                yield
        finally:
            entry[1] -= 1
            if entry[1] == 0:
                self._locks.pop(digest, None)

    async def _reserve(self, folder: Path, kept_bytes: int, passing_bytes: int) -> None:
        """Room for what stays, and on the disk also for what comes in between. Raises `Refused`."""
        self._reserved[folder.name] = kept_bytes + passing_bytes
        others = sum(self._reserved.values()) - kept_bytes - passing_bytes
        busy = frozenset(self._locks)
        await self._call(
            partial(self._make_room, kept_bytes, others + kept_bytes + passing_bytes, busy)
        )
        await self._call(partial(folder.mkdir, parents=True, exist_ok=True, mode=0o700))

    @contextmanager
    def _told(self, pubkey: str) -> Iterator[None]:
        self._doing[pubkey] = "waiting for a place to fetch its image"
        try:
            yield
        finally:
            self._doing.pop(pubkey, None)

    async def _call(self, work: "partial[T]") -> T:
        return await trio.to_thread.run_sync(work, limiter=self._calls)

    # -- in worker threads --------------------------------------------------------------------------

    def _tag(self, digest: str) -> str:
        return f"{self._repository}:{digest}"

    def _find(self, digest: str) -> Kept | None:
        try:
            attrs = self._client.images.get(self._tag(digest)).attrs
        except ImageNotFound:
            return None
        volumes = frozenset(attrs["Config"].get("Volumes") or {})
        return Kept(self._tag(digest), attrs["Id"], int(attrs["Size"]), volumes)

    def _load_now(self, manifest: Manifest, layers: dict[str, Unpacked], digest: str) -> None:
        """Under a tag for the time being, until the id is seen to be what the manifest names."""
        loading = f"{_LOADING}{digest}"
        # A generator: the SDK sends it in chunks, though it does not say so.
        archive: Any = docker_archive(manifest, layers, self._tag(loading))
        try:
            self._client.images.load(archive)
        except ImageLoadError as error:
            # Not for want of space: then the image is at fault.
            raise Refused(
                f"the engine cannot load the image: {error}"[:300], permanent=self._has_space(0)
            ) from error
        loaded = str(self._client.images.get(self._tag(loading)).id)
        if loaded != f"sha256:{manifest.resolved.image_id}":
            self._drop(self._tag(loading))
            raise Refused("the engine loaded something else than was fetched", permanent=False)
        self._client.api.tag(loaded, self._repository, digest)
        self._drop(self._tag(loading))

    def _touch(self, digest: str) -> None:
        kept = self._find(digest)
        if kept is not None:
            # Tagging anew is what the engine remembers as the last time that it was needed.
            self._client.api.tag(kept.image_id, self._repository, digest)

    def _drop(self, tag: str) -> None:
        """Our tag; and the image, unless others have a name or a container of it."""
        try:
            self._client.api.remove_image(tag)
        except ImageNotFound:
            pass
        except APIError as error:
            if error.status_code != 409:
                raise

    def _make_room(self, kept_bytes: int, disk_bytes: int, busy: frozenset[str]) -> None:
        """So that the budget holds and the disk does not fill. Raises `Refused`."""
        for folder in self._idle_folders(busy):
            if self._has_space(disk_bytes):
                break
            _remove_folder(folder)
        kept, needed = self._kept(), self._needed()
        taken = sum(image["Size"] for image in kept)
        budget = self._config.store_bytes - kept_bytes
        for image in sorted(kept, key=lambda one: str(one["Metadata"]["LastTagTime"])):
            if taken <= budget and self._has_space(disk_bytes):
                return
            if image["Id"] not in needed:
                self._drop_all(image["RepoTags"])
                taken -= image["Size"]
        if taken > budget or not self._has_space(disk_bytes):
            raise Refused("there is no room for more images on this machine", permanent=False)

    def _drop_all(self, tags: Iterable[str]) -> None:
        for tag in tags:
            if tag.startswith(f"{self._repository}:"):
                self._drop(tag)

    def _kept(self) -> list[dict[str, Any]]:
        listed = self._client.api.images(name=self._repository)
        return [self._client.images.get(id_).attrs for id_ in {one["Id"] for one in listed}]

    def _needed(self) -> set[str]:
        """Images that a container was made of, whoever's it is and whatever it does."""
        return {one["ImageID"] for one in self._client.api.containers(all=True)}

    def _has_space(self, wanted_bytes: int) -> bool:
        self._config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        root = self._engine_root
        # Layers, and an archive that is being loaded: in an enclave each has a file system of its own.
        grown = [path for path in (root / "overlay2", root / "tmp") if path.is_dir()] or [root]
        places = [path for path in (self._config.folder, *grown) if path.is_dir()]
        free = min(shutil.disk_usage(path).free for path in places)
        return free >= wanted_bytes + self._config.free_bytes

    @cached_property
    def _engine_root(self) -> Path:
        """Where the engine keeps what it unpacks, if that is a folder of this machine's."""
        return Path(self._client.info()["DockerRootDir"])

    def _tidy(self, busy: frozenset[str]) -> None:
        for image in self._client.api.images(name=self._repository):
            for tag in image["RepoTags"] or ():
                name = tag.removeprefix(f"{self._repository}:")
                if name.startswith(_LOADING) and name.removeprefix(_LOADING) not in busy:
                    self._drop(tag)
        left = self._config.store_bytes // 4
        for folder in reversed(self._idle_folders(busy)):
            left -= sum(file.stat().st_size for file in folder.iterdir())
            age_s = self._clock.now() - folder.stat().st_mtime
            if left < 0 or not -PARTIAL_S <= age_s <= PARTIAL_S:
                _remove_folder(folder)

    def _idle_folders(self, busy: frozenset[str]) -> list[Path]:
        """What was begun and is not being fetched, the oldest first."""
        if not self._config.folder.is_dir():
            return []
        idle = [path for path in self._config.folder.iterdir() if path.name not in busy]
        return sorted(idle, key=lambda path: path.stat().st_mtime)


def _digest_of(image: str) -> str:
    """64 hex digits of a pinned reference's manifest."""
    return image.rpartition("@sha256:")[2]


def _unfit(kept: Kept, spec: ContainerSpec) -> str | None:
    if not image_fits(kept.size_bytes, spec.limits):
        room = megabytes(image_room(spec.limits))
        return (
            f"the image is too large for its disk: it unpacks to {megabytes(kept.size_bytes)} MB,"
            f" and there is room for {room} MB; take more units"
        )
    if kept.volumes - set(spec.volumes):
        # They would become anonymous volumes without a limit.
        return "the image declares other volumes than its registry told"
    return None


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _said(error: Exception) -> str:
    said = str(getattr(error, "explanation", None) or error)
    return f"the engine does not take images now: {said}"[:300]
