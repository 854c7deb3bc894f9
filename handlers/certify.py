"""App certificates: an app inside a container proves its key, and the container's key vouches for it.

Only the container itself may ask (`bot/server/doors/container.py` knows who is calling): its admin, outside, could
prove any key, and a certificate says that the key lives *inside*. The proof is NIP-42's answer to a
challenge of ours, for our endpoint, naming the container: nothing that anybody else can make the app sign.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace
from typing import Any

from handlers.context import Context
from handlers.domain.lifecycle import State
from handlers.errors import Refusal, invalid, not_found, restricted, unavailable
from handlers.params import APP_PUBKEY, PROOF, param
from handlers.records import Container
from handlers.tables import Tx
from handlers.transitions import save_changed
from nips import nip42
from nips.errors import BadInput
from nips.event import Event
from nips.tee.certificates import Role, build_certificate

CHALLENGE_S = 60
MAX_CHALLENGES_EACH = 16


@dataclass(frozen=True)
class ChallengeParams:
    """The app's key."""

    pubkey: str = param(APP_PUBKEY)


@dataclass(frozen=True)
class CertificateParams:
    """The app's key, and its answer to the challenge."""

    pubkey: str = param(APP_PUBKEY)
    proof: Event | None = param(PROOF, None)


def container_token(ctx: Context, container: str, generation: int) -> str:
    """What a container shows to be let in; another one for each generation. Derived, so never stored."""
    message = f"container token {container} {generation}".encode()
    return hmac.new(ctx.key.reveal_secret(), message, hashlib.sha256).hexdigest()


class Certifier:
    """Challenges live in memory: after a restart the app simply asks again."""

    def __init__(self) -> None:
        # By container, then by app: one tenant's challenges never crowd out another's.
        self._challenges: dict[str, dict[str, tuple[str, int]]] = {}

    async def challenge(
        self, ctx: Context, container: str, params: ChallengeParams
    ) -> dict[str, Any] | Refusal:
        """What the app must sign: kind 22242 with these tags."""
        endpoint, now = ctx.presence.container_endpoint, ctx.clock.now()
        if endpoint is None:
            return unavailable("there is no endpoint for containers here")
        text, open_now = secrets.token_hex(32), self._open(container, now)
        open_now[params.pubkey] = (text, now + CHALLENGE_S)
        while len(open_now) > MAX_CHALLENGES_EACH:
            # Its own oldest; another container's never.
            open_now.pop(next(iter(open_now)))
        tags = [["relay", endpoint], ["challenge", text], ["p", container]]
        return {"kind": 22242, "tags": tags, "expires_at": now + CHALLENGE_S}

    async def certificate(
        self, ctx: Context, container: str, params: CertificateParams
    ) -> dict[str, Any] | Refusal:
        """``{root, certs: [container's, app's]}``: with these in its tags, the app's events verify."""
        if ctx.proof is None:
            return unavailable("this instance runs outside of an enclave and can prove nothing")
        refusal = self._check_proof(ctx, container, params)
        if refusal is not None:
            return refusal
        row = await ctx.store.write(_remember_app, container, params.pubkey)
        if row is None:
            return not_found("this container does not run")
        now = ctx.clock.now()
        root = await ctx.proof.current(now)
        ends = root.attested.not_after
        of_container = build_certificate(
            ctx.key, container, Role.CONTAINER, now, image=row.image, not_after=ends
        )
        of_app = build_certificate(row.key, params.pubkey, Role.APP, now, not_after=ends)
        ctx.nudge.announce()
        return {
            "root": root.event.as_dict(),
            "certs": [of_container.as_dict(), of_app.as_dict()],
        }

    def _check_proof(
        self, ctx: Context, container: str, params: CertificateParams
    ) -> Refusal | None:
        if params.proof is None:
            return restricted("prove the key: ask get_challenge, sign it, send it as proof")
        # Used up, whatever comes of it.
        text, _ = self._open(container, ctx.clock.now()).pop(params.pubkey, ("", 0))
        if not text:
            return restricted("there is no open challenge for this key; ask get_challenge")
        endpoint = frozenset({(ctx.presence.container_endpoint or "").rstrip("/")})
        try:
            proven = nip42.verify_answer(params.proof, endpoint, text, ctx.clock.now())
        except BadInput as error:
            return invalid(f"the proof does not hold: {error}")
        if proven != params.pubkey or params.proof.tag_values("p") != [container]:
            return invalid("the proof is of another key, or for another container")
        return None

    def _open(self, container: str, now: int) -> dict[str, tuple[str, int]]:
        """The container's challenges that have not ended, by app; those of all others that ended are forgotten."""
        self._challenges = {
            name: still
            for name, opened in self._challenges.items()
            if (still := {app: at for app, at in opened.items() if at[1] >= now})
        }
        return self._challenges.setdefault(container, {})


def _remember_app(tx: Tx, container: str, app: str) -> Container | None:
    row = tx.containers.find(container)
    if row is None or row.state is not State.DEPLOYED:
        return None
    if tx.containers.find(app) is not None:
        # A container's own key is no app's; certificates must not run in circles.
        return None
    if row.app != app:
        row = replace(row, app=app)
        save_changed(tx, row)
    return row
