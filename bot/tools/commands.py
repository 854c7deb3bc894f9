"""The command line, for those who check (``verify``) and those who vouch (``release``)."""

import argparse
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from bot.adapters.oci_registry import OciRegistry
from bot.adapters.registry_client import RegistryConfig
from bot.adapters.relay_events import RelayEvents
from bot.boot.anchors import load_anchor
from bot.boot.identity import read_secret_text
from bot.clock import SystemClock
from bot.relay.courier import bring
from bot.terminal import say, say_json, say_json_text, tell
from bot.tools.maintain import CannotRelease, Maintenance, read_measurements, sign_measurements
from bot.tools.report import Answer, Report
from bot.tools.signer import BunkerSigner, KeySigner, Signer, client_key_beside
from bot.tools.verify import Question, verify
from handlers.commands.release import release_result
from handlers.domain.image import BadImageRef, ImageRef, parse_image_ref
from nips.errors import BadInput
from nips.event import VerifiedEvent
from nips.keys import SecretKey
from nips.nip19 import parse_pointer_untrusted, pubkey_from_npub_untrusted
from nips.nip46 import parse_bunker_uri
from nips.tee.attestation import Verifier
from nips.tee.policies import (
    DebugPolicy,
    ExpectedMaintainers,
    ExpectedPcrs,
    ExpectedRepo,
    MaxAge,
    Policy,
)

DEFAULT_MAX_AGE_S = 3 * 3600


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``verify`` and ``release``."""
    checking = commands.add_parser("verify", help="what runs under this npub, provably?")
    add_verify_arguments(checking)
    checking.set_defaults(do=verify_instance)
    release = commands.add_parser("release", help="sign, publish or check releases")
    actions = release.add_subparsers(required=True, metavar="action")
    _add_release(actions, "check", "who signed an image?", _check)
    _add_release(actions, "sign", "sign an image, or a file of measurements", _sign)
    _add_release(actions, "publish", "announce an image that all its signers signed", _publish)


# -- verify -------------------------------------------------------------------------------------------


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("who", help="npub, nprofile, note or nevent")
    parser.add_argument("--relay", action="append", default=[], help="ws:// or wss:// URL")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--at", help="as of then: Unix seconds or ISO 8601; nobody is challenged")
    parser.add_argument("--offline", action="store_true", help="do not challenge the instance")
    for index in (0, 1, 2):
        parser.add_argument(f"--expect-pcr{index}", metavar="HEX", help=f"PCR{index} must be this")
    parser.add_argument(
        "--maintainer", action="append", default=[], help="npub that must have signed the release"
    )
    parser.add_argument("--repo", help="the repository that it must be a release of")
    parser.add_argument("--crl", action="append", default=[], type=Path, help="a revocation list")
    parser.add_argument("--max-age", type=int, default=DEFAULT_MAX_AGE_S, metavar="SECONDS")
    parser.add_argument("--allow-debug", action="store_true", help="accept what its host can read")
    parser.add_argument(
        "--dev-root", type=Path, help="DEVELOPMENT ONLY: believe this root instead of AWS's"
    )


def verify_instance(options: argparse.Namespace) -> int:
    """The exit code says what was found, see `Answer`."""
    try:
        question = _question(options)
    except (BadInput, OSError) as error:
        tell(f"error: {error}")
        return Answer.COULD_NOT_CHECK.value
    relays = RelayEvents(question.relay_urls)
    report = trio.run(verify, question, relays)
    _print(report, as_json=options.json)
    return report.answer.value


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        say_json(report.as_dict())
    else:
        say(*report.lines())


def _question(options: argparse.Namespace) -> Question:
    pointer = parse_pointer_untrusted(options.who)
    now = SystemClock().now() if options.at is None else _time(options.at)
    crls = [path.read_bytes() for path in options.crl]
    verifier = Verifier(load_anchor(options.dev_root), crls)
    return Question(
        pointer=pointer,
        relay_urls=tuple(dict.fromkeys([*options.relay, *pointer.relay_urls])),
        verifier=verifier,
        now=now,
        policies=tuple(_policies(options, now, is_development=verifier.anchor.is_development)),
        ask_instance=options.at is None and not options.offline,
    )


def _policies(options: argparse.Namespace, now: int, *, is_development: bool) -> list[Policy]:
    policies: list[Policy] = [
        DebugPolicy(options.allow_debug or is_development),
        MaxAge(options.max_age, now),
    ]
    given = {index: getattr(options, f"expect_pcr{index}") for index in (0, 1, 2)}
    expected = {index: _pcr(text) for index, text in given.items() if text is not None}
    if expected:
        policies.append(ExpectedPcrs(expected))
    if options.maintainer:
        pubkeys = frozenset(map(pubkey_from_npub_untrusted, options.maintainer))
        policies.append(ExpectedMaintainers(pubkeys))
    if options.repo is not None:
        if not options.maintainer:
            raise BadInput("--repo needs --maintainer: anybody can sign for any repository")
        policies.append(ExpectedRepo(options.repo))
    return policies


def _pcr(text: str) -> str:
    # An empty variable of a script must not turn an expectation into none.
    if not re.fullmatch(r"[0-9a-fA-F]{96}", text):
        raise BadInput("an expected PCR is 96 hex digits")
    return text.lower()


def _time(text: str) -> int:
    try:
        if text.isascii() and text.isdecimal():
            seconds = int(text)
        else:
            when = datetime.fromisoformat(text)
            aware = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
            seconds = int(aware.timestamp())
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 2**40:
        raise BadInput("--at is a time in Unix seconds, or as ISO 8601 writes it")
    return seconds


# -- release ------------------------------------------------------------------------------------------


def _add_release(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    do: object,
) -> None:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("target", help="an image reference" + (
        ", or a .json file with PCR0, PCR1 and PCR2" if name == "sign" else ""
    ))  # fmt: skip
    parser.add_argument("--relay", action="append", default=[], help="beside the image's own")
    parser.add_argument("--plain-http", action="append", default=[], metavar="HOST:PORT")
    if name != "check":
        add_signer_arguments(parser)
    if name == "sign":
        parser.add_argument("--repo", default="", help="for measurements")
        parser.add_argument("--version", default="", help="for measurements")
        parser.add_argument("--no-publish", action="store_true", help="print it, and no more")
    parser.set_defaults(do=do)


def _check(options: argparse.Namespace) -> int:
    async def check() -> dict[str, object]:
        async with _desk(options) as desk:
            return release_result(await desk.check(_image(options.target)))

    try:
        result = trio.run(check)
    except CannotRelease as error:
        tell(f"error: {error}")
        return Answer.COULD_NOT_CHECK.value
    say_json(result)
    return 0 if result["signed_by_all"] else 1


def _sign(options: argparse.Namespace) -> int:
    path, now = Path(options.target), SystemClock().now()
    if path.suffix == ".json":
        return _sign_measurements(options, path, now)
    if options.repo or options.version:
        raise CannotRelease("--repo and --version are for measurements; an image has labels")

    async def sign() -> tuple[VerifiedEvent, tuple[str, ...]]:
        async with _desk(options) as desk:
            signer = signer_of(options, desk.relays)
            return await desk.sign_image(
                _image(options.target), signer, is_prod=options.prod, now=now
            )

    event, urls = trio.run(sign)
    say_json_text(event.json.decode())
    return 0 if options.no_publish else publish(event, [*urls, *options.relay])


def _sign_measurements(options: argparse.Namespace, path: Path, now: int) -> int:
    async def sign() -> VerifiedEvent:
        return await sign_measurements(
            read_measurements(path),
            signer_of(options, RelayEvents(options.relay)),
            repo=options.repo,
            version=options.version,
            is_prod=options.prod,
            now=now,
        )

    event = trio.run(sign)
    say_json_text(event.json.decode())
    return 0 if options.no_publish else publish(event, options.relay)


def _publish(options: argparse.Namespace) -> int:
    async def announce() -> tuple[VerifiedEvent, tuple[str, ...]]:
        async with _desk(options) as desk:
            signer, now = signer_of(options, desk.relays), SystemClock().now()
            return await desk.announce_image(
                _image(options.target), signer, is_prod=options.prod, now=now
            )

    event, urls = trio.run(announce)
    say_json_text(event.json.decode())
    return publish(event, [*urls, *options.relay])


@asynccontextmanager
async def _desk(options: argparse.Namespace) -> AsyncIterator[Maintenance]:
    registry = OciRegistry(RegistryConfig(plain_http=tuple(options.plain_http)))
    try:
        yield Maintenance(registry, RelayEvents(options.relay), tuple(options.relay))
    finally:
        await registry.aclose()


def _image(text: str) -> ImageRef:
    try:
        return parse_image_ref(text)
    except BadImageRef as error:
        raise CannotRelease(str(error)) from error


def add_signer_arguments(parser: argparse.ArgumentParser) -> None:
    """Who signs, and what for."""
    parser.add_argument("--key", type=Path, help="a file with your nsec")
    parser.add_argument("--bunker", type=Path, help="a file with a bunker:// URI (NIP-46)")
    parser.add_argument("--prod", action="store_true", help="fit for production")


def signer_of(options: argparse.Namespace, relays: RelayEvents) -> Signer:
    """Raises `CannotRelease`, `BadKey`."""
    if (options.key is None) == (options.bunker is None):
        raise CannotRelease("give --key or --bunker, one of them")
    if options.key is not None:
        return KeySigner(SecretKey.parse(read_secret_text(options.key)))
    uri = parse_bunker_uri(read_secret_text(options.bunker))
    # The bunker's relays are the maintainer's own choice.
    own = RelayEvents([*uri.relay_urls, *options.relay])
    return BunkerSigner(uri, client_key_beside(options.bunker), own, SystemClock(), tell)


def publish(event: VerifiedEvent, urls: Sequence[str]) -> int:
    """To all of these relays; fails when none takes it."""

    async def send() -> list[str]:
        return [url for url in dict.fromkeys(urls) if await bring(event, url, find_address=None)]

    took = trio.run(send)
    if not took:
        tell("error: no relay took it; name one with --relay, or print it with --no-publish")
        return 1
    tell(f"published on {', '.join(took)}")
    return 0
