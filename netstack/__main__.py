"""``python -m netstack enclave|parent --config FILE [--remove]``."""

import argparse
import sys
from functools import partial
from pathlib import Path

import structlog
import trio

from netstack.config import ConfigError, EnclaveConfig, ParentConfig, load_enclave, load_parent
from netstack.machine.apply import CannotApply
from netstack.planes.tun import TunGone
from netstack.service import remove_network, run_enclave, run_parent

log = structlog.get_logger()


def main() -> int:
    """Exit status: 0 after a signal, 1 for what the operator can mend."""
    arguments = _parser().parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    status = 0
    try:
        config = (load_parent if arguments.end == "parent" else load_enclave)(arguments.config)
        if arguments.remove:
            trio.run(_remove, config)
        else:
            trio.run(_run, config, arguments.ready_file)
    except* (ConfigError, CannotApply, TunGone, OSError) as group:
        for error in _leaves(group):
            sys.stderr.write(f"netstack: error: {error}\n")
        status = 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "netstack", description="A network for an enclave, over vsock."
    )
    parser.add_argument("end", choices=("enclave", "parent"))
    parser.add_argument("--config", type=Path, required=True, help="a TOML file")
    parser.add_argument("--remove", action="store_true", help="take the network away, and end")
    parser.add_argument("--ready-file", type=Path, help="made once packets can flow")
    return parser


async def _run(config: ParentConfig | EnclaveConfig, ready_file: Path | None) -> None:
    ready = partial(_ready, ready_file)
    if isinstance(config, ParentConfig):
        await run_parent(config, ready)
    else:
        await run_enclave(config, ready)


async def _ready(ready_file: Path | None) -> None:
    if ready_file is not None:
        await trio.Path(ready_file).touch()


async def _remove(config: ParentConfig | EnclaveConfig) -> None:
    for step in await remove_network(config):
        log.info("removed", step=step)


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


if __name__ == "__main__":
    sys.exit(main())
