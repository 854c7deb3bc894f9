"""Disks whose limits hold, on real loop devices: sizes, blocks, leaks, and copies of what stands still."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bot.adapters.disks import loop
from bot.adapters.disks.copies import Copying, DiskCopies
from bot.adapters.disks.disks import LAYER, VOLUMES, Disks
from bot.adapters.disks.images import make_image
from bot.adapters.engine.cgroup import DoesNotStandStill, Freezer
from tests.mounts import unmount_below

pytestmark = pytest.mark.dockerd
MB = 1_000_000
V1 = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def disks(tmp_path):
    """In a tmpfs of its own, of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for loop devices")
    folder = tmp_path / "disks"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "disks", str(folder)], check=True)
    try:
        yield Disks(folder)
    finally:
        unmount_below(tmp_path)
        assert {} == loop.mounted(folder), "and no loop device is left"


def fill(path):
    """Write until it is full; how many bytes went in."""
    written = 0
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                written += file.write(bytes(65_536))
        except OSError as error:
            assert errno.ENOSPC == error.errno
    return written


def overlay(folder):
    """As overlay2 has it for a container that was created."""
    for name in ("diff", "work"):
        (folder / name).mkdir(parents=True)
    (folder / "link").write_text("ABC")
    (folder / "lower").write_text("l/DEF:l/GHI")
    (folder / "diff/from-image").write_text("whiteouts and all")
    return folder


def test_a_volume_holds_what_it_is_sold_as_and_not_more(disks):
    folder = disks.volume("box", 0, 10 * MB)
    assert folder == disks.volume("box", 0, 10 * MB), "again, after a crash"
    assert disks.volume("box", 1, 10 * MB).parent == folder.parent, "one image for all"
    assert 0.85 * 10 * MB < fill(folder / "full") < 10.1 * MB
    with pytest.raises(OSError, match="No space left"):
        (disks.volume("box", 1, 10 * MB) / "other").write_bytes(bytes(65_536))
    neighbour = disks.volume("neighbour", 0, 10 * MB)
    (neighbour / "fine").write_bytes(bytes(5 * MB))
    (folder / "full").unlink()
    (folder / "again").write_bytes(bytes(5 * MB))


def test_files_without_content_end_as_well_and_only_there(disks):
    folder = disks.volume("box", 0, 2 * MB)
    number = 0
    with pytest.raises(OSError, match="No space left"):
        for number in range(100_000):
            (folder / str(number)).touch()
    assert 100 < number < 5_000
    (disks.volume("neighbour", 0, 2 * MB) / "fine").touch()


def test_every_block_stays_its_own_whatever_happens_inside(disks):
    """Sparse images would promise the same memory twice; the kernel's own tidying would give it back."""
    folder = disks.volume("box", 0, 10 * MB)
    image = disks.folder / f"box{VOLUMES}"
    whole = image.stat().st_size
    assert whole <= image.stat().st_blocks * 512
    time.sleep(5)  # ext4lazyinit would have begun by now
    (folder / "a").write_bytes(bytes(4 * MB))
    (folder / "a").unlink()
    loop.sync(folder.parent)
    assert whole <= image.stat().st_blocks * 512
    checked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, check=False)
    assert b"UNEXPECTED" not in checked.stdout


def test_what_does_not_fit_is_refused_whole(disks):
    disks.volume("one", 0, 30 * MB)
    before = sorted(disks.folder.iterdir())
    with pytest.raises(OSError, match="No space left"):
        disks.volume("two", 0, 50 * MB)
    assert before == sorted(disks.folder.iterdir()), "nothing of it stays"
    assert disks.volume("three", 0, 20 * MB)


def test_a_layer_keeps_what_the_engine_put_there_and_goes_with_it(disks, tmp_path):
    where = overlay(disks.folder / "overlay2/x")
    disks.layer("box", where, 10 * MB)
    disks.layer("box", where, 10 * MB)
    assert "whiteouts and all" == (where / "diff/from-image").read_text()
    (where / "diff/by-tenant").write_text("mine")
    assert 0.8 * 10 * MB < fill(where / "diff/full") < 10 * MB
    disks.drop_layer("box")
    assert not (disks.folder / f"box{LAYER}").exists()
    assert not (where / "diff/by-tenant").exists()


def test_a_layer_of_another_life_gets_the_names_of_this_one(disks):
    where = overlay(disks.folder / "overlay2/x")
    disks.layer("box", where, 10 * MB)
    (where / "diff/by-tenant").write_text("mine")
    loop.unmount(where)
    again = overlay(disks.folder / "overlay2/y")
    (again / "link").write_text("NEW")
    (again / "lower").write_text("l/OTHER")
    disks.layer("box", again, 10 * MB)
    assert ("NEW", "l/OTHER", "mine") == tuple(
        (again / name).read_text() for name in ("link", "lower", "diff/by-tenant")
    )
    assert [] == list((again / "work").iterdir())
    disks.drop("box")


def test_what_nobody_has_any_more_leaves_and_the_rest_stays(disks):
    for name in ("gone", "stays"):
        (disks.volume(name, 0, 2 * MB) / "x").touch()
    (disks.folder / "half.volumes.new").touch()
    assert ["gone"] == disks.drop_all_but(["stays", "never was"])
    assert ["stays"] == disks.names()
    assert [] == list(disks.folder.glob("*.new"))
    assert (disks.volume("stays", 0, 2 * MB) / "x").exists()
    disks.drop("never was")


def test_a_death_between_attaching_and_mounting_leaves_no_device(disks):
    image = disks.folder / "box.volumes"
    make_image(image, 2 * MB)
    program = (
        "import os; from pathlib import Path; from bot.adapters.disks import loop; "
        f"loop._attach(Path({str(image)!r})); os.kill(os.getpid(), 9)"
    )
    assert -9 == subprocess.run([sys.executable, "-c", program], check=False).returncode
    assert str(image) not in [str(path) for _, path in loop._backing_files()]


# -- copies ------------------------------------------------------------------------------------------


@pytest.fixture
def writer(disks):
    """A process in a freezer group of its own, which writes to a volume without end."""
    if not V1.is_dir():
        pytest.skip("cgroup v2 is tried in the guest")
    group = V1 / "enclaved-test/0000"
    group.mkdir(parents=True, exist_ok=True)
    folder = disks.volume("box", 0, 10 * MB)
    program = (
        "import sys; n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    with open(sys.argv[1], 'w') as f: f.write(str(n) * 1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder / "n")])
    (group / "cgroup.procs").write_text(str(process.pid))
    try:
        yield process
    finally:
        (group / "freezer.state").write_text("THAWED")
        process.kill()
        process.wait()
        time.sleep(0.05)
        group.rmdir()
        group.parent.rmdir()


def take(copies, running, kept=()):
    copying = Copying()
    return copying, list(copies.take(copying, running, lambda name: name in kept))


def restored(tmp_path, snapshot):
    path = tmp_path / "restored"
    with path.open("wb") as file:
        file.truncate(snapshot.size)
        for offset, data in snapshot.parts:
            os.pwrite(file.fileno(), data, offset)
    return path


def test_a_copy_is_of_one_moment_however_fast_it_is_written(
    disks, writer, tmp_path, record_property
):
    copies = DiskCopies(disks, "/enclaved-test")
    pauses = []
    for _ in range(20):
        copying, (snapshot,) = take(copies, {"box": "0000"})
        pauses += copying.pauses_s
        checked = subprocess.run(
            ["e2fsck", "-fn", str(restored(tmp_path, snapshot))], capture_output=True, check=False
        )
        assert 0 == checked.returncode, checked.stdout
        assert "T" not in Path(f"/proc/{writer.pid}/stat").read_text().split()[2], "it goes on"
    pauses.sort()
    assert pauses[10] < 0.3
    record_property(
        "figure",
        f"pause of a container that is copied: median {pauses[10] * 1e3:.1f} ms, most {pauses[-1] * 1e3:.1f}",
    )


def test_who_did_not_write_is_neither_stopped_nor_read(disks):
    (disks.volume("box", 0, 2 * MB) / "x").write_text("once")
    copies, kept = DiskCopies(disks, "/enclaved-test"), {f"box{VOLUMES}"}
    first, (snapshot,) = take(copies, {})
    copies.kept(first)
    second, none = take(copies, {}, kept)
    assert ([], [snapshot.name], []) == (none, second.same, second.pauses_s)
    third, again = take(copies, {}, ())
    assert [snapshot.name] == [s.name for s in again], "but the last checkpoint does not have it"
    copies.kept(third)
    (disks.volume("box", 0, 2 * MB) / "y").write_text("again")
    _, changed = take(copies, {}, kept)
    assert [snapshot.name] == [s.name for s in changed]


def test_a_copy_that_was_not_kept_is_made_again(disks):
    (disks.volume("box", 0, 2 * MB) / "x").write_text("once")
    copies = DiskCopies(disks, "/enclaved-test")
    take(copies, {})
    _, again = take(copies, {}, {f"box{VOLUMES}"})
    assert 1 == len(again), "the checkpoint that it was for may have failed"


def test_one_that_cannot_be_stopped_is_taken_from_the_last_checkpoint(disks, writer, monkeypatch):
    def never(*_):
        raise DoesNotStandStill("not this time")

    monkeypatch.setattr(Freezer, "freeze", never)
    copies = DiskCopies(disks, "/enclaved-test")
    copying, none = take(copies, {"box": "0000"}, {f"box{VOLUMES}"})
    assert ([], [f"box{VOLUMES}"]) == (none, copying.same)
    copying, none = take(copies, {"box": "0000"}, ())
    assert ([], []) == (none, copying.same)


def test_whoever_a_dead_process_left_standing_is_set_going(disks, writer):
    Freezer("/enclaved-test", "0000").freeze(1)
    copies = DiskCopies(disks, "/enclaved-test")
    assert Freezer("/enclaved-test", "0000").is_frozen()
    copies.thaw({"box": "0000", "gone": "1111"})
    assert not Freezer("/enclaved-test", "0000").is_frozen()
