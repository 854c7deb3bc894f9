"""Packages of another Debian release, fetched from the mirror this machine uses; unpacked, not installed."""

import fcntl
import re
import shutil
import subprocess
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def fetch(suite, *packages):
    """A folder with the files of these packages. Once; a kernel's metapackage is followed."""
    folder = CACHE / f"{suite}-{packages[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of several processes may want it at once
        return _fetch(suite, packages, folder)


def _fetch(suite, packages, folder):
    root = folder / "root"
    if root.is_dir():
        return root
    options = _options(suite, folder / "apt")
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    names = [_inner(options, package) for package in packages]
    subprocess.run(["apt-get", *options, "-qq", "download", *names], check=True, cwd=folder)
    shutil.rmtree(folder / "part", ignore_errors=True)  # a fetch that was cut off is begun again
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "part")], check=True)
    (folder / "part").rename(root)
    for deb in folder.glob("*.deb"):
        deb.unlink()
    return root


def _inner(options, package):
    listed = subprocess.check_output(["apt-cache", *options, "depends", package], text=True)
    found = re.search(r"Depends: (linux-image-\S+)", listed)
    return found[1] if found else package


def _options(suite, apt):
    """apt with lists of its own, from the site that Debian comes from here."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Component: main"]
    pairs = [line.split() for line in subprocess.check_output(targets, text=True).splitlines()]
    site = next(site for site, release in pairs if release == "bookworm")
    for each in ("lists/partial", "cache/archives/partial"):
        (apt / each).mkdir(parents=True, exist_ok=True)
    (apt / "sources").write_text(f"deb {site} {suite} main\n")
    return [
        "-o", f"Dir::Etc::sourcelist={apt}/sources", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={apt}/lists", "-o", f"Dir::Cache={apt}/cache",
        "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
