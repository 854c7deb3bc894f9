"""Image references: ``host/name:tag@sha256:…``, by a strict grammar."""

import re
from dataclasses import dataclass

MAX_LENGTH = 512
DOCKER_HUB = "docker.io"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*)(?::[1-9][0-9]{{0,4}})?", re.IGNORECASE)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BadImageRef(ValueError):
    """The text is no image reference; the message says why."""


@dataclass(frozen=True)
class ImageRef:
    """A parsed reference. ``host`` is the registry; one of ``tag`` and ``digest`` is given at least."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest if there is one."""
        return self.digest or self.tag or "latest"

    def pinned(self, digest: str) -> str:
        """``host/repository@digest``: the only form that is ever run."""
        return f"{self.host}/{self.repository}@{digest}"


def parse_image_ref(text: str) -> ImageRef:
    """From what a person types. Raises `BadImageRef`."""
    if not text or len(text) > MAX_LENGTH:
        raise BadImageRef(f"an image reference has 1 to {MAX_LENGTH} characters")
    rest, at, digest = text.removeprefix("docker://").partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise BadImageRef("a digest is sha256: and 64 lower-case hex digits")
    host, path = _split_host(rest)
    path, tag = _split_tag(path)
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    if not _REPOSITORY.fullmatch(path):
        raise BadImageRef("a repository name is lower-case words joined by . _ - and /")
    if tag is not None and not _TAG.fullmatch(tag):
        raise BadImageRef("a tag has 1 to 128 letters, digits, . _ or -")
    return ImageRef(host, path, tag or (None if at else "latest"), digest or None)


def _split_host(text: str) -> tuple[str, str]:
    head, slash, rest = text.partition("/")
    # Docker's own rule: the first part is a host only if it could not be a user's name.
    if not slash or not ("." in head or ":" in head or head == "localhost"):
        return DOCKER_HUB, text
    if not _HOST.fullmatch(head):
        raise BadImageRef("the registry's host name is malformed")
    if head.lower() in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        return DOCKER_HUB, rest
    return head.lower(), rest


def _split_tag(path: str) -> tuple[str, str | None]:
    head, slash, last = path.rpartition("/")
    name, colon, tag = last.partition(":")
    return f"{head}{slash}{name}", tag if colon else None
