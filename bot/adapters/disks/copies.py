"""A container's disks at one moment: flushed while it runs, copied while it stands still, for some milliseconds.

Never FIFREEZE: one `splice` of a tenant holds that up for ever, and it outlives whoever asked for it. What nobody wrote
to since the last copy is neither frozen nor read. Blocking.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bot.adapters.disks.disks import Disks
from bot.adapters.disks.loop import Mounted, sync, written
from bot.adapters.engine.cgroup import DoesNotStandStill, Freezer
from bot.checkpoint.packer import Snapshot
from bot.checkpoint.scan import scan

log = structlog.get_logger()
FREEZE_S = 0.5
TRIES = 3

Counters = dict[str, tuple[str, ...]]
"""Image's file name → its device, and what the kernel counted there."""


@dataclass
class Copying:
    """One checkpoint's worth. ``only``: these containers, None for all; ``must``: these, or nothing at all. ``same``: files
    that the last checkpoint has as they are; ``counters`` as of the copies; ``pauses_s``: how long each stood still."""

    only: frozenset[str] | None = None
    must: frozenset[str] = frozenset()
    same: list[str] = field(default_factory=list)
    counters: Counters = field(default_factory=dict)
    pauses_s: list[float] = field(default_factory=list)


class DiskCopies:
    """``cgroup_parent`` as given to dockerd."""

    def __init__(self, disks: Disks, cgroup_parent: str) -> None:
        self._disks, self._parent = disks, cgroup_parent
        self._counters: Counters = {}

    def thaw(self, running: Mapping[str, str]) -> None:
        """Whatever a process of ours that died left standing still. ``running``: container's name → its id."""
        for container_id in running.values():
            try:
                Freezer(self._parent, container_id).thaw()
            except OSError:
                continue  # it ended meanwhile

    def take(
        self, copying: Copying, running: Mapping[str, str], is_kept: Callable[[str], bool]
    ) -> Iterator[Snapshot]:
        """One container after another. ``running``: name → id of those that run; ``is_kept``: whether the last checkpoint
        has that file. What cannot be copied this time is taken from there. Raises `DoesNotStandStill` or `OSError` for one that
        must be copied."""
        for name in (n for n in self._disks.names() if copying.only is None or n in copying.only):
            images = self._disks.of(name)
            files = [image.name for image in images]
            for where in filter(None, images.values()):
                sync(where.where)
            counters = _counters(images)
            if all(map(is_kept, files)) and self._stood_still(counters):
                copying.same += files
                copying.counters |= counters
                continue
            try:
                yield from self._copied(copying, images, running.get(name))
            except (DoesNotStandStill, OSError) as error:
                if name in copying.must:
                    raise
                log.warning("disks are not copied this time", container=name, reason=str(error))
                copying.same += [file for file in files if is_kept(file)]

    def kept(self, copying: Copying) -> None:
        """These copies are in a checkpoint now: what did not change since need not be read again."""
        kept = {} if copying.only is None else self._counters
        self._counters = kept | copying.counters

    def _stood_still(self, counters: Counters) -> bool:
        return all(self._counters.get(name) == now for name, now in counters.items())

    def _copied(
        self, copying: Copying, images: Mapping[Path, Mounted | None], container_id: str | None
    ) -> list[Snapshot]:
        for _ in range(TRIES):
            began = time.monotonic()
            with _Still(self._parent, container_id):
                for where in filter(None, images.values()):
                    sync(where.where)
                before = _counters(images)
                found = [scan(image, image.name) for image in images]
                after = _counters(images)
            copying.pauses_s.append(time.monotonic() - began)
            # The witness: what was written meanwhile came from somebody who did not stand still.
            if before == after and self._disks.of(_name(images)) == images:
                copying.counters |= after
                return found
        raise DoesNotStandStill("it was written to while nobody ran")


class _Still:
    """Nothing to stop where nothing runs."""

    def __init__(self, parent: str, container_id: str | None) -> None:
        self._freezer = Freezer(parent, container_id) if container_id is not None else None

    def __enter__(self) -> None:
        if self._freezer is not None:
            self._freezer.freeze(FREEZE_S)

    def __exit__(self, *_: object) -> None:
        if self._freezer is not None:
            self._freezer.thaw()


def _counters(images: Mapping[Path, Mounted | None]) -> Counters:
    return {
        image.name: (where.device, *written(where.device)) if where is not None else ("",)
        for image, where in images.items()
    }


def _name(images: Mapping[Path, Mounted | None]) -> str:
    return next(iter(images)).stem
