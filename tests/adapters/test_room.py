"""What the machine has only once is enough for everybody at once, or it is told."""

from bot.adapters.engine.room import Shortage, make_room, shortages, wanted
from handlers.domain.limits import UnitSize, limits_for


def machine(root, **files):
    for name, value in files.items():
        path = root / name.replace("__", "/").replace("_max_nr", "-max-nr")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_one_unit_can_use_up_what_an_ordinary_machine_has(tmp_path):
    """By default the kernel lets a user have 128 inotify instances, and all containers together 65,536 aio events."""
    root = machine(tmp_path, fs__inotify__max_user_instances=128, fs__aio_max_nr=65_536)
    one = limits_for(1, UnitSize())
    assert shortages(1, UnitSize(), root) == [
        Shortage("fs.inotify.max_user_instances", 128, one.pids * one.nofile),
        Shortage("fs.aio-max-nr", 65_536, one.memory_bytes // 32),
    ]


def test_where_the_machine_is_ours_there_is_room_for_all_units_and_what_is_larger_stays(tmp_path):
    many = 10**9
    root = machine(tmp_path, fs__inotify__max_user_watches=many, fs__aio_max_nr=65_536)
    make_room(100, UnitSize(), root)
    assert shortages(100, UnitSize(), root) == []
    assert wanted(100, UnitSize())["fs.aio-max-nr"] == int((root / "fs/aio-max-nr").read_text())
    assert many == int((root / "fs/inotify/max_user_watches").read_text())
