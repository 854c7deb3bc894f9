"""The key of the instance, on disk."""

import stat

from bot.boot.identity import load_key


def test_the_instances_key_is_made_once_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "instance.key"
    key = load_key(path)

    assert key == load_key(path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
