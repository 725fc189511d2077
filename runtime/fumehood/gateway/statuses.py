"""What a remote server's HTTP statuses mean: an error of the protocol, or the end of the conversation with a code and a remedy.

Invariant: what the server said of it is shown as text that drives no terminal, and cut.
"""

from __future__ import annotations

from typing import Any

from fumehood.faults import ExchangeFailed
from fumehood.gateway import frames
from fumehood.gateway.protocol import printable
from fumehood.gateway.sse import Text
from fumehood.memory import Memory
from fumehood.ports import Reply
from fumehood.reasons import Reason

ERROR_BYTES = 64 * 1024


def failure(reply: Reply, *, credential: str | None, in_session: bool) -> ExchangeFailed:
    """What an answer without success means; `credential` is the name of what was sent with the request."""
    status, heads = reply.status, reply.headers
    named = credential
    said = printable(heads.get("www-authenticate", ""), 200)
    said = f" ({said})" if said else ""
    match status:
        case 401 if named is None:
            remedy = "Name a credential of the configuration's in `upstream.credential`."
            return ExchangeFailed(Reason.UPSTREAM_UNAUTHORIZED, f"HTTP 401: it wants a credential{said}", remedy=remedy)
        case 401:
            remedy = f"Check the credential {named}: whom it is for (`upstream.resource`), and whether it is still good."
            detail = f"HTTP 401: it does not take the credential {named}{said}"
            return ExchangeFailed(Reason.UPSTREAM_UNAUTHORIZED, detail, remedy=remedy)
        case 403:
            with_what = "a request without a credential" if named is None else f"what the credential {named} allows"
            return ExchangeFailed(Reason.UPSTREAM_UNAUTHORIZED, f"HTTP 403: it forbids this to {with_what}{said}")
        case 429 | 503:
            after = printable(heads.get("retry-after", ""), 40)
            again = f"Try again after {after} (seconds, or a date)." if after else None
            return ExchangeFailed(Reason.UPSTREAM_BUSY, f"HTTP {status}", remedy=again)
        case _ if 300 <= status < 400:
            to = printable(heads.get("location", ""), 200)
            remedy = "If that is the intended server, write its URL in `upstream.url`."
            detail = f"HTTP {status}: it points to {to!r}, and nothing is followed"
            return ExchangeFailed(Reason.UPSTREAM_REFUSED, detail, remedy=remedy)
        case _ if status >= 500:
            return ExchangeFailed(Reason.UPSTREAM_FAILED, f"HTTP {status}")
        case 202 | 204:
            return ExchangeFailed(Reason.SERVER_GARBAGE, f"HTTP {status}: it took the request and will not answer")
        case 404 if in_session:
            return ExchangeFailed(Reason.UPSTREAM_REFUSED, "HTTP 404: it forgot the session twice in one call")
        case 404 | 405:
            detail = f"HTTP {status}: there is no Streamable HTTP at this URL (one with HTTP+SSE of 2024 is not spoken to)"
            return ExchangeFailed(Reason.UPSTREAM_REFUSED, detail)
        case _:
            return ExchangeFailed(Reason.UPSTREAM_REFUSED, f"HTTP {status}")


async def protocol_error(request: frames.Request, reply: Reply) -> dict[str, Any] | None:
    """The error of the protocol that an answer without success holds, if it is one to this request."""
    if not reply.headers.get("content-type", "").lower().startswith("application/json"):
        return None
    text = Text(ERROR_BYTES, None)
    try:
        while piece := await reply.read():
            text.add(piece)
        answer = frames.read(_bytes(text.taken()), repair_surrogates=True)
    except (ExchangeFailed, frames.FrameError):
        return None
    # A server that could not read whose request it was says null; any other id is an answer to somebody else.
    mine = isinstance(answer, frames.Answer) and answer.id in (None, request.id)
    return answer.error if mine and isinstance(answer, frames.Answer) else None


def _bytes(taken: bytes | Memory) -> bytes:
    assert isinstance(taken, bytes)  # noqa: S101 - nothing is long without a most
    return taken
