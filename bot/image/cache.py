"""What is slow to make, kept outside of the checkout by a hash of what it is made from."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT, IN_USE_S = 2, 3_600


def cache() -> Path:
    """As XDG says."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "enclaved"


def key_of(parts: Iterable[bytes]) -> str:
    """Of what something is made from."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:20]


def made(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """A folder that must not be written to; ``make`` fills a new one, when there is none for this key. A few earlier ones are
    kept."""
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place / f"{name}.lock"):
        path, new = place / f"{name}-{key}", place / f"{name}.new"
        if not path.exists():
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(path)
        path.touch()
        _forget_others(place, name, path)
    return path


def _forget_others(place: Path, name: str, path: Path) -> None:
    others = [each for each in place.glob(f"{name}-*") if each != path]
    others.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    for old in others[KEPT - 1 :]:
        # Somebody else may be reading it.
        if path.stat().st_mtime - old.stat().st_mtime > IN_USE_S:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
