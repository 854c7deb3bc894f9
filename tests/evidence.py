"""A Nitro of the tests' own: documents as AWS's hardware signs them, under a root that the tests name,
and the people around an enclave who sign for it. Everything can be told to lie."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from bot.devstack.authority import DevAuthority
from bot.devstack.nsm import sign_document
from bot.image.seal import make_builder_certificate
from nips import kinds
from nips.event import parse_event_untrusted, sign_event
from nips.keys import SecretKey
from nips.tee.anchor import Anchor
from nips.tee.attestation import Document, Pcrs, Verifier
from nips.tee.env import Env
from nips.tee.image_release import image_tags
from nips.tee.nec01 import build_root, verify_root
from nips.tee.nec02 import InstanceFacts, Signatures, build_announcement
from nips.tee.nec03 import build_builder_signature, pcr8_of
from nips.tee.nec04 import build_launcher_signature, pcr4_of
from nips.tee.nec05 import build_release_signature
from nips.tee.policies import DebugPolicy
from nips.tee.verification import verify_announcement

FOLDER = Path(__file__).parent / "fixtures/attestation"
NOW = 1_800_000_000
REPO = "https://example.com/service"
INSTANCE_ID = "i-0abcdef0123456789"
ZERO = bytes(48)


def real_documents() -> list[dict]:
    return json.loads((FOLDER / "manifest.json").read_text())


def real_event(name: str):
    return parse_event_untrusted(json.loads((FOLDER / name).read_text()))


def measured(word: str) -> bytes:
    return hashlib.sha384(word.encode()).digest()


@dataclass
class Hardware:
    """``is_development`` False: its root plays AWS's. One authority serves all tests: making one is slow."""

    authority: DevAuthority = field(default_factory=lambda: DevAuthority(NOW))
    is_development: bool = False

    def __post_init__(self):
        self.leaf = self.authority.leaf("leaf", NOW)

    @property
    def verifier(self) -> Verifier:
        return Verifier(Anchor(self.authority.root.der, self.is_development))

    def document(self, key: bytes | None, pcrs: dict[int, bytes], **changes) -> bytes:
        module_id = "dev-0a-enc0b" if self.is_development else "i-0a-enc0b"
        document = Document(
            module_id, NOW * 1_000, Pcrs(pcrs), self.leaf.der, tuple(self.authority.cabundle),
            key, None, None,
        )  # fmt: skip
        return sign_document(self.leaf, replace(document, **changes))


HARDWARE = Hardware()


@dataclass
class Enclave:
    """An instance and who signs for it. Any field may be replaced before `announcement`."""

    hardware: Hardware = field(default_factory=lambda: HARDWARE)
    env: Env = Env.PROD
    signs_for: Env = Env.PROD
    key: SecretKey = field(default_factory=SecretKey.generate)
    builder: SecretKey = field(default_factory=SecretKey.generate)
    launcher: SecretKey = field(default_factory=SecretKey.generate)
    maintainers: list[SecretKey] = field(
        default_factory=lambda: [SecretKey.generate() for _ in range(2)]
    )
    image: str = "image"
    repo: str = REPO
    now: int = NOW

    def __post_init__(self):
        self.certificate, _ = make_builder_certificate(self.builder.pubkey, self.now)
        self.pcrs = dict.fromkeys(range(16), ZERO) | {
            0: measured(f"{self.image} 0"), 1: measured("kernel"), 2: measured(f"{self.image} 2"),
            4: pcr4_of(INSTANCE_ID), 8: pcr8_of(self.certificate.public_bytes(Encoding.DER)),
        }  # fmt: skip

    @property
    def verifier(self):
        return self.hardware.verifier

    def document(self, **changes) -> bytes:
        return self.hardware.document(bytes.fromhex(self.key.pubkey), self.pcrs, **changes)

    def root_event(self, **changes):
        options = {"key": self.key, "document": self.document(), "env": self.env,
                   "expiration": self.now + 3 * 3600, "now": self.now} | changes  # fmt: skip
        return build_root(**options)

    def root(self):
        return verify_root(self.root_event().json.decode(), self.verifier, self.now)

    def signatures(self) -> Signatures:
        env = self.signs_for
        return Signatures(
            build_builder_signature(self.builder, self.certificate, repo=self.repo, version="1.0.0", env=env.value, now=self.now),
            build_launcher_signature(self.launcher, INSTANCE_ID, env.value, self.now),
            tuple(self.release(maintainer) for maintainer in self.maintainers),
        )  # fmt: skip

    def release(self, maintainer, **changes):
        options = {
            "repo": self.repo,
            "version": "1.0.0",
            "env": self.signs_for,
            "now": self.now,
        } | changes
        return build_release_signature(maintainer, Pcrs(self.pcrs), **options)

    def announcement(self, **signatures):
        facts = InstanceFacts(
            "test", "a test", "1.0.0", self.repo, ("wss://relay.example.com",), True, 1, 1, 1, 1
        )
        signed = replace(self.signatures(), **signatures)
        return build_announcement(self.key, facts, self.root(), signed, self.now)

    def verdict(self, event=None, policies=None, now=None):
        policies = [DebugPolicy()] if policies is None else policies
        return verify_announcement(
            event or self.announcement(), self.verifier, now or self.now, policies
        )


def build_image_signature(key, image, now):
    return sign_event(key, kinds.IMAGE_SIGNATURE, "", image_tags(image), now)
