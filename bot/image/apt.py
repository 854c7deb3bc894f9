"""Debian's packages: which ones there are for a choice, and the files of a lock."""

import hashlib
import re
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from http.client import HTTPException
from pathlib import Path

from bot.image.lock import ARCHIVES, BadLock, Lock, Package

SNAPSHOT = "https://snapshot.debian.org/archive"
FETCH_S = 60
_ESSENTIAL = re.compile(r"^Package: (\S+)\n(?:.+\n)*?Essential: yes$", re.MULTILINE)


class CannotFetch(Exception):
    """A package of the lock cannot be had anywhere; the message says where it was looked for."""


@dataclass(frozen=True)
class Apt:
    """apt with lists of its own, from the sites that Debian comes from on this machine; what is installed there does not
    matter to it."""

    folder: Path
    suite: str

    def update(self) -> None:
        """Raises `subprocess.CalledProcessError`."""
        for each in ("lists/partial", "cache/archives/partial"):
            (self.folder / each).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        debian, security = mirrors().values()
        lines = f"deb {debian} {self.suite} main\ndeb {security} {self.suite}-security main\n"
        (self.folder / "sources").write_text(lines)
        self._run("apt-get", "-qq", "update")

    def chosen(self, names: Iterable[str], *, essential: bool) -> list[Package]:
        """These, and all that they need. Raises `subprocess.CalledProcessError`."""
        wanted = [*names]
        if essential:
            wanted += sorted(set(_ESSENTIAL.findall(self._run("apt-cache", "dumpavail"))))
        install = ["install", "--print-uris", "-qq", "--no-install-recommends", *wanted]
        lines = self._run("apt-get", *install).splitlines()
        files = [line.split()[1] for line in lines if line.startswith("'")]
        exact = ["=".join(file.split("_")[:2]).replace("%3a", ":") for file in files]
        stanzas = self._run("apt-cache", "show", *exact).split("\n\n")
        found = {package.name: package for package in map(_package, stanzas) if package}
        return [found[name] for name in sorted(found)]

    def _run(self, program: str, *words: str) -> str:
        options = [
            "-o", f"Dir::Etc::sourcelist={self.folder}/sources", "-o", "Dir::Etc::sourceparts=-",
            "-o", f"Dir::State::lists={self.folder}/lists", "-o", f"Dir::Cache={self.folder}/cache",
            "-o", f"Dir::State::status={self.folder}/status", "-o", "APT::Sandbox::User=root",
            "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64",
        ]  # fmt: skip
        return subprocess.check_output([program, *options, *words], text=True)


def _package(stanza: str) -> Package | None:
    told: Message = Parser().parsestr(stanza.strip() + "\n")
    if "Filename" not in told:
        return None
    path = told["Filename"].removeprefix("./")
    archive = ARCHIVES[1] if path.startswith("pool/updates/") else ARCHIVES[0]
    return Package(
        told["Package"], told["Version"], told["Architecture"], archive, path, int(told["Size"]), told["SHA256"]
    )  # fmt: skip


def mirrors() -> Mapping[str, str]:
    """Where each of `ARCHIVES` comes from on this machine."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Component: main"]
    lines = subprocess.check_output(targets, text=True).splitlines()
    sites = {line.split()[1]: line.split()[0] for line in lines if line.startswith("http")}
    own = next(name for name in sites if f"{name}-security" in sites)
    return dict(zip(ARCHIVES, (sites[own], sites[f"{own}-security"]), strict=True))


def fetch(lock: Lock, packages: Sequence[Package], folder: Path) -> list[Path]:
    """Exactly these files, from this machine's mirror or, when that has moved on, from Debian's archive of that day. What is
    in the folder already is not fetched again. Raises `CannotFetch`, `BadLock`, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    sites, day = mirrors(), lock.time.strftime("%Y%m%dT%H%M%SZ")
    for package in packages:
        file = folder / package.file
        if not file.exists():
            old = f"{SNAPSHOT}/{package.archive}/{day}"
            _fetch_one(package, (sites[package.archive], old), file)
        if sha256_of(file) != package.sha256:
            file.unlink()
            raise BadLock(f"{package.file} does not have the hash that the lock names")
    return [folder / package.file for package in packages]


def _fetch_one(package: Package, sites: Iterable[str], file: Path) -> None:
    problems = []
    for site in sites:
        try:
            with urllib.request.urlopen(f"{site}/{package.path}", timeout=FETCH_S) as answer:  # noqa: S310 - the mirror of this machine, or Debian
                content = answer.read(package.size + 1)
        except (OSError, HTTPException) as error:
            problems.append(f"{site}: {error}")
            continue
        if len(content) == package.size:
            part = file.with_name(f"{file.name}.part")
            part.write_bytes(content)
            part.rename(file)
            return
        problems.append(f"{site}: {len(content)} bytes instead of {package.size}")
    raise CannotFetch(f"{package.path} cannot be had ({'; '.join(problems)}); renew the lock")


def index(files: Iterable[Path], folder: str) -> Iterator[str]:
    """A ``Packages`` file of these, which lie in that folder of a repository."""
    for file in files:
        control = subprocess.check_output(["dpkg-deb", "-f", str(file)], text=True)
        about = f"Filename: {folder}/{file.name}\nSize: {file.stat().st_size}\nSHA256: {sha256_of(file)}"
        yield f"{control.strip()}\n{about}\n\n"


def sha256_of(file: Path) -> str:
    """In pieces: a package may be large."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
