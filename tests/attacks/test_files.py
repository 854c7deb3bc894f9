"""What strangers make us write down must not fill the disk."""

import secrets

from bot.adapters.seen_store import SeenStore
from tests.fakes import FakeClock

MOST_MB = 24


async def test_a_flood_of_requests_leaves_a_short_log(tmp_path, record_property):
    store = SeenStore(tmp_path / "seen.sqlite", FakeClock())
    for _ in range(8_000):
        await store.record(secrets.token_hex(32), 120)

    log_mb = (tmp_path / "seen.sqlite-wal").stat().st_size / 1e6
    store.close()
    record_property("figure", f"8,000 requests remembered: a log of {log_mb:.1f} MB")
    assert 0 < log_mb < MOST_MB
