"""What is in the root of an enclave, and that it is the same wherever it is built."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import replace

import pytest

from bot.image import build, contents, oci
from bot.image.cache import cache
from bot.image.difference import differences
from bot.image.eif import encode_eif
from bot.image.pcrs import pcrs_of
from bot.image.releases import decode_releases_untrusted, why_not_released
from bot.image.root import LIST, PACKAGES, own_files
from bot.server.app import VERSION
from bot.tools.cli import main
from tests.conftest import REPO
from tests.system.test_whole_stack import needs_root

pytestmark = pytest.mark.xdist_group("image")
# What builds, fetches or looks into others has no business there.
FORBIDDEN = frozenset(
    ["gcc", "cc", "g++", "clang", "ld", "as", "make", "cmake", "pip", "pip3", "pytest", "git", "curl", "wget", "ssh", "sshd", "nc",
     "gdb", "strace", "tcpdump", "rustc", "cargo", "go", "node", "npm", "perl", "apt", "apt-get", "dpkg", "docker", "ctr"]
)  # fmt: skip
NEEDED = frozenset(
    ["dockerd", "containerd", "containerd-shim-runc-v2", "runc", "unbound", "tini", "mke2fs", "chronyd", "mount", "ip", "enclaved",
     "enclave.sh", "heartbeat", "iptables-legacy", "ip6tables-legacy", "busybox", "python3"]
)  # fmt: skip
MOST_EIF_BYTES = 150_000_000


@pytest.fixture(scope="module")
def eif():
    needs_root()
    return build.build(build.read_lock(), build.LAYER)


@pytest.fixture(scope="module")
def tree():
    needs_root()
    return build.root()


def test_the_root_has_what_it_runs_and_nothing_that_builds_fetches_or_tests(tree):
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
    programs = {path.name for folder in folders for path in (tree / folder).iterdir()}
    assert set() == NEEDED - programs
    assert set() == programs & FORBIDDEN
    forbidden = ("bot/devstack", "tests", "pip", "pytest")
    assert [] == [name for name in forbidden if (tree / PACKAGES / name).exists()]
    for name in (
        "usr/include",
        "usr/lib/gcc",
        "var/lib/dpkg",
        "var/lib/apt",
        "etc/machine-id",
        "root/.cache",
    ):
        path = tree / name
        assert not path.exists() or not any(path.iterdir()), name
    assert "/usr/sbin/iptables-legacy" == os.readlink(tree / "etc/alternatives/iptables")
    assert os.readlink(tree / "usr/sbin/iptables") == "/etc/alternatives/iptables"


def test_our_part_is_as_it_is_here_and_everything_is_compiled_and_can_be_imported(tree):
    for file, place in own_files():
        assert file.read_bytes() == (tree / place).read_bytes(), place
        assert (tree / place).stat().st_mode & 0o777 in (0o644, 0o755)
    sources = [p for p in (tree / PACKAGES).rglob("*.py") if "devstack" not in p.parts]
    compiled = sum(1 for _ in (tree / PACKAGES).rglob("*.pyc"))
    assert len(sources) * 0.95 < compiled <= len(sources), "else every start compiles them anew"
    done = subprocess.run(
        ["chroot", str(tree), "python3", "-B", "-c", EVERYTHING],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


EVERYTHING = """
import importlib, pkgutil
for room in ("bot", "handlers", "keycrux_client", "netstack", "nips"):
    for module in pkgutil.walk_packages(importlib.import_module(room).__path__, room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def test_versions_in_the_root_are_those_of_the_lock(tree):
    lock = build.read_lock()
    expected = {f"{p.name} {p.version}" for p in (*lock.root, *lock.wheels)}
    assert expected == set((tree / LIST).read_text().splitlines())
    assert set(contents.ROOT) <= {p.name for p in lock.root}
    requirements = (REPO / "build/requirements.lock").read_text()
    for wheel in lock.wheels:
        assert wheel.sha256 in requirements, f"{wheel.file}: renew the lock with `make lock`"


def test_another_builder_elsewhere_gets_the_same_bytes(eif, tmp_path, record_property):
    """Another folder, umask, time zone, language, hostname, order of files, hash seed and cache."""
    place = tmp_path / "an other place"
    place.mkdir()
    copied = ("bot", "handlers", "keycrux_client", "netstack", "nips", "build", "enclave.sh")
    for name in reversed(copied):
        (shutil.copytree if (REPO / name).is_dir() else shutil.copyfile)(REPO / name, place / name)
    for kind in ("debs", "wheels"):
        (tmp_path / "cache/enclaved" / kind).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache/enclaved" / kind).symlink_to(cache() / kind)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TZ": "Pacific/Apia", "LANG": "tr_TR.UTF-8", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONPATH": str(place),
    }  # fmt: skip
    for name in ("hostname", "resolv.conf", "hosts"):
        (tmp_path / name).write_text("127.9.9.9 elsewhere\n")
    binds = "".join(
        f"mount --bind '{tmp_path}/{name}' /etc/{name}; "
        for name in ("hostname", "resolv.conf", "hosts")
    )
    script = f'set -e; umask 077; hostname elsewhere; {binds} exec "$@"'
    program = "import sys; from bot.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "other.eif"
    subprocess.run(
        ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", sys.executable, "-P", "-c", program, "image", "build", "--out", str(out)],
        env=environment, cwd=place, check=True, capture_output=True,
    )  # fmt: skip
    raw = encode_eif(eif)
    assert hashlib.sha256(raw).digest() == hashlib.sha256(out.read_bytes()).digest(), (
        "see `enclaved image diff`"
    )
    assert 50_000_000 < len(raw) < MOST_EIF_BYTES
    pcrs = " ".join(f"PCR{index} {pcr.hex()}" for index, pcr in pcrs_of(eif).items())
    record_property("figure", f"image: {len(raw) / 1e6:.0f} MB, {pcrs}")


def test_sources_under_a_released_version_are_what_was_released(eif):
    """A version of development is not pinned, so that not every commit needs an entry."""
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert version == VERSION, "what an instance says of itself"
    releases = decode_releases_untrusted((REPO / "build/pcrs.json").read_text())
    assert None is why_not_released(version, pcrs_of(eif), releases)


def test_one_changed_byte_changes_the_register_it_should_and_the_file_is_named(
    eif, tmp_path, monkeypatch, capsys
):
    before = pcrs_of(eif)
    layer = tmp_path / "layer"
    shutil.copytree(build.LAYER, layer)
    with (layer / "etc/enclaved/enclaved.toml").open("a") as file:
        file.write("#")
    changed = build.build(build.read_lock(), layer)
    after = pcrs_of(changed)
    assert [True, False, True] == [before[index] != after[index] for index in (0, 1, 2)]
    (told,) = differences(eif, changed)
    assert ("ramdisk 3, rootfs/etc/enclaved/enclaved.toml", (0, 2)) == (told.where, told.pcrs)

    init = tmp_path / "init"
    init.write_bytes(build.INIT.read_bytes() + b"#")
    monkeypatch.setattr(build, "INIT", init)
    changed = build.build(build.read_lock(), build.LAYER)
    after = pcrs_of(changed)
    assert [True, True, False] == [before[index] != after[index] for index in (0, 1, 2)]
    (told,) = differences(eif, changed)
    assert ("ramdisk 1, init", (0, 1)) == (told.where, told.pcrs)
    files = []
    for name, each in (("one", eif), ("other", changed)):
        files.append(tmp_path / name)
        files[-1].write_bytes(encode_eif(each))
    assert 1 == main(["image", "diff", *map(str, files)])
    assert "ramdisk 1, init: content" in capsys.readouterr().out


@pytest.mark.parametrize("path", [
    "bin/tool", "usr/local/sbin/enclave.sh", f"{PACKAGES}/bot/__main__.py", "etc/passwd", "etc/enclaved/.git/config", "zzz",
])  # fmt: skip
def test_a_layer_holds_what_is_an_operators_to_choose_and_nothing_else(tree, tmp_path, path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    with pytest.raises(build.BadCpio, match="a layer has files in"):
        build.own_entries(tree, tmp_path)
    (tmp_path / path).unlink()
    (tmp_path / "etc/enclaved").mkdir(parents=True, exist_ok=True)
    (tmp_path / "etc/enclaved/link").symlink_to("/etc/shadow")
    with pytest.raises(build.BadCpio, match="a layer has files in"):
        build.own_entries(tree, tmp_path)


def test_what_is_edited_while_a_tree_is_made_is_not_in_it(tree, tmp_path, monkeypatch):
    """Its key is of what was read."""
    base = build.ready_parts(build.read_lock()).base
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {place: file for file, place in own_files()}
    place = f"{PACKAGES}/bot/clock.py"
    file = files[place]
    copy = tmp_path / "clock.py"
    copy.write_bytes(file.read_bytes())
    files[place] = copy
    monkeypatch.setattr(
        build, "own_files", lambda: ((file, place) for place, file in files.items())
    )
    real = build.build_tree

    def edited(*args):
        copy.write_text("evil")
        real(*args)

    monkeypatch.setattr(build, "build_tree", edited)
    assert file.read_bytes() == (build.ready_tree(base) / place).read_bytes()


@pytest.mark.xdist_group("dockerd")
@pytest.mark.dockerd
def test_the_dockerfile_makes_the_same_tree(ground, tmp_path):
    needs_root()
    eif = build.build(build.read_lock(), build.LAYER)
    entries = {e.path.decode(errors="surrogateescape"): e for e in oci.root_entries(eif)}
    oci.write_tar(entries.values(), build.read_lock().epoch_s, tmp_path / "root.tar")
    docker = ["docker", "-H", f"unix://{ground.socket}"]
    made = subprocess.check_output(
        [*docker, "build", "-q", "-f", str(REPO / "Dockerfile"), str(tmp_path)],
        text=True,
        env=os.environ | {"DOCKER_BUILDKIT": "0"},
    ).split()[-1]
    container = subprocess.check_output([*docker, "create", made], text=True).strip()
    try:
        with (
            subprocess.Popen([*docker, "export", container], stdout=subprocess.PIPE) as export,
            tarfile.open(fileobj=export.stdout, mode="r|") as archive,
        ):
            there = {_known(archive, member) for member in archive}
    finally:
        subprocess.run([*docker, "rm", container], check=True, capture_output=True)
        subprocess.run([*docker, "rmi", made], check=True, capture_output=True)
    here = {
        (name, e.mode & 0o7777, hashlib.sha256(e.content).hexdigest())
        for name, e in entries.items()
    }
    # Its own, and what it lays over ours.
    docker_s = (
        ".dockerenv",
        "dev",
        "etc/hostname",
        "etc/hosts",
        "etc/resolv.conf",
        "etc/mtab",
        "proc",
        "sys",
    )
    here, there = (
        {e for e in entries if not e[0].startswith(docker_s)} for entries in (here, there)
    )
    assert (set(), set()) == (here - there, there - here)
    assert len(here) > 5_000


def _known(archive, member):
    content = member.linkname.encode() if member.issym() else b""
    if member.isfile():
        content = archive.extractfile(member).read()
    return (
        member.name.rstrip("/"),
        0o777 if member.issym() else member.mode & 0o7777,
        hashlib.sha256(content).hexdigest(),
    )


def test_an_oci_layout_is_the_same_twice_and_says_what_it_is(eif, tmp_path):
    small = replace(eif, ramdisks=(eif.ramdisks[0], eif.ramdisks[2]))
    digests = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        oci.write_tar(oci.root_entries(small), 1_700_000_000, folder / "root.tar")
        digests.append(oci.write_layout(folder / "root.tar", 1_700_000_000, folder / "oci"))
    assert digests[0] == digests[1]
    for blob in (tmp_path / "one/oci/blobs/sha256").iterdir():
        assert blob.name == hashlib.sha256(blob.read_bytes()).hexdigest()
