"""``make bench``: all measurements, or the ones named: ``python -m bench attestation rpc relay start metering``."""

import sys

from bench import attestation, metering, relay, rpc, start

ALL = {
    "attestation": attestation.run,
    "rpc": rpc.run,
    "relay": relay.run,
    "start": start.run,
    "metering": metering.run,
}


def main() -> None:
    for name in sys.argv[1:] or ALL:
        ALL[name]()


if __name__ == "__main__":
    main()
