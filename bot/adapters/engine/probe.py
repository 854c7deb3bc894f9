"""Two programs of our own, and the image they lie in: what is started for a try needs nothing of anybody's.

Written as machine code (x86-64, Linux), so that a change of a byte is a change that can be read.
"""

import hashlib
import io
import json
import struct
import tarfile
from ipaddress import IPv4Address

# What `knock` ends with when somebody answered, and (by SIGALRM) when nobody did. Else it could not even knock.
REACHED, SILENCE = 1, 128 + 14
_BASE = 0x400000
_PAUSE = bytes.fromhex(
    "6a22 58"  # push 34; pop rax         pause(
    "0f05"  # syscall                     )
    "ebf9"  # jmp to the first line
)
_KNOCK = bytes.fromhex(
    "6a29 58 6a02 5f 6a01 5e 31d2 0f05"  # socket(AF_INET 2, SOCK_STREAM 1, 0): 41
    "97"  # xchg edi, eax                 the socket is an argument now
    "57"  # push rdi
    "6a25 58 6a01 5f 0f05"  # alarm(1): 37, which ends us when nobody answers
    "5f"  # pop rdi
    "488d351a000000"  # lea rsi, [rip+26] what follows the code: a sockaddr_in
    "6a10 5a"  # push 16; pop rdx         its size
    "6a2a 58 0f05"  # connect(…): 42
    "31ff"  # xor edi, edi
    "85c0"  # test eax, eax               connected
    "7405"  # je 5 further
    "83f891"  # cmp eax, -111             ECONNREFUSED: its kernel answered
    "7502"  # jne 2 further
    "ffc7"  # inc edi
    "6a3c 58 0f05"  # exit(edi): 60
)


def pause() -> bytes:
    """Waits for a signal, for ever."""
    return _elf(_PAUSE)


def knock(address: IPv4Address) -> bytes:
    """Ends with `REACHED` when the machine at that address answers a TCP connection, be it by a refusal, else `SILENCE`."""
    port = 1
    return _elf(
        _KNOCK + struct.pack("=H", 2) + struct.pack(">H", port) + address.packed + bytes(8)
    )


def archive(program: bytes, tag: str) -> bytes:
    """An image of one layer with that program in it, as ``docker load`` takes it."""
    layer = _tar({"program": program})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/program"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    files = {"config.json": config, "manifest.json": manifest}
    return _tar({"layer.tar": layer} | {name: json.dumps(v).encode() for name, v in files.items()})


def _elf(code: bytes) -> bytes:
    """The smallest file that the kernel runs: a header, one segment with everything in it, the code (elf(5))."""
    headers = 64 + 56
    size = headers + len(code)
    # 64-bit, little-endian, version 1; an executable for x86-64 that begins behind the headers.
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # PT_LOAD, readable and executable: the whole file at `_BASE`.
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + code


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()
