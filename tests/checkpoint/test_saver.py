"""Checkpoints one after another, and back: whole, small, tidy, and nothing of it readable or exchangeable."""

import itertools
import os
import sqlite3
from contextlib import closing

import pytest

from bot.checkpoint.blobs import BlobsFailed, manifest_name
from bot.checkpoint.folder import Folder, FolderBlobs
from bot.checkpoint.manifest import CHUNK_BYTES
from bot.checkpoint.packer import PACK_BYTES, Snapshot
from bot.checkpoint.restore import Progress, read_manifest, read_state, restore
from bot.checkpoint.saver import KEPT, Saver
from bot.checkpoint.scan import scan, scan_database
from bot.checkpoint.seal import TAG_BYTES, BadCheckpoint, Sealer
from keycrux_client.shares import DiskKey, Head
from tests.checkpoint.keeper import Killed, MemoryBlobs

KEY = DiskKey(bytes(range(32)))


def file(name, *chunks, about=b""):
    """Chunks by what they are filled with; None is a hole."""
    parts = [(n * CHUNK_BYTES, c) for n, c in enumerate(chunks) if c is not None]
    size = max((at + len(c) for at, c in parts), default=0)
    return Snapshot(name, size, tuple(parts), about)


def chunk(seed):
    return bytes([seed]) * CHUNK_BYTES


async def read_back(blobs, head, key=KEY):
    """``{name: content}``, as a stranger with the key would restore it."""
    sealer = Sealer(key)
    manifest = await read_manifest(sealer, blobs, head)
    state = await read_state(sealer, blobs, manifest, head)
    files = {entry.name: bytearray(entry.size) for entry in manifest.entries}

    def writer(name):
        def write(offset, data):
            files[name][offset : offset + len(data)] = data

        return write

    progress = Progress()
    await restore(sealer, blobs, state, {name: writer(name) for name in files}, progress)
    assert progress.done_bytes == progress.all_bytes
    return {name: bytes(content) for name, content in files.items()}


def content(snapshot):
    raw = bytearray(snapshot.size)
    for at, data in snapshot.parts:
        raw[at : at + len(data)] = data
    return bytes(raw)


async def test_what_was_saved_comes_back():
    blobs = MemoryBlobs()
    files = [
        file("disk", chunk(1), None, chunk(2), b"tail"),
        file("other", chunk(2), about=b"about it"),
        file("empty"),
    ]
    saved = await Saver(Sealer(KEY), blobs, 1, None).save(files, [], b"secret", 7)
    assert {f.name: content(f) for f in files} == await read_back(blobs, saved.state.head)
    manifest = await read_manifest(Sealer(KEY), blobs, saved.state.head)
    assert (b"secret", 7, 1, 1) == (
        manifest.secret, manifest.created_at, manifest.epoch, manifest.number,
    )  # fmt: skip
    assert b"about it" == next(e for e in manifest.entries if e.name == "other").about


async def test_only_what_changed_is_put_and_the_rest_is_referred_to():
    blobs = MemoryBlobs()
    saver = Saver(Sealer(KEY), blobs, 1, None)
    big = file("big", *(os.urandom(CHUNK_BYTES) for _ in range(200)))
    first = await saver.save([big, file("small", chunk(1))], [], b"", 0)
    assert 200 * CHUNK_BYTES < first.put_bytes < 202 * CHUNK_BYTES
    changed = file("small", chunk(2))
    second = await saver.save([changed], ["big"], b"", 0)
    assert CHUNK_BYTES < second.put_bytes < CHUNK_BYTES + 2_000
    third = await saver.save([big, changed], [], b"", 0)
    assert third.put_bytes < 2_000, "nothing changed, though all was read"
    assert {"big": content(big), "small": chunk(2)} == await read_back(blobs, third.state.head)
    assert second.state.manifest.predecessor.hex() == first.state.head.digest


async def test_a_next_life_goes_on_upon_what_it_restored():
    blobs = MemoryBlobs()
    one = await Saver(Sealer(KEY), blobs, 1, None).save([file("a", chunk(1))], [], b"", 0)
    again = Saver(Sealer(KEY), blobs, 2, one.state)
    two = await again.save([file("b", chunk(1))], ["a"], b"", 0)
    assert Head(2, 2, two.state.head.digest) == two.state.head
    assert {"a": chunk(1), "b": chunk(1)} == await read_back(blobs, two.state.head)
    assert two.put_bytes < 2_000, "the chunk was there already"


async def test_what_no_kept_checkpoint_names_is_deleted_and_nothing_else():
    blobs = MemoryBlobs(kept={"backup": b"1", "p-short": b"x", "somebody's": b"y"})
    saver = Saver(Sealer(KEY), blobs, 1, None)
    heads = []
    for seed in range(1, 8):
        saved = await saver.save([file("a", chunk(seed))], [], b"", 0)
        heads.append(saved.state.head)
        await saver.settle(saved.state.head)
    alive = [head for head in heads if manifest_name(head.digest) in blobs.kept]
    assert heads[-KEPT:] == alive
    for head, seed in zip(alive, range(8 - KEPT, 8), strict=True):
        assert {"a": chunk(seed)} == await read_back(blobs, head)
    assert 3 + 2 * KEPT == len(blobs.kept), "a manifest and a pack each, and what is not ours"


async def test_nothing_newer_than_the_anchor_makes_the_anchored_one_leave():
    """Anchoring failed for long; the last one that escrow knows is what a restore would ask for."""
    blobs = MemoryBlobs()
    saver = Saver(Sealer(KEY), blobs, 1, None)
    anchored = (await saver.save([file("a", chunk(1))], [], b"", 0)).state.head
    for seed in range(2, 9):
        await saver.save([file("a", chunk(seed))], [], b"", 0)
    await saver.settle(anchored)
    assert {"a": chunk(1)} == await read_back(blobs, anchored)


async def test_a_chunk_that_came_back_after_its_pack_was_deleted_is_put_again():
    blobs = MemoryBlobs()
    saver = Saver(Sealer(KEY), blobs, 1, None)
    for seed in (1, 2, 3, 4, 5, 1):
        saved = await saver.save([file("a", chunk(seed))], [], b"", 0)
        await saver.settle(saved.state.head)
    assert {"a": chunk(1)} == await read_back(blobs, saved.state.head)


async def test_packs_of_which_little_is_left_are_given_up():
    blobs = MemoryBlobs()
    saver = Saver(Sealer(KEY), blobs, 1, None)
    chunks = [os.urandom(CHUNK_BYTES) for _ in range(60)]
    saved = await saver.save([file("a", *chunks), file("b", chunk(9))], [], b"", 0)
    await saver.settle(saved.state.head)
    assert saver.is_kept("a")
    for n in range(50):
        chunks[n] = os.urandom(CHUNK_BYTES)
    saved = await saver.save([file("a", *chunks)], ["b"], b"", 0)
    await saver.settle(saved.state.head)
    assert not saver.is_kept("a"), "ten of its sixty chunks are in a pack that is nearly dead"
    files = [file("a", *chunks), file("b", chunk(9))]
    for _ in range(KEPT + 1):
        saved = await saver.save(files, [], b"", 0)
        await saver.settle(saved.state.head)
    assert saver.is_kept("a")
    size = sum(len(raw) for name, raw in blobs.kept.items() if name.startswith("p-"))
    assert 61 * CHUNK_BYTES < size < 66 * CHUNK_BYTES
    assert {f.name: content(f) for f in files} == await read_back(blobs, saved.state.head)


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_keeper_that_fails_at_any_put_costs_nothing(keeps, record_property):
    """Whatever was not acknowledged counts as not there, whether it is or not."""
    chunks = [os.urandom(CHUNK_BYTES) for _ in range(5 * PACK_BYTES // CHUNK_BYTES)]
    first, second = [file("a", *chunks[:200])], [file("a", *chunks[100:]), file("b", chunk(1))]
    tried = 0
    for fails_at in itertools.count(1):
        blobs = MemoryBlobs()
        saver = Saver(Sealer(KEY), blobs, 1, None)
        anchored = (await saver.save(first, [], b"", 0)).state.head
        blobs.puts, blobs.fails_at, blobs.keeps_what_fails = 0, fails_at, keeps
        try:
            await saver.save(second, [], b"", 0)
            break
        except BlobsFailed:
            tried += 1
        assert {f.name: content(f) for f in first} == await read_back(blobs, anchored)
        blobs.fails_at = 0
        again = await saver.save(second, [], b"", 0)
        assert {f.name: content(f) for f in second} == await read_back(blobs, again.state.head)
        await saver.settle(again.state.head)
        assert {f.name: content(f) for f in second} == await read_back(blobs, again.state.head)
    assert tried >= 4
    record_property(
        "figure", f"puts of a checkpoint that failed, kept={keeps}: {tried} of {tried}"
    )


async def test_killed_at_any_put_the_last_anchored_one_is_whole():
    chunks = [os.urandom(CHUNK_BYTES) for _ in range(3 * PACK_BYTES // CHUNK_BYTES)]
    for fails_at in itertools.count(1):
        blobs = MemoryBlobs(error=Killed)
        one = await Saver(Sealer(KEY), blobs, 1, None).save([file("a", *chunks[:150])], [], b"", 0)
        blobs.puts, blobs.fails_at = 0, fails_at
        try:
            await Saver(Sealer(KEY), blobs, 2, one.state).save([file("a", *chunks)], [], b"", 0)
        except* Killed:
            pass
        else:
            break
        state = await read_state(
            Sealer(KEY),
            blobs,
            await read_manifest(Sealer(KEY), blobs, one.state.head),
            one.state.head,
        )
        later = await Saver(Sealer(KEY), blobs, 3, state).save(
            [file("b", chunk(1))], ["a"], b"", 0
        )
        both = await read_back(blobs, later.state.head)
        assert {"a": b"".join(chunks[:150]), "b": chunk(1)} == both
    assert fails_at >= 4


# -- what the keeper can do ----------------------------------------------------------------------------


async def saved_twice():
    blobs = MemoryBlobs()
    saver = Saver(Sealer(KEY), blobs, 1, None)
    old = await saver.save([file("a", chunk(1), chunk(2))], [], b"", 0)
    new = await saver.save([file("a", chunk(3), chunk(4))], [], b"", 0)
    return blobs, old.state, new.state


async def test_the_keeper_hands_over_an_older_manifest_or_another_one():
    blobs, old, new = await saved_twice()
    blobs.kept[manifest_name(new.head.digest)] = blobs.kept[manifest_name(old.head.digest)]
    with pytest.raises(BadCheckpoint, match="another manifest"):
        await read_back(blobs, new.head)
    # Even one who could make the hash fit must have sealed it with our key, under this number.
    raw = blobs.kept[manifest_name(old.head.digest)]
    with pytest.raises(BadCheckpoint, match="epoch and number"):
        await read_back(blobs, Head(1, 2, old.head.digest))
    assert raw


async def test_the_keeper_changes_swaps_cuts_or_withholds_a_pack():
    for how in ("changed", "other", "cut", "longer", "gone", "chunks swapped"):
        blobs, old, new = await saved_twice()
        (mine,) = [f"p-{p.hex()}" for p in new.manifest.packs]
        (other,) = [f"p-{p.hex()}" for p in old.manifest.packs]
        raw = blobs.kept[mine]
        sealed = CHUNK_BYTES + TAG_BYTES
        blobs.kept[mine] = {
            "changed": raw[:1000] + bytes([raw[1000] ^ 1]) + raw[1001:],
            "other": blobs.kept[other],
            "cut": raw[:-1],
            "longer": raw + b"\0",
            "gone": None,
            "chunks swapped": raw[sealed : 2 * sealed] + raw[:sealed] + raw[2 * sealed :],
        }[how]
        with pytest.raises((BadCheckpoint, BlobsFailed)):
            await read_back(blobs, new.head)
        assert {"a": chunk(1) + chunk(2)} == await read_back(blobs, old.head), how


async def test_the_keeper_lists_what_it_likes():
    """Shuffled, with what we need, with what never was, with what is no name: only what is over is deleted."""
    blobs, old, new = await saved_twice()
    junk = ["../../etc/passwd", "p-" + "f" * 32, "m-" + "0" * 64, "", "backup"]
    saver = Saver(Sealer(KEY), blobs, 2, new, [*junk, *reversed(list(blobs.kept) * 2)])
    assert 4 == await saver.settle(new.head), "two that never were, and the older checkpoint's"
    assert {"a": chunk(3) + chunk(4)} == await read_back(blobs, new.head)
    assert sorted(blobs.deleted) == sorted({*junk[1:3], *old.names()})


async def test_one_that_was_overtaken_deletes_nothing_of_the_one_that_came_after():
    """It may be between its last anchor and its tidying when the other one boots."""
    blobs, _, new = await saved_twice()
    older = Saver(Sealer(KEY), blobs, 2, new, list(blobs.kept))
    mine = (await older.save([file("a", chunk(5))], [], b"", 0)).state.head
    later = await Saver(Sealer(KEY), blobs, 3, new).save([file("b", chunk(6))], ["a"], b"", 0)
    await older.settle(mine)
    assert {"a": chunk(3) + chunk(4), "b": chunk(6)} == await read_back(blobs, later.state.head)


async def test_nothing_that_leaves_is_readable_and_no_nonce_is_used_twice():
    """Two lives of one key, which save the same: what left has no 16 bytes in common, and none of what was saved."""
    secret, text = b"identity of the instance", b"a tenant's data, in the clear. " * 3_000
    seen = []
    for epoch in (1, 2):
        blobs = MemoryBlobs()
        await Saver(Sealer(KEY), blobs, epoch, None).save(
            [file("volume-of-a-tenant", text[:CHUNK_BYTES])], [], secret, 0
        )
        seen.append(b"".join(raw for _, raw in blobs.seen))
        names = " ".join(name for name, _ in blobs.seen).encode()
        for hidden in (
            secret,
            text[:30],
            b"volume-of-a-tenant",
            KEY.secret,
            KEY.secret.hex().encode(),
        ):
            assert hidden not in seen[-1] + names
    first = {seen[0][at : at + 16] for at in range(len(seen[0]) - 16)}
    common = sum(seen[1][at : at + 16] in first for at in range(len(seen[1]) - 16))
    assert common <= 2, "but for the manifest's magic word"


# -- from files ---------------------------------------------------------------------------------------


async def test_a_sparse_file_is_read_without_its_holes(tmp_path):
    path, size = tmp_path / "disk", 64 << 20
    with path.open("wb") as f:
        f.truncate(size)
        for at in (4_096, 70_000, 33 << 20, size - 4_096):
            f.seek(at)
            f.write(b"x" * 4_096)
    snapshot = scan(path, "disk")
    assert size == snapshot.size
    assert sum(len(data) for _, data in snapshot.parts) <= 5 * CHUNK_BYTES
    blobs = MemoryBlobs()
    saved = await Saver(Sealer(KEY), blobs, 1, None).save([snapshot], [], b"", 0)
    assert path.read_bytes() == (await read_back(blobs, saved.state.head))["disk"]
    assert saved.put_bytes < 6 * CHUNK_BYTES


async def test_a_database_is_taken_at_one_moment_while_it_is_written(tmp_path):
    path = tmp_path / "db.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (n)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(1_000)])
        db.execute("COMMIT")
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (-1)")
        snapshot = scan_database(path, "db")
        db.execute("ROLLBACK")
    blobs = MemoryBlobs()
    saved = await Saver(Sealer(KEY), blobs, 1, None).save([snapshot], [], b"", 0)
    again = tmp_path / "again.sqlite"
    again.write_bytes((await read_back(blobs, saved.state.head))["db"])
    with closing(sqlite3.connect(again)) as db:
        assert [(1_000, 499_500)] == db.execute("SELECT count(*), sum(n) FROM t").fetchall()
        assert [("ok",)] == db.execute("PRAGMA integrity_check").fetchall()


# -- a folder as keeper --------------------------------------------------------------------------------


async def test_a_folder_keeps_whole_blobs_under_plain_names(tmp_path):
    blobs = FolderBlobs(tmp_path / "kept")
    await blobs.put("p-1", [b"one", b"two"])
    assert b"onetwo" == await blobs.get("p-1", 6)
    assert await blobs.get("p-2", 6) is None
    with pytest.raises(BlobsFailed, match="more than 5 bytes"):
        await blobs.get("p-1", 5)
    for name in ("", ".", "..", "../x", "a/b", "A", ".aside-1", "x" * 101, "a\0b"):
        with pytest.raises(BlobsFailed, match="no name of a blob"):
            await blobs.put(name, [b""])
        with pytest.raises(BlobsFailed, match="no name of a blob"):
            await blobs.get(name, 1)
    await blobs.delete(["p-1", "p-2"])
    assert [] == await blobs.names()


def test_a_blob_that_was_not_finished_leaves_nothing(tmp_path):
    folder = Folder(tmp_path)
    folder.put("a", [b"old"])
    with pytest.raises(ZeroDivisionError), folder.incoming("a") as blob:
        blob.write(b"half of the n")
        raise ZeroDivisionError
    assert b"old" == folder.get("a", 10)
    left = folder.incoming("a")
    left.write(b"and then we died")
    assert 2 == len(list(tmp_path.iterdir()))
    assert ["a"] == Folder(tmp_path).names()
    assert 1 == len(list(tmp_path.iterdir())), "the next life clears it away"
    left._file.close()


async def test_many_small_packs_are_packed_again_before_a_manifest_is_full(monkeypatch):
    monkeypatch.setattr("bot.checkpoint.saver.MOST_SMALL_PACKS", 20)
    blobs, most, seen_worn = MemoryBlobs(), 0, 0
    saver = Saver(Sealer(KEY), blobs, 1, None)
    chunks = [os.urandom(CHUNK_BYTES) for _ in range(60)]
    for number in range(60):
        # One chunk changes, as of a disk that is written to here and there.
        chunks[number] = os.urandom(CHUNK_BYTES)
        await saver.save([file("disk", *chunks)], [], b"", number)
        most = max(most, len(saver.last.manifest.packs))
        await saver.settle(saver.last.head)
        seen_worn += not saver.is_kept("disk")
    assert 15 < most <= 23
    assert 2 <= seen_worn <= 6, "it must be read whole now and then, not each time"
    assert b"".join(chunks) == (await read_back(blobs, saver.last.head))["disk"]
