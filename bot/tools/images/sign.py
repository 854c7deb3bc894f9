"""``enclaved image sign-build``, ``sign-release`` and ``verify``: who vouches for an image, and does what runs come from here?"""

import argparse
from dataclasses import replace
from pathlib import Path

import trio

from bot.adapters.relay_events import RelayEvents
from bot.clock import SystemClock
from bot.files import write_whole
from bot.image import build
from bot.image.eif import BadEif, Eif, encode_eif
from bot.image.pcrs import pcrs_of
from bot.image.seal import make_builder_certificate, seal
from bot.terminal import say, say_json_text
from bot.tools import commands
from bot.tools.images.look import measured, read_eif
from bot.tools.maintain import CannotRelease, sign_measurements
from nips import kinds
from nips.event import VerifiedEvent
from nips.tee.attestation import Pcrs
from nips.tee.env import Env
from nips.tee.nec03 import builder_tags


def add_commands(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Beside those that build and look."""
    made = _signing(
        actions, "sign-build", "sign as who built it: PCR8 and build.json", _sign_build
    )
    made.add_argument("--out", type=Path, required=True, help="the signed image")
    made.add_argument(
        "--event", type=Path, required=True, help="build.json, for the operator's folder"
    )
    release = _signing(
        actions, "sign-release", "sign as a maintainer: its PCR0, 1 and 2", _sign_release
    )
    release.add_argument("--no-publish", action="store_true", help="print it, and no more")
    checking = actions.add_parser("verify", help="does an instance run what this checkout builds?")
    commands.add_verify_arguments(checking)
    checking.add_argument(
        "--layer", type=Path, default=build.LAYER, help="the instance's own, see `build`"
    )
    checking.set_defaults(do=_verify)


def _signing(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    do: object,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("file", type=Path)
    commands.add_signer_arguments(parser)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--relay", action="append", default=[], help="ws:// or wss:// URL")
    parser.set_defaults(do=do)
    return parser


def _sign_build(options: argparse.Namespace) -> int:
    """The certificate's key lives in this function alone."""
    eif = read_eif(options.file)
    if eif.signature is not None:
        raise CannotRelease(
            f"{options.file} is signed already: sign what `enclaved image build` wrote"
        )
    signed, event = trio.run(_signed_build, eif, options)
    write_whole(options.out, encode_eif(signed))
    write_whole(options.event, event.json)
    say(f"{options.out}: signed; {options.event}: for the operator's instance/build.json")
    say(*(f"{name}  {pcr}" for name, pcr in measured(signed).items()))
    return 0


async def _signed_build(eif: Eif, options: argparse.Namespace) -> tuple[Eif, VerifiedEvent]:
    signer, now = commands.signer_of(options, RelayEvents(options.relay)), SystemClock().now()
    certificate, key = make_builder_certificate(await signer.pubkey(), now)
    env = (Env.PROD if options.prod else Env.DEV).value
    tags = builder_tags(certificate, repo=options.repo, version=options.version, env=env)
    event = await signer.sign(kinds.BUILDER, "", tags, now)
    return replace(eif, signature=seal(pcrs_of(eif)[0], certificate, key)), event


def _sign_release(options: argparse.Namespace) -> int:
    pcrs = Pcrs(pcrs_of(read_eif(options.file)))

    async def sign() -> VerifiedEvent:
        signer = commands.signer_of(options, RelayEvents(options.relay))
        return await sign_measurements(
            pcrs, signer, repo=options.repo, version=options.version, is_prod=options.prod, now=SystemClock().now()
        )  # fmt: skip

    event = trio.run(sign)
    say_json_text(event.json.decode())
    return 0 if options.no_publish else commands.publish(event, options.relay)


def _verify(options: argparse.Namespace) -> int:
    """What `enclaved verify` checks, and that it is this very build, now."""
    if options.offline or options.at is not None:
        raise BadEif("whether an instance runs this build, only a fresh document of its own shows")
    for index, pcr in pcrs_of(build.build(build.read_lock(), options.layer)).items():
        name = f"expect_pcr{index}"
        if (given := getattr(options, name)) not in (None, pcr.hex()):
            raise BadEif(f"PCR{index} of this checkout is {pcr.hex()}, not {given}")
        setattr(options, name, pcr.hex())
    return commands.verify_instance(options)
