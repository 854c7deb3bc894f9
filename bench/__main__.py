"""``make bench``: all measurements, or the ones named: ``python -m bench attestation rpc relay start crowd metering images checkpoint boot``."""

import sys

from bench import attestation, boot, checkpoint, crowd, images, metering, relay, rpc, start

ALL = {
    "attestation": attestation.run,
    "rpc": rpc.run,
    "relay": relay.run,
    "start": start.run,
    "crowd": crowd.run,
    "metering": metering.run,
    "images": images.run,
    "checkpoint": checkpoint.run,
    "boot": boot.run,
}


def main() -> None:
    for name in sys.argv[1:] or ALL:
        ALL[name]()


if __name__ == "__main__":
    main()
