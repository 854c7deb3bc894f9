"""DEVELOPMENT ONLY. The image to be, as a folder: what the wheel holds, measured like an enclave's image.

The wheel is what gets into an enclave, so ``bot/devstack`` is not in it. ``release.json`` names the
maintainers and the escrow of this development world. `People` make what the parent hands over.
"""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bot.devstack.nsm import measure
from bot.image.seal import make_builder_certificate
from nips.event import Event
from nips.keys import SecretKey
from nips.tee.attestation import Pcrs
from nips.tee.env import Env
from nips.tee.nec03 import build_builder_signature
from nips.tee.nec04 import build_launcher_signature
from nips.tee.nec05 import build_release_signature

REPO = Path(__file__).resolve().parents[2]


def build_image(folder: Path, policy: dict[str, Any]) -> Path:
    """The wheel, unpacked, with its release policy filled in."""
    wheels = folder.with_name(f"{folder.name}-wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
        cwd=REPO, check=True, capture_output=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    (folder / "bot/release.json").write_text(json.dumps(policy))
    return folder


@dataclass(frozen=True)
class People:
    """Who signs in this development world."""

    builder: SecretKey
    launcher: SecretKey
    maintainer: SecretKey
    certificate: x509.Certificate
    repo: str
    instance_id: str

    @classmethod
    def invent(cls, repo: str, instance_id: str, now: int) -> "People":
        builder, launcher, maintainer = (SecretKey.generate() for _ in range(3))
        certificate, _ = make_builder_certificate(builder.pubkey, now)
        return cls(builder, launcher, maintainer, certificate, repo, instance_id)

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def meta(self, image: Path, now: int, *, signed: bool = True) -> str:
        """What the parent hands over for that image; ``signed`` by the maintainer, or not."""
        measured = Pcrs(measure(image, self.instance_id, self.certificate_der))
        env = Env.DEV.value
        builder = build_builder_signature(
            self.builder, self.certificate, repo=self.repo, version="0.1.0", env=env, now=now
        )
        launcher = build_launcher_signature(self.launcher, self.instance_id, env, now)
        release = build_release_signature(
            self.maintainer, measured, repo=self.repo, version="0.1.0", env=Env.DEV, now=now
        )
        return _meta(builder, launcher, [release] if signed else [])


def _meta(builder: Event, launcher: Event, releases: list[Event]) -> str:
    value = {
        "build": builder.as_dict(),
        "instance": launcher.as_dict(),
        "releases": [event.as_dict() for event in releases],
        "prod": False,
    }
    return json.dumps(value)
