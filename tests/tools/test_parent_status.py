"""What an operator sees of his enclave."""

import argparse

import pytest

from bot.tools import parent
from bot.tools.parent import bar, status_lines

KEPT = {
    "blobs": 3,
    "bytes": 1 << 20,
    "newest_s_ago": 4.2,
    "remote_lag_s": None,
    "remote_problem": None,
}


def status(**report):
    return {
        "enclave": "up",
        "reported_s_ago": 0.5,
        "report": report,
        "backups": KEPT,
        "last_log": None,
    }


def test_how_far_copies_lag_and_why():
    told = status(step="ready")
    told["backups"] = KEPT | {"remote_lag_s": 3.5, "remote_problem": "rclone copy: no such host"}
    assert "remote       3.5 s behind: rclone copy: no such host" in status_lines(told)


def lines(**report):
    return dict(
        line.split(None, 1) for line in status_lines(status(**report)) if "last" not in line
    )


def test_each_step_its_time_and_what_had_to_be_started_again():
    told = lines(
        step="ready",
        took_s={"network": 0.4, "server": 1.9},
        ports=[443, 20_000],
        restarts={"dockerd": 2},
    )
    assert "ready" == told["step"]
    assert "server 1.9 s, network 0.4 s" == told["took"]
    assert "443, 20000" == told["ports"]
    assert "dockerd 2" == told["restarts"]


def test_where_it_stands_still_and_why():
    text = "\n".join(status_lines(status(step="clock", halted="the clock is wrong", took_s="?")))
    assert "clock, and halted there" in text
    assert "last error   the clock is wrong" in text


@pytest.mark.parametrize(
    ("done", "rate", "told"),
    [
        (0, 0.0, "[..............................]   0 %, 0.0 of 2.0 MiB, 0.0 MiB/s, waiting"),
        (
            1 << 20,
            1 << 19,
            "[###############...............]  50 %, 1.0 of 2.0 MiB, 0.5 MiB/s, 2 s left",
        ),
        (
            2 << 20,
            1 << 20,
            "[##############################] 100 %, 2.0 of 2.0 MiB, 1.0 MiB/s, 0 s left",
        ),
    ],
)
def test_a_bar(done, rate, told):
    assert told == bar(done, 2 << 20, rate)


def test_a_restore_is_watched_to_its_end_where_somebody_looks_on(monkeypatch, capsys):
    whole, asked = 4 << 20, iter([1 << 20, 2 << 20, 4 << 20])

    def ask(_options, _method):
        return status(step="restore", restore={"done_bytes": next(asked), "all_bytes": whole})

    monkeypatch.setattr(parent, "_asked", ask)
    monkeypatch.setattr(parent, "is_watched", lambda: True)
    monkeypatch.setattr(parent.time, "sleep", lambda _: None)
    assert 0 == parent._status(argparse.Namespace(json=False))
    out = capsys.readouterr().out
    assert "1.0 of 4.0 MiB, 25 %" in out
    assert [" 25 %", " 50 %"] == [line.split("]")[1][1:6] for line in out.split("\r\x1b[K")[1:]]
    assert out.endswith("\n")
