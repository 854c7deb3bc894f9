"""DEVELOPMENT ONLY. A Nitro Security Module in software: same requests, same responses, another root.

It measures a folder (the image to be) and vouches for it to nobody but those who name its root. Its
module ids begin with ``dev-``, which no verifier takes for an enclave's.

python -m bot.devstack.nsm --authority DIR --image DIR --instance-id i-… --socket PATH [--certificate DER]
"""

import argparse
import hashlib
import os
import platform
import secrets
from collections.abc import Callable
from pathlib import Path

import trio

from bot.adapters.nsm import LENGTH, read_message
from bot.clock import SystemClock
from bot.devstack.authority import LEAF_S, DevAuthority, KeyAndCertificate, load_authority
from bot.image.eif import decode_eif_untrusted
from bot.image.pcrs import pcrs_of
from nips.errors import BadInput
from nips.tee import cbor
from nips.tee.attestation import PCR_BYTES, Document, Pcrs
from nips.tee.cose import sign1
from nips.tee.nec03 import pcr8_of, pcr_of
from nips.tee.nec04 import pcr4_of
from nips.tee.nsm import (
    FIRST_FREE_PCR,
    MAX_NONCE,
    MAX_PUBLIC_KEY,
    MAX_USER_DATA,
    PCR_COUNT,
    NsmCode,
    NsmRefused,
    decode_request_untrusted,
    encode_refusal,
    encode_response,
)

_RENEW_S = 600
Arguments = dict[str, object]


def measure(
    image: Path, instance_id: str, certificate_der: bytes | None = None
) -> dict[int, bytes]:
    """The registers of an image; or of a folder as if it were one: 0 all of it, 1 what runs it, 2 the files."""
    pcrs = (
        pcrs_of(decode_eif_untrusted(image.read_bytes())) if image.is_file() else _of_folder(image)
    )
    pcrs[4] = pcr4_of(instance_id)
    if certificate_der is not None:
        pcrs[8] = pcr8_of(certificate_der)
    return pcrs


def _of_folder(image: Path) -> dict[int, bytes]:
    files = hashlib.sha384()
    for path in sorted(p for p in image.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        content = path.read_bytes()
        files.update(f"{path.relative_to(image)}\0{len(content)}\0".encode() + content)
    runtime = hashlib.sha384(f"DEVELOPMENT ONLY {platform.python_version()}".encode())
    both = hashlib.sha384(runtime.digest() + files.digest())
    return {0: pcr_of(both.digest()), 1: pcr_of(runtime.digest()), 2: pcr_of(files.digest())}


def sign_document(signer: KeyAndCertificate, document: Document) -> bytes:
    """A document as the firmware of late 2025 writes it: the payload is a map of indefinite length."""
    fields = {
        "module_id": document.module_id,
        "digest": "SHA384",
        "timestamp": document.timestamp_ms,
        "pcrs": dict(document.pcrs.values),
        "certificate": document.certificate,
        "cabundle": list(document.cabundle),
        "public_key": document.public_key,
        "user_data": document.user_data,
        "nonce": document.nonce,
    }
    pairs = b"".join(cbor.encode(name) + cbor.encode(value) for name, value in fields.items())
    return sign_payload(signer, b"\xbf" + pairs + b"\xff")


def sign_payload(signer: KeyAndCertificate, payload: bytes) -> bytes:
    return sign1(payload, signer.key).encoded()


class DevNsm:
    """`call` answers one request; registers, locks, limits and errors as the real one has them."""

    def __init__(
        self, authority: DevAuthority, pcrs: dict[int, bytes], now: Callable[[], int]
    ) -> None:
        self.module_id = f"dev-{secrets.token_hex(8)}-enc{secrets.token_hex(8)}"
        self._authority, self._now = authority, now
        self._pcrs = {index: bytes(PCR_BYTES) for index in range(PCR_COUNT)} | pcrs
        self._locked = set(range(FIRST_FREE_PCR))
        self._leaf: KeyAndCertificate | None = None
        self._leaf_ends = 0
        self._table: dict[str, Callable[[Arguments], dict[str, object] | None]] = {
            "DescribeNSM": self._describe,
            "GetRandom": lambda _: {"random": os.urandom(256)},
            "DescribePCR": self._describe_pcr,
            "ExtendPCR": self._extend_pcr,
            "LockPCR": self._lock_pcr,
            "LockPCRs": self._lock_pcrs,
            "Attestation": self._attest,
        }

    def call(self, raw: bytes) -> bytes:
        try:
            request = decode_request_untrusted(raw)
            operation = self._table.get(request.operation)
            if operation is None:
                return encode_refusal(NsmCode.INVALID_OPERATION)
            return encode_response(request.operation, operation(request.arguments))
        except BadInput:
            return encode_refusal(NsmCode.INVALID_OPERATION)
        except NsmRefused as refused:
            return encode_refusal(refused.code)

    def _describe(self, _: Arguments) -> dict[str, object]:
        return {
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
            "module_id": self.module_id,
            "max_pcrs": PCR_COUNT,
            "locked_pcrs": sorted(self._locked),
            "digest": "SHA384",
        }

    def _describe_pcr(self, arguments: Arguments) -> dict[str, object]:
        index = _index(arguments)
        return {"lock": index in self._locked, "data": self._pcrs[index]}

    def _extend_pcr(self, arguments: Arguments) -> dict[str, object]:
        index, data = _index(arguments), arguments.get("data")
        if index in self._locked:
            raise NsmRefused(NsmCode.READ_ONLY_INDEX)
        if not isinstance(data, bytes):
            raise NsmRefused(NsmCode.INVALID_ARGUMENT)
        self._pcrs[index] = hashlib.sha384(self._pcrs[index] + data).digest()
        return {"data": self._pcrs[index]}

    def _lock_pcr(self, arguments: Arguments) -> None:
        index = _index(arguments)
        if index in self._locked:
            raise NsmRefused(NsmCode.READ_ONLY_INDEX)
        self._locked.add(index)

    def _lock_pcrs(self, arguments: Arguments) -> None:
        count = arguments.get("range")
        if type(count) is not int or not 0 <= count <= PCR_COUNT:
            raise NsmRefused(NsmCode.INVALID_INDEX)
        self._locked |= set(range(count))

    def _attest(self, arguments: Arguments) -> dict[str, object]:
        fields = {"public_key": MAX_PUBLIC_KEY, "user_data": MAX_USER_DATA, "nonce": MAX_NONCE}
        given: dict[str, bytes | None] = {}
        for name, most in fields.items():
            value = arguments.get(name)
            if value is not None and (not isinstance(value, bytes) or len(value) > most):
                raise NsmRefused(NsmCode.INVALID_ARGUMENT)
            given[name] = value
        now = self._now()
        leaf = self._current_leaf(now)
        registers = {index: self._pcrs[index] for index in sorted(self._locked)}
        document = Document(
            self.module_id, now * 1_000, Pcrs(registers), leaf.der,
            tuple(self._authority.cabundle), given["public_key"], given["user_data"], given["nonce"],
        )  # fmt: skip
        return {"document": sign_document(leaf, document)}

    def _current_leaf(self, now: int) -> KeyAndCertificate:
        if self._leaf is None or now > self._leaf_ends - _RENEW_S:
            self._leaf, self._leaf_ends = self._authority.leaf(self.module_id, now), now + LEAF_S
        return self._leaf


def _index(arguments: Arguments) -> int:
    index = arguments.get("index")
    if type(index) is not int or not 0 <= index < PCR_COUNT:
        raise NsmRefused(NsmCode.INVALID_INDEX)
    return index


async def serve(nsm: DevNsm, path: Path) -> None:
    """On a socket that only its owner can open, until cancelled. Prints ``ready``."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                response = nsm.call(await read_message(stream))
                await stream.send_all(LENGTH.pack(len(response)) + response)
            except (BadInput, trio.BrokenResourceError):
                return

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - before anything is served
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        await listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen()
    print("ready", flush=True)
    await trio.serve_listeners(answer, [trio.SocketListener(listener)])


def main() -> None:
    parser = argparse.ArgumentParser(description="DEVELOPMENT ONLY Nitro Security Module")
    parser.add_argument("--authority", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--instance-id", required=True)
    parser.add_argument(
        "--certificate", type=Path, help="DER that the image is signed with (PCR8)"
    )
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ahead", type=int, default=0, help="seconds by which its clock is wrong")
    options = parser.parse_args()
    clock = SystemClock()
    certificate = options.certificate.read_bytes() if options.certificate else None
    nsm = DevNsm(
        load_authority(options.authority, clock.now()),
        measure(options.image, options.instance_id, certificate),
        lambda: clock.now() + options.ahead,
    )
    trio.run(serve, nsm, options.socket)


if __name__ == "__main__":
    main()
