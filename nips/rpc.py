"""The RPC envelope of kinds 29425 and 29525: NIP-44 around ``{id, method, params}``."""

from dataclasses import dataclass

import orjson

from nips import nip44
from nips.errors import BadRequest
from nips.event import Event, VerifiedEvent, sign_event
from nips.keys import SecretKey

MAX_ID = 256
# Deeper than any request of ours; bounds the work of validating one.
MAX_DEPTH = 16


@dataclass(frozen=True)
class RpcRequest:
    """``rpc_id`` is the request's own id, echoed in the reply; it is not the event's id."""

    rpc_id: str
    method: str
    params: dict[str, object]


@dataclass(frozen=True)
class RpcReply:
    """Exactly one of ``result`` and ``error`` means something."""

    rpc_id: str
    result: object
    error: str | None


def open_request_untrusted(key: SecretKey, event: VerifiedEvent) -> RpcRequest:
    """Raises `BadCiphertext` when it is not for us, `BadRequest` when it is not a request."""
    value = _loads(nip44.decrypt_untrusted(key, event.pubkey, event.content))
    match value:
        case {"id": str(rpc_id), "method": str(method), "params": dict(params)}:
            if not rpc_id or len(rpc_id) > MAX_ID or not method:
                raise BadRequest(
                    "id and method must not be empty, and an id is at most 256 characters"
                )
            if _deeper_than(params, MAX_DEPTH):
                raise BadRequest("params are nested too deep")
            return RpcRequest(rpc_id, method, params)
        case _:
            raise BadRequest("a request is {id: string, method: string, params: object}")


def build_request(
    key: SecretKey, kind: int, service: str, request: RpcRequest, now: int
) -> VerifiedEvent:
    """The caller's side."""
    body = {"id": request.rpc_id, "method": request.method, "params": request.params}
    content = nip44.encrypt(key, service, orjson.dumps(body).decode())
    return sign_event(key, kind, content, [("p", service)], now)


def build_reply(key: SecretKey, to: VerifiedEvent, reply: RpcReply, now: int) -> VerifiedEvent:
    """The service's side. A result beyond NIP-44's limit becomes an error, not a crash."""
    body: dict[str, object] = {"id": reply.rpc_id}
    if reply.error is None:
        body["result"] = reply.result
    else:
        body["error"] = reply.error
    text = orjson.dumps(body).decode()
    if len(text.encode()) > nip44.MAX_PLAINTEXT:
        too_large = RpcReply(
            reply.rpc_id, None, "invalid: the result is larger than one message can be"
        )
        return build_reply(key, to, too_large, now)
    content = nip44.encrypt(key, to.pubkey, text)
    return sign_event(key, to.kind, content, [("p", to.pubkey), ("e", to.id)], now)


def open_reply_untrusted(key: SecretKey, event: Event) -> RpcReply:
    """The caller's side. Raises `BadCiphertext` or `BadRequest`."""
    match _loads(nip44.decrypt_untrusted(key, event.pubkey, event.content)):
        case {"id": str(rpc_id), "error": str(error)}:
            return RpcReply(rpc_id, None, error)
        case {"id": str(rpc_id), "result": result}:
            return RpcReply(rpc_id, result, None)
        case _:
            raise BadRequest("a reply is {id, result} or {id, error}")


def _loads(text: str) -> object:
    try:
        value: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest("the message holds no JSON") from error
    return value


def _deeper_than(value: object, depth: int) -> bool:
    if depth < 0:
        return True
    if isinstance(value, dict):
        return any(_deeper_than(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return any(_deeper_than(item, depth - 1) for item in value)
    return False
