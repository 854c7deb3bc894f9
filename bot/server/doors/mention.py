"""Public notes that speak to us: a command line after our npub, answered by a note in the thread."""

from bot.server.dispatch import Answer, Request, Words, dispatch
from bot.server.inbox import CLIENT_TAG
from handlers import BY_NAME
from handlers.context import Caller, Context
from handlers.errors import Refusal
from nips import kinds
from nips.event import VerifiedEvent, sign_event
from nips.mention import is_mention, parse_command
from nips.nip10 import reply_tags
from nips.nip19 import npub

MAX_REPLY = 3_000


def is_command(ctx: Context, note: VerifiedEvent) -> bool:
    """Whether the note holds a command of ours. People may talk about us without being answered."""
    if not is_mention(note, ctx.key.pubkey):
        return False
    command = parse_command(note, npub(ctx.key.pubkey))
    return command is not None and command.method in BY_NAME


async def answer(
    ctx: Context, note: VerifiedEvent, refusal: Refusal | None = None
) -> VerifiedEvent | None:
    """The reply note; None when there is nothing to say."""
    command = parse_command(note, npub(ctx.key.pubkey))
    # Complaining about a flood in public would be a second flood.
    if command is None or command.method not in BY_NAME or refusal is not None:
        return None
    words = Words(command.words, command.named)
    done = await dispatch(
        ctx, Request(Caller(note.pubkey, public=True), command.method, words, "mention")
    )
    tags = [
        *reply_tags(note, ctx.presence.relay_urls[0] if ctx.presence.relay_urls else ""),
        CLIENT_TAG,
    ]
    return sign_event(ctx.key, kinds.NOTE, _text(done), tags, ctx.clock.now())


def _text(done: Answer) -> str:
    if isinstance(done.outcome, Refusal) or done.route is None or done.route.tell is None:
        return str(done.outcome)[:MAX_REPLY]
    return done.route.tell(done.outcome)[:MAX_REPLY]
