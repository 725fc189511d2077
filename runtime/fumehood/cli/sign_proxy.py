"""`fumehood sign-proxy`: lets a client that cannot sign use a gateway that wants signed requests.

It runs where the client runs, as the client's user, and needs no privilege and no state folder; the key and the token are read before
anything else is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from fumehood.faults import FumehoodError
from fumehood.gateway_config import AUDIENCE
from fumehood.reasons import Reason

if TYPE_CHECKING:
    import ssl

    from fumehood.gateway.sign_proxy import Identity

_SECRET_BYTES = 16 * 1024


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sign-proxy")(sign_proxy)


def sign_proxy(
    key: Annotated[Path, typer.Option(help="The private key, a file of mode 0600; `fumehood senders keygen` makes one.")],
    *,
    url: Annotated[str | None, typer.Option(help="The gateway's URL, https, or http on this host.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file of mode 0600 with the bearer token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM of the authorities to trust, in place of the system's.")] = None,
    unix: Annotated[Path | None, typer.Option(metavar="PATH", help="The gateway's unix socket, in place of a URL.")] = None,
    sender: Annotated[
        str | None, typer.Option(help="The name that the key was added for; default: whose the token is.")
    ] = None,
    audience: Annotated[str, typer.Option(help="The gateway's audience.")] = AUDIENCE,
) -> None:
    """Sign what an MCP client on stdio sends, and pass it on to a gateway.

    Put this where an MCP client wants a server's command:

        fumehood sign-proxy --url https://gateway.example:8443/mcp --key ~/.config/fumehood/key --token-file ~/.config/fumehood/token
    """
    if (url is None) == (unix is None):
        raise FumehoodError(Reason.BAD_REQUEST, "name one gateway: --url URL, or --unix PATH")
    if url is None and (token_file or ca):
        raise FumehoodError(Reason.BAD_REQUEST, "--token-file and --ca go with --url")
    if url is not None:
        _check(url)
    from fumehood.gateway.sender_keys import read_private_key
    from fumehood.gateway.sign_proxy import Identity

    uid = os.getuid()
    identity = Identity(key=read_private_key(key, uid), audience=audience, sender=sender)
    token = None if token_file is None else _secret(token_file, uid)
    trusted = _context(ca)
    import anyio
    import httpx2

    try:
        anyio.run(_carry, identity, url, token, trusted, unix)
    except Exception as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if not isinstance(first, OSError | httpx2.HTTPError):
            raise
        said = first.strerror if isinstance(first, OSError) and first.strerror else str(first) or type(first).__name__
        detail = f"{url or unix}: {said}"
        raise FumehoodError(Reason.UPSTREAM_UNREACHABLE, detail, remedy="Check the address, and that the gateway runs.") from None


async def _carry(
    identity: Identity, url: str | None, token: str | None, trusted: ssl.SSLContext, unix: Path | None
) -> None:
    from fumehood.gateway import sign_proxy, stdio

    source, sink = stdio.claim()
    async with sign_proxy.over_http(url, token, trusted) if url is not None else sign_proxy.over_unix(str(unix)) as way:
        await sign_proxy.carry(identity, source, sink, way)


def _check(url: str) -> None:
    """Refuse to send a token, and what is signed, over a network in clear."""
    found = urlsplit(url)
    if found.scheme == "http" and found.hostname in {"127.0.0.1", "::1", "localhost"}:
        return
    if found.scheme != "https" or not found.hostname:
        detail = f"--url {url}: expected https://HOST/PATH, or http on 127.0.0.1"
        raise FumehoodError(Reason.BAD_REQUEST, detail, remedy="Let the gateway serve HTTPS, or run the proxy on its host.")


def _secret(path: Path, uid: int) -> str:
    from fumehood.safe_files import read_trusted

    try:
        token = read_trusted(path.absolute(), uid, limit_bytes=_SECRET_BYTES, private=True).strip()
    except FileNotFoundError:
        raise FumehoodError(Reason.BAD_REQUEST, f"there is no token file {path}") from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise FumehoodError(Reason.BAD_REQUEST, f"{path}: expected one bearer token, as `fumehood gateway token` prints it")
    return token


def _context(ca: Path | None) -> ssl.SSLContext:
    """What a gateway is recognised by. Raises FumehoodError."""
    import ssl

    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:  # ssl.SSLError is one
        raise FumehoodError(Reason.BAD_REQUEST, f"--ca {ca}: expected PEM certificates: {error.strerror or error}") from error
