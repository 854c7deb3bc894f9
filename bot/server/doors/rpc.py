"""The encrypted RPC, kind 29425: NIP-44 in, NIP-44 out."""

from bot.server.dispatch import Request, dispatch
from handlers.context import Caller, Context
from handlers.errors import Refusal, invalid
from nips.errors import BadCiphertext, BadRequest
from nips.event import VerifiedEvent
from nips.rpc import RpcReply, build_reply, open_request_untrusted


async def answer(
    ctx: Context, event: VerifiedEvent, refusal: Refusal | None = None
) -> VerifiedEvent:
    """The reply to an admitted event: what the request asks for, or the refusal."""
    try:
        request = open_request_untrusted(ctx.key, event)
    except BadCiphertext:
        # Upstream answers with an empty id; its clients show that as an error of theirs.
        return _reply(ctx, event, "", invalid("the request cannot be decrypted"))
    except BadRequest as error:
        return _reply(ctx, event, "", invalid(str(error)))
    if refusal is not None:
        return _reply(ctx, event, request.rpc_id, refusal)
    caller = Caller(event.pubkey, public=False)
    done = await dispatch(ctx, Request(caller, request.method, request.params, "rpc"))
    return _reply(ctx, event, request.rpc_id, done.outcome)


def _reply(ctx: Context, event: VerifiedEvent, rpc_id: str, outcome: object) -> VerifiedEvent:
    refused = isinstance(outcome, Refusal)
    reply = RpcReply(rpc_id, None if refused else outcome, str(outcome) if refused else None)
    return build_reply(ctx.key, event, reply, ctx.clock.now())
