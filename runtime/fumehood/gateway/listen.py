"""What the operator asks to listen on, made with the operator's rights: sockets, certificate, token.

Nothing here imports the protocol; what serves is imported when root is given up. Invariants (rule 7): HTTP binds loopback
unless there are a certificate and named hosts, and never without a token from a file that only its owner can read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fumehood.faults import FumehoodError
from fumehood.gateway import http_head
from fumehood.model import Sender
from fumehood.reasons import Reason
from fumehood.safe_files import open_trusted_folder, read_trusted

MIN_TOKEN_CHARS = 32
_BACKLOG = 128
_MAKE = "Make one: (umask 077; head -c 32 /dev/urandom | base64 > {path})"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpListener:
    """A bound and listening socket, by which rules it is served, and with which certificate."""

    socket: socket.socket
    rules: http_head.Rules
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'http' if self.tls is None else 'https'}://{shown}:{port}{http_head.PATH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """All that one gateway listens on."""

    http: HttpListener | None = None
    unix: socket.socket | None = None
    path: Path | None = None


def opened(
    owner: Sender,
    http: str | None,
    token_file: Path | None,
    tls: tuple[Path | None, Path | None],
    hosts: frozenset[str],
    origins: frozenset[str],
    unix: Path | None,
) -> Listening | None:
    """What a command line asks for, or None when it is stdio. Raises FumehoodError."""
    if http is None and (token_file or any(tls) or hosts or origins):
        raise FumehoodError(Reason.BAD_REQUEST, "this is for HTTP only", remedy="Add --http 127.0.0.1:PORT.")
    if http is None and unix is None:
        return None
    listener = None
    if http is not None:
        if token_file is None:
            path = Path("/etc/fumehood/token")
            raise FumehoodError(
                Reason.BAD_REQUEST, "HTTP wants a bearer token", remedy=f"Add --token-file FILE. {_MAKE.format(path=path)}"
            )
        chain, key = tls
        if (chain is None) != (key is None):
            raise FumehoodError(Reason.BAD_REQUEST, "HTTPS wants a certificate and its key", remedy="Give both.")
        context = None if chain is None or key is None else certificate(chain, key, owner.uid)
        listener = http_listener(http, one_token(token_file, owner), hosts=hosts, origins=origins, tls=context)
    socket_ = None if unix is None else unix_listener(unix, owner.uid)
    return Listening(http=listener, unix=socket_, path=unix)


def http_listener(
    address: str,
    authenticate: Callable[[str], Sender | None],
    *,
    hosts: frozenset[str] = frozenset(),
    origins: frozenset[str] = frozenset(),
    tls: ssl.SSLContext | None = None,
) -> HttpListener:
    """Listen on `HOST:PORT`, an address and no name. Raises FumehoodError."""
    host, port = _address(address)
    if not host.is_loopback and (tls is None or not hosts):
        raise FumehoodError(
            Reason.CONFIG_UNSAFE,
            f"{address} can be reached from other machines",
            remedy="Listen on 127.0.0.1, or give a certificate, its key, and the names that clients use.",
        )
    listener = socket.socket(socket.AF_INET6 if host.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Not SO_REUSEPORT: another process of the same uid could take a share of our clients.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(host), port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise FumehoodError(
            Reason.CONFIG_INVALID, f"{address}: {error.strerror}", remedy="Choose another port; 0 takes a free one."
        ) from error
    served = hosts | http_head.LOOPBACK_NAMES if host.is_loopback else hosts
    rules = http_head.Rules(authenticate=authenticate, hosts=served, origins=origins)
    return HttpListener(socket=listener, rules=rules, tls=tls)


def one_token(path: Path, sender: Sender) -> Callable[[str], Sender | None]:
    """Who comes with the one token of a file: `sender`, who owns it. Raises FumehoodError."""
    remedy = _MAKE.format(path=path)
    try:
        text = read_trusted(path, sender.uid).strip()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FumehoodError(Reason.CONFIG_INVALID, f"there is no token file {path}", remedy=remedy) from None
    if stat.S_IMODE(mode) & 0o077:
        raise FumehoodError(
            Reason.CONFIG_UNSAFE,
            f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})",
            remedy=f"Its token is known: {remedy[0].lower()}{remedy[1:]}",
        )
    if not MIN_TOKEN_CHARS <= len(text) <= http_head.MAX_TOKEN_CHARS or not http_head.is_token(text):
        detail = f"{path} holds no token: one line of {MIN_TOKEN_CHARS} to {http_head.MAX_TOKEN_CHARS} characters of base64"
        raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy=remedy)
    known = hashlib.sha256(text.encode()).digest()

    def authenticate(token: str) -> Sender | None:
        return sender if hmac.compare_digest(hashlib.sha256(token.encode()).digest(), known) else None

    return authenticate


def certificate(chain: Path, key: Path, uid: int) -> ssl.SSLContext:
    """A server's context from PEM files; the key is its owner's alone. Raises FumehoodError."""
    try:
        read_trusted(key, uid)
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise FumehoodError(Reason.CONFIG_UNSAFE, f"{key} can be read by others", remedy=f"chmod 600 {key}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(os.fspath(chain), os.fspath(key))
    except (OSError, ssl.SSLError) as error:
        raise FumehoodError(
            Reason.CONFIG_INVALID, f"{chain} and {key} are no certificate and key: {error}", remedy="Give PEM files."
        ) from error
    return context


def _address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, _, port = text.rpartition(":")
    try:
        number = int(port)
        if not 0 <= number <= 65535 or not port.isascii():
            raise ValueError(port)
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")), number
    except ValueError:
        raise FumehoodError(
            Reason.BAD_REQUEST, f"{text!r} is no address and port", remedy="Write 127.0.0.1:PORT or [::1]:PORT."
        ) from None


def unix_listener(path: Path, uid: int) -> socket.socket:
    """A listening socket at `path`, of this process's uid and mode 0600. Raises FumehoodError."""
    try:
        folder = open_trusted_folder(path.absolute().parent, uid)
    except FileNotFoundError:
        raise FumehoodError(
            Reason.CONFIG_INVALID, f"there is no folder {path.parent}", remedy="Make it, mode 0700."
        ) from None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Two gateways that both find a dead one's socket must not remove each other's.
        fcntl.flock(folder, fcntl.LOCK_EX)
        name = f"/proc/self/fd/{folder}/{path.name}"
        _clear(name, path, uid)
        before = os.umask(0o177)
        try:
            listener.bind(name)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise FumehoodError(Reason.CONFIG_INVALID, f"{path}: {error.strerror}") from error
    except FumehoodError:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def _clear(name: str, path: Path, uid: int) -> None:
    """Remove a dead gateway's socket. Raises FumehoodError for anything else that has the name."""
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in {uid, os.getuid()}:
        raise FumehoodError(Reason.CONFIG_UNSAFE, f"{path} is there and no socket of yours", remedy="Use another name.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(name)
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
        else:
            raise FumehoodError(Reason.CONFIG_INVALID, f"{path} is in use", remedy="Stop the other gateway first.")
    os.unlink(name)  # noqa: PTH108 - below the descriptor
