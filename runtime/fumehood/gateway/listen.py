"""What the operator asks to listen on, made with the operator's rights: sockets, certificate, token.

Nothing here imports the protocol; what serves is imported when root is given up. Invariants (rule 7): HTTP binds loopback
unless there are a certificate and named hosts, and never without a token: from a file that only its owner can read, or of an issuer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fumehood.faults import FumehoodError
from fumehood.gateway import http_head
from fumehood.gateway.senders import read_senders
from fumehood.gateway.served import HttpFront
from fumehood.gateway_config import SOCKET_PATH_BYTES, HttpConfig, TlsConfig, default_hosts, exposed
from fumehood.reasons import Reason
from fumehood.safe_files import open_trusted_folder, read_trusted

if TYPE_CHECKING:
    from fumehood.gateway.oauth.given import OAuthFront
    from fumehood.oauth_config import OAuthConfig

Users = Sequence[tuple[str, int]]
"""Further users of a unix socket: name and uid."""
_BACKLOG = 128
_NO_ID = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpListener:
    """A bound and listening socket, by which rules it is served, and with which certificate."""

    socket: socket.socket
    rules: http_head.Rules
    tls: ssl.SSLContext | None = None

    def adopt(self, front: HttpFront) -> None:
        """Go on by what a configuration says now: senders, names, origins, certificate. The socket stays."""
        hosts, origins = frozenset(front.allowed_hosts), frozenset(front.allowed_origins)
        self.rules.change(
            http_head.Rules(
                authenticate=front.senders.of, hosts=hosts, origins=origins, envelope=front.envelope, oauth=front.oauth
            )
        )
        if self.tls is not None and front.tls is not None:
            front.tls.load_into(self.tls)

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
    users: Users = ()


def opened(http: HttpConfig | None, unix: Path | None, uid: int, users: Users = ()) -> Listening | None:
    """Listen on what is configured, for the operator `uid`; None when that is nothing. Raises FumehoodError."""
    if http is None and unix is None:
        return None
    return Listening(
        http=None if http is None else http_listener(http, uid),
        unix=None if unix is None else unix_listener(unix, uid, users),
        path=unix,
        users=users,
    )


def http_listener(http: HttpConfig, uid: int) -> HttpListener:
    """Listen on the address of a configuration that has one. Raises FumehoodError."""
    listen = http.listen
    if listen is None:
        raise FumehoodError(Reason.CONFIG_INVALID, "HTTP has no address", remedy="Add --http 127.0.0.1:PORT.")
    if (wrong := exposed(listen, tls=http.tls is not None, allowed_hosts=bool(http.allowed_hosts))) is not None:
        raise FumehoodError(Reason.CONFIG_UNSAFE, wrong, remedy="Listen on 127.0.0.1, or configure what is missing.")
    senders, oauth = read_senders(http.tokens_file, uid), oauth_of(http.oauth, uid)
    tls = None if http.tls is None else certificate(http.tls, uid)
    if tls is not None and oauth is not None:
        oauth.ask_certificates(tls)
    listener = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Not SO_REUSEPORT: another process of the same uid could take a share of our clients.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((listen.host, listen.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        remedy = "Choose another port; 0 takes a free one."
        raise FumehoodError(Reason.CONFIG_INVALID, f"{listen}: {error.strerror}", remedy=remedy) from error
    rules = http_head.Rules(
        authenticate=senders.of,
        hosts=frozenset(http.allowed_hosts or default_hosts(listen)),
        origins=frozenset(http.allowed_origins),
        envelope=http.envelope,
        oauth=oauth,
    )
    return HttpListener(socket=listener, rules=rules, tls=tls)


def oauth_of(config: OAuthConfig | None, uid: int) -> OAuthFront | None:
    """What is configured of OAuth, with its files read. Raises FumehoodError."""
    if config is None:
        return None
    from fumehood.gateway.oauth.given import read_front

    return read_front(config, uid)


def certificate(tls: TlsConfig, uid: int) -> ssl.SSLContext:
    """A server's context from PEM files; the key is its owner's alone. Raises FumehoodError."""
    try:
        read_trusted(tls.key, uid, private=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A passphrase would be asked for on the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError) as error:
        detail = f"{tls.certificate} and {tls.key} are no certificate and its key: {error}"
        raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Give PEM files, the key without a passphrase.") from error
    return context


def unix_listener(path: Path, uid: int, users: Users = ()) -> socket.socket:
    """A listening socket at `path`, of this process's uid and mode 0600, that `users` can connect to as well. Raises FumehoodError."""
    if len(os.fsencode(path.absolute())) > SOCKET_PATH_BYTES:
        detail = f"{path}: the kernel takes at most {SOCKET_PATH_BYTES} bytes"
        raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Use a shorter path.")
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
        if users:
            _let_in(name, path, users)
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


def _let_in(name: str, path: Path, users: Users) -> None:
    """Have the kernel let these users connect, and nobody else: a mode for all would let every stranger fill the queue."""
    try:
        os.setxattr(name, "system.posix_acl_access", access_list([uid for _, uid in users]))
    except OSError as error:
        detail = f"{path}: its file system keeps no access list for `gateway.unix.users`: {error.strerror}"
        raise FumehoodError(Reason.CONFIG_INVALID, detail, remedy="Use a path on another file system, such as /run.") from error


def access_list(uids: Sequence[int]) -> bytes:
    """Reading and writing for the owner and these users, as in posix_acl_xattr.h: version 2, then tag, rights and id of each."""
    entries = [(0x01, 6, _NO_ID), *((0x02, 6, uid) for uid in sorted(uids)), (0x04, 0, _NO_ID), (0x10, 6, _NO_ID), (0x20, 0, _NO_ID)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


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
