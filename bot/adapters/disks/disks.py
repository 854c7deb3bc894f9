"""Which container has which images. ``name`` is the container's name at the engine.

folder/NAME.volumes   mounted on folder/at/NAME, one sub-folder for each path
folder/NAME.layer     mounted over the engine's folder of the container, between create and start

Blocking; raises OSError. Every step may be repeated, and is, after a crash.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from bot.adapters.disks.images import make_image
from bot.adapters.disks.loop import Mounted, mount_image, mounted, unmount

VOLUMES, LAYER = ".volumes", ".layer"
# What names the folder itself and the one below it: of this life of the engine, whatever the image says.
_OF_THIS_LIFE = ("link", "lower")


class Disks:
    """In a folder that is large enough for all: there, and nowhere else, tenants' bytes lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "at").mkdir(parents=True, exist_ok=True, mode=0o711)

    def volume(self, name: str, index: int, size: int) -> Path:
        """The folder for the container's volume of that number, on an image of that size for all of them."""
        image, where = self._image(name, VOLUMES), self.folder / "at" / name
        where.mkdir(exist_ok=True, mode=0o711)
        if image not in mounted(self.folder):
            if not image.exists():
                make_image(image, size)
            mount_image(image, where)
        folder = where / str(index)
        folder.mkdir(exist_ok=True)
        return folder

    def layer(self, name: str, where: Path, size: int) -> None:
        """Put the writable layer of a container that was created and does not run on an image of that size."""
        image = self._image(name, LAYER)
        found = mounted(self.folder).get(image)
        if found is not None and found.where == where:
            return
        if found is not None:
            unmount(found.where)
        if image.exists():
            self._mount_again(image, where)
        else:
            make_image(image, size, where)
            mount_image(image, where)

    def _mount_again(self, image: Path, where: Path) -> None:
        """The layer of another life of the engine, in which the folder's names are new ones."""
        now = {file: (where / file).read_bytes() for file in _OF_THIS_LIFE}
        mount_image(image, where)
        for file, content in now.items():
            (where / file).write_bytes(content)
        shutil.rmtree(where / "work", ignore_errors=True)
        (where / "work").mkdir(mode=0o700)

    def drop_layer(self, name: str) -> None:
        """After the container was removed, which unmounts it."""
        image = self._image(name, LAYER)
        if (found := mounted(self.folder).get(image)) is not None:
            unmount(found.where)
        image.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Everything, for ever."""
        self.drop_layer(name)
        where = self.folder / "at" / name
        unmount(where)
        self._image(name, VOLUMES).unlink(missing_ok=True)
        if where.exists():
            where.rmdir()

    def drop_all_but(self, names: Iterable[str]) -> list[str]:
        """What a crash left of containers that are no more; whose it was."""
        kept = set(names)
        over = [name for name in self.names() if name not in kept]
        for name in over:
            self.drop(name)
        for aside in self.folder.glob("*.new"):
            aside.unlink()
        return over

    def names(self) -> list[str]:
        """Of all containers that have any."""
        return sorted({p.stem for p in self.folder.iterdir() if p.suffix in (VOLUMES, LAYER)})

    def of(self, name: str) -> dict[Path, Mounted | None]:
        """The images that a container has, and where each is mounted."""
        in_use = mounted(self.folder)
        images = (self._image(name, kind) for kind in (VOLUMES, LAYER))
        return {image: in_use.get(image) for image in images if image.exists()}

    def _image(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}{kind}"
