"""Attestation documents: our verifier against the npm package ``nostr-enclaves``, on the same real documents.

Both on one core after a warm-up, in turn, several times. Ours checks more (the root as a whole, path rules,
key usage, every validity at a given time); theirs is told to overlook that the chains have expired.
"""

import base64
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from nips.tee.anchor import AWS_NITRO_ROOT_G1
from nips.tee.attestation import Verifier
from tests.evidence import FOLDER, real_documents

ROUNDS, TURNS = 100, 3
# Theirs refuses longer texts; two of the real documents are longer.
MAX_BASE64 = 10_000
OTHER = Path(__file__).parent / "nostr_enclaves"


def run() -> None:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        print("attestation: needs node and npm for the other side: apt-get install nodejs npm")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json", "verify.js"):
            shutil.copy(OTHER / name, folder)
        subprocess.run(["npm", "ci", "--silent", "--no-audit"], cwd=folder, check=True)
        documents = _documents()
        sides = {
            "ours, nothing remembered": [],
            "ours, chain remembered": [],
            "nostr-enclaves 2.0.15": [],
        }
        for _ in range(TURNS):
            sides["ours, nothing remembered"].append(_ours(documents, remember=False))
            sides["ours, chain remembered"].append(_ours(documents, remember=True))
            sides["nostr-enclaves 2.0.15"].append(_theirs(node, folder, documents))
    _tell(sides, len(documents))


def _documents() -> list[tuple[bytes, int]]:
    found = []
    for meta in real_documents():
        raw = (FOLDER / meta["file"]).read_bytes()
        if len(base64.b64encode(raw)) <= MAX_BASE64:
            # One second into its life.
            found.append((raw, _seconds(meta["document_time"]) + 1))
    return found


def _seconds(text: str) -> int:
    from datetime import datetime

    return int(datetime.fromisoformat(text).timestamp())


def _ours(documents, *, remember: bool) -> float:
    """Mean milliseconds a document."""
    verifier = Verifier(AWS_NITRO_ROOT_G1)
    for raw, at in documents:
        verifier.verify(raw, at)
    started = time.perf_counter()
    for raw, at in documents:
        for _ in range(ROUNDS):
            (verifier if remember else Verifier(AWS_NITRO_ROOT_G1)).verify(raw, at)
    return (time.perf_counter() - started) * 1_000 / ROUNDS / len(documents)


def _theirs(node: str, folder: str, documents) -> float:
    text = "\n".join(base64.b64encode(raw).decode() for raw, _ in documents)
    # One core for each side.
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), node, "verify.js", str(ROUNDS)]
    done = subprocess.run(
        command, cwd=folder, input=text, capture_output=True, text=True, check=True
    )
    return statistics.mean(json.loads(done.stdout.splitlines()[-1]))


def _tell(sides: dict[str, list[float]], count: int) -> None:
    print(
        f"\nVerifying attestation documents ({count} real ones, {ROUNDS} rounds, {TURNS} turns, ms each, min / median)"
    )
    theirs = statistics.median(sides["nostr-enclaves 2.0.15"])
    for name, turns in sides.items():
        median = statistics.median(turns)
        print(f"  {name:28} {min(turns):6.2f} / {median:6.2f}   {theirs / median:5.1f} x")
