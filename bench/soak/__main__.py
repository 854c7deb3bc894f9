"""``python -m bench.soak [--minutes 15] [--seed N]``: exit code 1 when anything was violated."""

import argparse
import logging
import secrets
import sys

import structlog
import trio

from bench.soak import plan
from bench.soak.run import soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    # Our own connections come and go with the server; that is not worth a line here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    told = trio.run(soak, plan.Plan(options.seed, load_s=options.minutes * 60))
    sys.exit(1 if told else 0)


if __name__ == "__main__":
    main()
