"""What the instance can show for itself: an attestation of its key, fresh enough, or over a nonce."""

from handlers.ports import Attester
from nips.errors import BadCertificate
from nips.event import Event
from nips.keys import SecretKey
from nips.tee.attestation import Verifier
from nips.tee.certificates import Certified, verify_certified
from nips.tee.env import Env
from nips.tee.nec01 import Root, build_root, verify_root
from nips.tee.nec02 import Signatures

# A document is used again so long, unless its certificates end before that.
KEEP_S = 600
# Certificates end after about three hours; what we announce must not end in the reader's hands.
MARGIN_S = 900


class Proof:
    """Attests ``key``. Every document of ours is verified by ourselves before anybody else sees it."""

    def __init__(
        self,
        key: SecretKey,
        attester: Attester,
        verifier: Verifier,
        signatures: Signatures,
        env: Env,
    ) -> None:
        self.signatures, self.env = signatures, env
        self._key, self._attester, self._verifier = key, attester, verifier
        self._current: Root | None = None
        self._taken_at = 0

    async def current(self, now: int) -> Root:
        """For announcements and certificates. Raises when the module cannot attest us."""
        if self._current is None or not self._is_fresh(self._current, now):
            self._current, self._taken_at = await self._attest(None, now), now
        return self._current

    async def answer(self, nonce: bytes, now: int) -> Root:
        """A document made for this nonce. Raises when the module cannot attest us."""
        return await self._attest(nonce, now)

    def verify_certified(self, event: Event, now: int) -> Certified:
        """An event from inside of this very instance. Raises `BadInput`."""
        certified = verify_certified(event, self._verifier, now)
        if certified.root.pubkey != self._key.pubkey:
            raise BadCertificate("it is certified by another instance")
        return certified

    def _is_fresh(self, root: Root, now: int) -> bool:
        young = 0 <= now - self._taken_at < KEEP_S
        return young and root.attested.not_after - now > MARGIN_S

    async def _attest(self, nonce: bytes | None, now: int) -> Root:
        public_key = bytes.fromhex(self._key.pubkey)
        raw = await self._attester.document(public_key=public_key, nonce=nonce)
        attested = self._verifier.verify(raw, now, nonce=nonce)
        event = build_root(self._key, raw, self.env, attested.not_after, now)
        return verify_root(event.json.decode(), self._verifier, now, nonce=nonce)
