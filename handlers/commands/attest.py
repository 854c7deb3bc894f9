"""``attest``: proof, made for the caller's nonce, that the instance's key lives in this enclave now."""

from dataclasses import dataclass
from typing import Any

from handlers.context import Caller, Context
from handlers.errors import Refusal, unavailable
from handlers.params import NONCE, param


@dataclass(frozen=True)
class AttestParams:
    """What the document is to repeat, so that it cannot be an old one."""

    nonce: str = param(NONCE)


async def attest(ctx: Context, caller: Caller, params: AttestParams) -> dict[str, Any] | Refusal:
    """The attestation event (23793) over the nonce."""
    return await attestation_for(ctx, params.nonce)


async def attestation_for(ctx: Context, nonce: str) -> dict[str, Any] | Refusal:
    """``nonce`` in hex, checked before."""
    if ctx.proof is None:
        return unavailable("this instance runs outside of an enclave and can prove nothing")
    root = await ctx.proof.answer(bytes.fromhex(nonce), ctx.clock.now())
    return {
        "nonce": nonce,
        "not_after": root.attested.not_after,
        "tee_root": root.event.as_dict(),
    }
