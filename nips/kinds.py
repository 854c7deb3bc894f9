"""Every event kind that we speak, named once (protocol section 1), and NIP-01's ranges."""

PROFILE = 0
NOTE = 1
DELETION = 5
SEAL = 13
CHAT = 14
GIFT_WRAP = 1059
ZAP_REQUEST = 9734
ZAP_RECEIPT = 9735
RELAY_LIST = 10002
DM_RELAY_LIST = 10050
WALLET_INFO = 13194
WALLET_SERVICE = 13196
ANNOUNCEMENT = 13793
CLIENT_AUTH = 22242
ATTESTATION = 23793
BUILDER = 23794
LAUNCHER = 23795
CERTIFICATE = 23797
NOSTR_CONNECT = 24133
WALLET_REQUEST = 23194
WALLET_RESPONSE = 23195
WALLET_NOTIFICATION_NIP04 = 23196
WALLET_NOTIFICATION = 23197
RPC = 29425
KEYCRUX_RPC = 29525
APP_DATA = 30078
RELEASE = 63794
IMAGE_SIGNATURE = 63795
IMAGE_RELEASE = 63796
CONTAINER = 63797

# Read when verifying, never written. Two of them have got another meaning since: dispatch on tags too.
OLD_RELEASE = 63792
OLD_ANNOUNCEMENT = 63793
OLD_BUILDER = 63795
OLD_LAUNCHER = 63796


def is_replaceable(kind: int) -> bool:
    """Only the newest event per (pubkey, kind) is kept."""
    return kind in (0, 3) or 10_000 <= kind < 20_000


def is_ephemeral(kind: int) -> bool:
    """Delivered, never stored."""
    return 20_000 <= kind < 30_000


def is_addressable(kind: int) -> bool:
    """Only the newest event per (pubkey, kind, `d` tag) is kept."""
    return 30_000 <= kind < 40_000
