"""``enclaved.json``: containers that belong to the instance itself, named by its image and measured with it.

``{"containers": {NAME: {"image": "host/name@sha256:…", "units": N, "env": {…}}}}``
"""

from dataclasses import dataclass
from pathlib import Path

import orjson

from bot.config import ConfigError
from bot.files import read_bounded
from handlers.context import Builtin
from handlers.domain.image import ImageRef
from handlers.duties.builtins import MOST
from handlers.errors import Refusal
from handlers.params import ENV, IMAGE, NAME, integer, param, parse_params

MAX_BYTES = 1 << 18


def load_builtins(path: Path | None) -> tuple[Builtin, ...]:
    """None of them without a file. Raises `ConfigError`."""
    if path is None:
        return ()
    try:
        return _parse(orjson.loads(read_bounded(path, MAX_BYTES)))
    except OSError as error:
        raise ConfigError(f"[server] builtins: {error.strerror}: {path}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _parse(value: object) -> tuple[Builtin, ...]:
    match value:
        case {"containers": dict(containers), **rest} if not rest and len(containers) <= MOST:
            return tuple(_builtin(name, told) for name, told in containers.items())
        case _:
            raise ValueError(f'it is {{"containers": {{name: …}}}} with at most {MOST} of them')


@dataclass(frozen=True)
class _Told:
    """As `deploy` reads it."""

    name: str = param(NAME)
    image: ImageRef = param(IMAGE)
    units: int = param(integer(1, 50))
    env: dict[str, str] | None = param(ENV, None)


def _builtin(name: str, fields: object) -> Builtin:
    if not isinstance(fields, dict):
        raise TypeError(f"{name} is no object")
    match parse_params(_Told, {"name": name, **fields}):
        case Refusal(text=text):
            raise ValueError(f"{name}: {text}")
        case _Told(image=image) if image.digest is None:
            raise ValueError(f"{name}: the image is named by its digest: what runs is measured")
        case told:
            return Builtin(told.name, told.image, told.units, told.env or {})
