"""The command line, for those who check (``verify``) and those who vouch (``release``)."""

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import trio

from bot.adapters.oci_registry import OciRegistry, RegistryConfig
from bot.adapters.relay_events import RelayEvents
from bot.clock import SystemClock
from bot.maintain import CannotRelease, Maintenance, sign_measurements
from bot.relay.courier import bring
from bot.signer import BunkerSigner, KeySigner, Signer, client_key_beside
from bot.verify import Answer, Question, Report, lines_of, relay_urls_of, verify
from handlers.domain.image import BadImageRef, parse_image_ref
from handlers.release import release_result
from nips.anchor import AWS_NITRO_ROOT_G1, Anchor, development_anchor
from nips.attestation import Verifier
from nips.errors import BadInput
from nips.event import Event
from nips.keys import SecretKey
from nips.nip19 import parse_pointer_untrusted, pubkey_from_npub_untrusted
from nips.nip46 import parse_bunker_uri
from nips.policies import (
    DebugPolicy,
    ExpectedMaintainers,
    ExpectedPcrs,
    ExpectedRepo,
    MaxAge,
    Policy,
)

T = TypeVar("T")
DEFAULT_MAX_AGE_S = 3 * 3600


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """``verify`` and ``release``."""
    _add_verify(commands.add_parser("verify", help="what runs under this npub, provably?"))
    release = commands.add_parser("release", help="sign, publish or check releases")
    actions = release.add_subparsers(required=True, metavar="action")
    _add_release(actions, "check", "who signed an image?", _check)
    _add_release(actions, "sign", "sign an image, or a file of measurements", _sign)
    _add_release(actions, "publish", "announce an image that all its signers signed", _publish)


# -- verify -------------------------------------------------------------------------------------------


def _add_verify(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--max-age", type=int, default=DEFAULT_MAX_AGE_S, metavar="SECONDS")
    parser.add_argument("--allow-debug", action="store_true", help="accept what its host can read")
    parser.add_argument(
        "--dev-root", type=Path, help="DEVELOPMENT ONLY: believe this root instead of AWS's"
    )
    parser.set_defaults(do=_verify)


def _verify(options: argparse.Namespace) -> int:
    try:
        question = _question(options)
    except (BadInput, OSError, ValueError) as error:
        print(f"enclaved: error: {error}", file=sys.stderr)
        return Answer.COULD_NOT_CHECK.value
    relays = RelayEvents(question.relay_urls)
    report = trio.run(verify, question, relays)
    _print(report, as_json=options.json)
    return report.answer.value


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print("\n".join(lines_of(report)))


def _question(options: argparse.Namespace) -> Question:
    pointer = parse_pointer_untrusted(options.who)
    now = SystemClock().now() if options.at is None else _time(options.at)
    verifier = Verifier(_anchor(options.dev_root))
    return Question(
        pointer=pointer,
        relay_urls=relay_urls_of(pointer, options.relay),
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
    expected = {i: text for i in (0, 1, 2) if (text := getattr(options, f"expect_pcr{i}"))}
    if expected:
        policies.append(ExpectedPcrs(expected))
    if options.maintainer:
        pubkeys = frozenset(map(pubkey_from_npub_untrusted, options.maintainer))
        policies.append(ExpectedMaintainers(pubkeys))
    if options.repo is not None:
        policies.append(ExpectedRepo(options.repo))
    return policies


def _anchor(dev_root: Path | None) -> Anchor:
    return AWS_NITRO_ROOT_G1 if dev_root is None else development_anchor(dev_root.read_bytes())


def _time(text: str) -> int:
    if text.isdecimal():
        return int(text)
    when = datetime.fromisoformat(text)
    return int((when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp())


# -- release ------------------------------------------------------------------------------------------


def _add_release(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    do: object,
) -> None:
    parser = actions.add_parser(name, help=text)
    parser.add_argument("target", help="an image reference" + (
        ", or a JSON file with PCR0, PCR1 and PCR2" if name == "sign" else ""
    ))  # fmt: skip
    parser.add_argument("--relay", action="append", default=[], help="beside the image's own")
    parser.add_argument("--plain-http", action="append", default=[], metavar="HOST:PORT")
    if name != "check":
        parser.add_argument("--key", type=Path, help="a file with your nsec")
        parser.add_argument("--bunker", type=Path, help="a file with a bunker:// URI (NIP-46)")
        parser.add_argument("--prod", action="store_true", help="fit for production")
    if name == "sign":
        parser.add_argument("--repo", default="", help="for measurements")
        parser.add_argument("--version", default="", help="for measurements")
        parser.add_argument("--no-publish", action="store_true", help="print it, and no more")
    parser.set_defaults(do=do)


def _check(options: argparse.Namespace) -> int:
    async def check() -> dict[str, object]:
        desk = _desk(options)
        try:
            return release_result(await desk.check(parse_image_ref(options.target)))
        finally:
            await desk.registry.aclose()

    result = _run(check)
    print(json.dumps(result, indent=2))
    return 0 if result["signed_by_all"] else 1


def _sign(options: argparse.Namespace) -> int:
    async def sign() -> tuple[Event, tuple[str, ...]]:
        desk, now = _desk(options), SystemClock().now()
        signer = _signer(options, desk.relays)
        try:
            if Path(options.target).is_file():  # noqa: ASYNC240 - one look, before anything runs
                event = await sign_measurements(
                    Path(options.target),
                    signer,
                    repo=options.repo,
                    version=options.version,
                    is_prod=options.prod,
                    now=now,
                )
                return event, ()
            ref = parse_image_ref(options.target)
            return await desk.sign_image(ref, signer, is_prod=options.prod, now=now)
        finally:
            await desk.registry.aclose()

    event, urls = _run(sign)
    print(event.json.decode())
    return 0 if options.no_publish else _send(event, [*urls, *options.relay])


def _publish(options: argparse.Namespace) -> int:
    async def announce() -> tuple[Event, tuple[str, ...]]:
        desk, now = _desk(options), SystemClock().now()
        try:
            ref = parse_image_ref(options.target)
            signer = _signer(options, desk.relays)
            return await desk.announce_image(ref, signer, is_prod=options.prod, now=now)
        finally:
            await desk.registry.aclose()

    event, urls = _run(announce)
    print(event.json.decode())
    return _send(event, [*urls, *options.relay])


def _desk(options: argparse.Namespace) -> Maintenance:
    registry = OciRegistry(RegistryConfig(plain_http=tuple(options.plain_http)))
    return Maintenance(registry, RelayEvents(options.relay))


def _signer(options: argparse.Namespace, relays: RelayEvents) -> Signer:
    if (options.key is None) == (options.bunker is None):
        raise CannotRelease("give --key or --bunker, one of them")
    if options.key is not None:
        return KeySigner(SecretKey.parse(options.key.read_text().strip()))
    uri = parse_bunker_uri(options.bunker.read_text().strip())
    # The bunker's relays are the maintainer's own choice.
    own = RelayEvents([*uri.relay_urls, *options.relay])
    return BunkerSigner(uri, client_key_beside(options.bunker), own, SystemClock(), _tell)


def _tell(text: str) -> None:
    print(f"enclaved: {text}", file=sys.stderr)


def _send(event: Event, urls: Sequence[str]) -> int:
    """To all of these relays; fails when none takes it."""
    if not urls:
        _tell("published nowhere: the image names no signer_relays, and no --relay is given")
        return 0

    async def send() -> list[str]:
        return [url for url in dict.fromkeys(urls) if await bring(event, url, find_address=None)]

    took = trio.run(send)
    _tell(f"published on {', '.join(took) or 'no relay'}")
    return 0 if took else 1


def _run(work: Callable[[], Awaitable[T]]) -> T:
    try:
        return trio.run(work)
    except BadImageRef as error:
        raise CannotRelease(str(error)) from error
