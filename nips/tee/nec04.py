"""NEC-04: the launcher's signature (23795; older 63796), tied to the EC2 instance by PCR4."""

from nips import kinds
from nips.errors import BadCertificate
from nips.event import Event, VerifiedEvent, sign_event, verify_event
from nips.keys import SecretKey
from nips.tee.attestation import Pcrs
from nips.tee.nec03 import pcr_of


def pcr4_of(instance_id: str) -> bytes:
    """What enclaves on that EC2 instance (``i-…``) have in PCR4."""
    return pcr_of(instance_id.encode("ascii"))


def build_launcher_signature(
    key: SecretKey, instance_id: str, env: str, now: int
) -> VerifiedEvent:
    """The 23795 event."""
    tags = [("-",), ("t", env), ("PCR4", pcr4_of(instance_id).hex())]
    return sign_event(key, kinds.LAUNCHER, "", tags, now)


def is_launcher_signature(event: Event) -> bool:
    """Old and new kinds; 63796 means two things, told apart by the tags."""
    return event.kind in (kinds.LAUNCHER, kinds.OLD_LAUNCHER) and event.has_tag("PCR4")


def verify_launcher_signature(event: Event, pcrs: Pcrs) -> str:
    """The launcher's pubkey. Raises `BadInput`."""
    if not is_launcher_signature(event):
        raise BadCertificate("instance is not a launcher's signature")
    verify_event(event)
    attested = pcrs.hex(4)
    if attested is None or event.tag("PCR4") != attested:
        raise BadCertificate("the launcher's PCR4 is not the document's")
    return event.pubkey
