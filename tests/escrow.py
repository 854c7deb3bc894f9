"""A world of escrow: attested services on a lane that can lose, lie and swap, and enclaves that ask them."""

from dataclasses import dataclass, field

from bot.adapters.relay_events import Searched
from bot.devstack.keycrux import KeycruxService
from bot.devstack.keycrux_book import KeycruxBook
from bot.devstack.nsm import DevNsm
from keycrux_client.client import EscrowClient
from keycrux_client.discovery import Trust, discover
from keycrux_client.protocol import Credentials, EscrowPolicy
from keycrux_client.refresh import Keeper
from keycrux_client.shares import Fence, Head, encode, make_split, to_store
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from nips.tee.anchor import Anchor
from nips.tee.attestation import Pcrs, Verifier
from nips.tee.env import Env
from nips.tee.nec02 import proof_tags
from nips.tee.nsm import attestation_request, encode_request, open_bytes_untrusted
from tests.evidence import HARDWARE, Enclave, Hardware, measured
from tests.fakes import FakeClock

ESCROW_REPO = "https://example.com/keycrux"
DEV = Hardware(HARDWARE.authority, is_development=True)


class FakeAttester:
    """A module of the development kind, in memory."""

    def __init__(self, pcrs, clock):
        self.pcrs, self.nsm = pcrs, DevNsm(HARDWARE.authority, pcrs, clock.now)

    async def document(self, *, public_key, nonce=None, user_data=None):
        request = encode_request(attestation_request(public_key, user_data, nonce))
        return open_bytes_untrusted("Attestation", "document", self.nsm.call(request))


@dataclass
class Lane:
    """`keycrux_client.ports.Relays`. ``tamper`` sees every reply and may change it, or drop it by None."""

    announcements: list = field(default_factory=list)
    services: dict = field(default_factory=dict)
    tamper: object = None
    silent: tuple = ()
    requests: list = field(default_factory=list)

    async def search(self, filters, relay_urls):
        found = [e for e in self.announcements if any(f.matches(e) for f in filters)]
        return Searched(tuple(found), self.silent)

    async def ask(self, url, request, answers, is_reply, within_s):
        (target,) = request.tag_values("p")
        self.requests.append(request)
        service = self.services.get(target)
        reply = service.answer(request) if service is not None else None
        if self.tamper is not None and reply is not None:
            reply = self.tamper(target, request, reply)
        wanted = reply is not None and answers.matches(reply) and is_reply(reply)
        return reply if wanted else None


@dataclass
class World:
    clock: FakeClock
    lane: Lane
    folder: object
    maintainer: SecretKey = field(default_factory=SecretKey.generate)
    books: list = field(default_factory=list)

    @property
    def verifier(self):
        return Verifier(Anchor(HARDWARE.authority.root.der, is_development=True))

    @property
    def trust(self):
        return Trust(ESCROW_REPO, frozenset({self.maintainer.pubkey}), frozenset(Env))

    def add_service(self, **enclave):
        """An attested service that announces itself; its pubkey."""
        options = {"hardware": DEV, "env": Env.DEBUG, "signs_for": Env.DEV, "repo": ESCROW_REPO,
                   "maintainers": [self.maintainer], "image": "keycrux"} | enclave  # fmt: skip
        home = Enclave(**options)
        book = KeycruxBook(self.folder / f"{len(self.books)}.sqlite")
        self.books.append(book)
        self.lane.services[home.key.pubkey] = KeycruxService(
            home.key, book, self.verifier, self.clock
        )
        tags = [
            ("r", home.repo),
            ("name", "keycrux"),
            ("t", home.env.value),
            ("relay", "wss://relay.example.com"),
        ]
        tags += proof_tags(home.root(), home.signatures())
        self.lane.announcements.append(
            sign_event(home.key, kinds.ANNOUNCEMENT, "", tags, self.clock.now())
        )
        return home.key.pubkey

    async def find_services(self):
        return await discover(self.lane, ["wss://x"], self.trust, self.verifier, self.clock.now())

    def code(self, image="image", maintainers=None, machine="i-1", signed_by=None):
        """An enclave's code on a machine: measurements, who may sign for it, who did."""
        return Code(self, image, maintainers or [SecretKey.generate()], machine, signed_by)


class Code:
    def __init__(self, world, image, maintainers, machine, signed_by):
        self.world, self.maintainers = world, maintainers
        self.pcrs = {
            0: measured(f"{image} 0"),
            1: measured("kernel"),
            2: measured(f"{image} 2"),
            4: measured(machine),
        }
        self.attester = FakeAttester(self.pcrs, world.clock)
        home = Enclave(maintainers=maintainers, repo="https://example.com/enclaved")
        home.pcrs = Pcrs(self.pcrs).values
        signers = maintainers if signed_by is None else signed_by
        releases = tuple(home.release(key) for key in signers)
        repo = "https://example.com/enclaved"
        policy = EscrowPolicy(repo, tuple(key.pubkey for key in maintainers))
        self.client = EscrowClient(
            world.lane, self.attester, world.clock, Credentials(repo, releases), policy
        )

    async def keeper(self, key, head, split=None, fence=None, **options):
        """One that has met the services, of a life that wrote this head."""
        split = split or make_split(key, len(self.world.books))
        fence = fence or Fence(head.epoch, "aa")
        # Made from whatever earlier lives left, unless the test says otherwise.
        options.setdefault("base", Head(fence.epoch - 1, 2**53, ""))
        keeper = Keeper(self.client, self.world.find_services, key, split, fence, **options)
        await keeper.meet()
        keeper.offer(head, keeper.holders)
        return keeper

    async def store(self, *args, **options):
        """Once, and what came of it."""
        return await (await self.keeper(*args, **options)).refresh()

    async def get_all(self):
        found = await self.world.find_services()
        return list((await self.client.get_all(found.services)).values())


def texts(key, head, services, split=None):
    """What so many services keep of one key."""
    split = split or make_split(key, services)
    shared = split.threshold > 1
    return [
        encode(to_store(key, [split.part(n if shared else 0)], head, Fence(head.epoch, "aa")))
        for n in range(services)
    ]
